"""Cleaning of captions and questions: named filters, a store of their findings, and the files that are written."""

from pallava.data.clean.run import clean
from pallava.data.clean.settings import CleanSettings
from pallava.data.clean.species import judge_species

__all__ = ["CleanSettings", "clean", "judge_species"]
