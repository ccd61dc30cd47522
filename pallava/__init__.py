"""PA-LLaVA: a language-vision assistant for human pathology images, as a plugin of xtuner.

The public names are imported when they are first used, so that ``import pallava`` costs nothing.
"""

import importlib
from typing import Any

__version__ = "0.2.0"

_HOMES = {
    "PALLaVAConfig": "pallava.model",
    "PALLaVAForConditionalGeneration": "pallava.model",
    "PALLaVAProcessor": "pallava.model",
    "PallavaError": "pallava.errors",
    "ask": "pallava.model",
    "clean": "pallava.data.clean",
    "convert": "pallava.model.convert",
    "evaluate": "pallava.evaluation.run",
    "load": "pallava.model",
    "load_encoder": "pallava.model",
    "look": "pallava.evaluation.encoders.look",
    "make_tiles": "pallava.tiling",
    "open_image": "pallava.images",
    "register_connector": "pallava.model",
    "register_encoder": "pallava.model",
    "register_source": "pallava.data.sources",
    "register_task": "pallava.evaluation.tasks",
    "serve": "pallava.serving.server",
    "write_training_file": "pallava.data.training_file",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pallava' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
