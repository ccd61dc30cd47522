"""VLMEvalKit's model "pallava": ``python -m pallava.adapters.vlmevalkit FOLDER --data PathVQA ...``.

The command adds the model to VLMEvalKit's table and passes all other options to VLMEvalKit's own ``run.py``. `PALLaVA`
implements its interface (docs/en/Development.md there) and can also be named in its ``config.py``.
"""

import importlib
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from vlmeval.vlm.base import BaseModel

from pallava.errors import PallavaError
from pallava.model import answer, load

_NAME = "pallava"
_MAX_NEW_TOKENS = 256


class PALLaVA(BaseModel):
    """A model folder as VLMEvalKit asks it.

    Args:
        model_path: The model folder.
        base_llm: Base language model of a folder with an adapter (default: the one that the folder names).
        trust_remote_code: Whether a module that the folder names for its connector may be imported.
        **generate: Options of transformers' `generate` (default: greedy, at most 256 tokens).

    Raises:
        PallavaError: The folder cannot be opened.
    """

    INSTALL_REQ = False
    INTERLEAVE = True
    allowed_types = ["text", "image"]

    def __init__(
        self, model_path: str, base_llm: str | None = None, trust_remote_code: bool = False, **generate: Any
    ) -> None:
        super().__init__()
        self._parts = load(model_path, base_llm=base_llm, trust_remote_code=trust_remote_code)
        self._generate = {"max_new_tokens": _MAX_NEW_TOKENS, **generate}

    def generate_inner(self, message: Sequence[dict[str, str]], dataset: str | None = None) -> str:
        """Answer one message: parts of ``type`` (text or image) and ``value`` (text or path)."""
        parts = [{"type": each["type"], each["type"]: each["value"]} for each in message]
        return answer(*self._parts, [[{"role": "user", "content": parts}]], **self._generate)[0]


def register(model_path: str, **options: Any) -> None:
    """Add a folder, with options of `PALLaVA`, to the models that VLMEvalKit knows by name."""
    from vlmeval.config import supported_VLM

    supported_VLM[_NAME] = partial(PALLaVA, model_path=model_path, **options)


def main(arguments: Sequence[str]) -> Any:
    """Run VLMEvalKit on a folder, the first of the arguments; all others are for VLMEvalKit's ``run.py``.

    Raises:
        PallavaError: The folder is missing among them, or ``run.py`` cannot be found.
    """
    if not arguments or arguments[0].startswith("-") or "--model" in arguments:
        raise PallavaError(
            f"arguments must be a model folder and options of VLMEvalKit, got {' '.join(arguments)!r}; such as "
            "FOLDER --data PathVQA_VAL"
        )
    run = _find_run()  # first: it shares out the GPUs by CUDA_VISIBLE_DEVICES
    register(arguments[0])
    sys.argv = [sys.argv[0], "--model", _NAME, *arguments[1:]]
    return run.main()


def _find_run() -> Any:
    # In its package, or beside the package in a clone.
    for name in ("vlmeval.run", "run"):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
    raise PallavaError("VLMEvalKit's run.py cannot be found; start this command in the folder of its clone")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except PallavaError as problem:
        sys.exit(f"error: {problem}")
