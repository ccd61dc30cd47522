"""Adapters by which other evaluation harnesses ask a model folder: lmms-eval and VLMEvalKit."""

from typing import Any


def lmms_eval_manifest() -> Any:
    """Return what lmms-eval looks for under its entry point ``lmms_eval.models``; imports nothing heavy."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="pallava", chat_class_path="pallava.adapters.lmms_eval.PALLaVA")
