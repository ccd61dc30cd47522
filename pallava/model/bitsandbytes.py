"""bitsandbytes 0.45.0, which xtuner 0.2.0 pins, cannot be imported beside triton 3.3 or newer (torch 2.7).

It stands here and not among the work-arounds of training, which applies it too, because a model folder with an adapter
opens without xtuner.
"""

import importlib
import logging
import sys
from typing import Any

from pallava.errors import PallavaError


def block_broken_bitsandbytes() -> bool:
    """Makes peft and transformers go on without a bitsandbytes that is installed but broken.

    They look whether the package is there, not whether it works, so that LoRA on an ordinary model fails. Must run
    before the first LoRA is built.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # that it has no GPU, said at every command on a CPU
    try:
        importlib.import_module("bitsandbytes")
    except Exception as error:  # it fails in many ways: ImportError, RuntimeError, OSError of a shared library
        reason = f"{type(error).__name__}: {error}"
    else:
        return False
    for name in [name for name in sys.modules if name.split(".")[0] == "bitsandbytes"]:
        del sys.modules[name]  # half loaded
    sys.modules["bitsandbytes"] = None  # type: ignore[assignment]  # Python's way to say "not importable"
    _tell_peft()
    _tell_transformers(reason)
    return True


def _tell_peft() -> None:
    from peft import import_utils

    import_utils.is_bnb_available.cache_clear()
    import_utils.is_bnb_4bit_available.cache_clear()


def _tell_transformers(reason: str) -> None:
    from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
    from transformers.quantizers.quantizer_bnb_8bit import Bnb8BitHfQuantizer
    from transformers.utils import import_utils

    import_utils._bitsandbytes_available = False

    def refuse(self: Any, *args: Any, **kwargs: Any) -> None:
        # Its own advice, `pip install -U bitsandbytes`, contradicts xtuner's pin.
        raise PallavaError(
            f"A 4- or 8-bit language model needs bitsandbytes, which cannot be imported here ({reason}). xtuner 0.2.0 "
            "asks for bitsandbytes 0.45.0, which does not work with this torch: remove quantization_config, or install "
            "a newer bitsandbytes over it."
        )

    for quantizer in (Bnb4BitHfQuantizer, Bnb8BitHfQuantizer):
        quantizer.validate_environment = refuse  # type: ignore[method-assign]
