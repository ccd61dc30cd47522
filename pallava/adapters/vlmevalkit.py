"""VLMEvalKit's model "pallava": ``python -m pallava.adapters.vlmevalkit FOLDER --data PathVQA ...``.

The command puts the model among those that VLMEvalKit knows and hands all other options to VLMEvalKit's own ``run.py``.
`PALLaVA` implements its interface (docs/en/Development.md there), so that it can also stand in its ``config.py``.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from vlmeval.vlm.base import BaseModel

from pallava.adapters.folder import ModelFolder
from pallava.errors import PallavaError

NAME = "pallava"
_MAX_NEW_TOKENS = 256


class PALLaVA(BaseModel):
    """A model folder as VLMEvalKit asks it.

    Args:
        model_path: The folder.
        base_llm: Where the base language model lies, if the folder holds an adapter to it.
        **generate: Options of transformers' `generate`; greedy, and up to 256 tokens, unless told otherwise.

    Raises:
        PallavaError: There is no model.
    """

    INSTALL_REQ = False
    INTERLEAVE = True
    allowed_types = ["text", "image"]

    def __init__(self, model_path: str, base_llm: str | None = None, **generate: Any) -> None:
        super().__init__()
        self._folder = ModelFolder(model_path, base_llm=base_llm)
        self._generate = {"max_new_tokens": _MAX_NEW_TOKENS, **generate}

    def generate_inner(self, message: Sequence[dict[str, str]], dataset: str | None = None) -> str:
        """Answers one message of texts and paths of images.

        Args:
            message: Parts of ``type`` (text or image) and ``value``.
            dataset: Its name, which changes nothing.
        """
        parts = [{"type": each["type"], each["type"]: each["value"]} for each in message]
        return self._folder.answer([[{"role": "user", "content": parts}]], **self._generate)[0]


def register(model_path: str, name: str = NAME, **options: Any) -> None:
    """Adds a folder to the models that VLMEvalKit knows by name.

    Args:
        model_path: The folder.
        name: What ``--model`` calls it.
        **options: Of `PALLaVA`.
    """
    from vlmeval.config import supported_VLM

    supported_VLM[name] = partial(PALLaVA, model_path=model_path, **options)


def main(arguments: Sequence[str]) -> Any:
    """Runs VLMEvalKit on a folder.

    Args:
        arguments: The folder, then options of VLMEvalKit's ``run.py`` but ``--model``.

    Raises:
        PallavaError: There is no folder among them, or ``run.py`` cannot be found.
    """
    if not arguments or arguments[0].startswith("-") or "--model" in arguments:
        raise PallavaError("expected a model folder and options of VLMEvalKit, such as: FOLDER --data PathVQA_VAL")
    run = _find_run()  # first: it shares out the GPUs by CUDA_VISIBLE_DEVICES
    register(arguments[0])
    sys.argv = [sys.argv[0], "--model", NAME, *arguments[1:]]
    return run.main()


def _find_run() -> Any:
    """VLMEvalKit's command: in its package, or, in a clone of it, beside the package."""
    for name in ("vlmeval.run", "run"):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
    raise PallavaError("cannot find VLMEvalKit's run.py: start this in the folder of its clone")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except PallavaError as problem:
        sys.exit(f"error: {problem}")
