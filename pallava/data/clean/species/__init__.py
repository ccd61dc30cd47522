"""Human or not, by the words of a caption: the rules (`judge`) and the tables of words and phrases they walk."""

from pallava.data.clean.species.judge import Species, SpeciesRules, find_species, judge_species

__all__ = ["Species", "SpeciesRules", "find_species", "judge_species"]
