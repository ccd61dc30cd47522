"""Cleaning of captions and questions: named filters, a store of their scores, and what comes out."""

from typing import Any

__all__ = ["judge_species"]


def __getattr__(name: str) -> Any:
    """Imports what is exported when it is first asked for."""
    if name == "judge_species":
        from pallava.data.clean.species import judge_species

        return judge_species
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
