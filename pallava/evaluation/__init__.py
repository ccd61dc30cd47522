"""Evaluation of a PA-LLaVA or of an encoder: tasks, scores with intervals beside controls, and a page to look at.

The names are imported when they are first used, since `evaluate` needs torch.
"""

import importlib
from typing import Any

_HOMES = {
    "TASKS": "pallava.evaluation.tasks",
    "EvaluateOptions": "pallava.evaluation.tasks",
    "Task": "pallava.evaluation.tasks",
    "evaluate": "pallava.evaluation.run",
    "judge_predictions": "pallava.evaluation.answers.similarity",
    "register_task": "pallava.evaluation.tasks",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pallava.evaluation' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
