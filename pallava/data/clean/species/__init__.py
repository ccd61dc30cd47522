"""Species by the words of a caption: what judges (`judge`), and its words and phrases (``rules.ini``)."""

from pallava.data.clean.species.judge import Species, SpeciesRules, find_species, judge_species

__all__ = ["Species", "SpeciesRules", "find_species", "judge_species"]
