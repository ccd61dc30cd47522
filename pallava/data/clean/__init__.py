"""Cleaning of captions and questions: named filters, a store of their findings, and the files that are written."""

import importlib
from typing import Any

_HOMES = {"CleanSettings": "settings", "clean": "run", "judge_species": "species"}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
