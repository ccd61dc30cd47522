"""LoRA adapters of the language model, through peft."""

import os
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoModelForCausalLM

from pallava.errors import PallavaError
from pallava.model.bitsandbytes import block_broken_bitsandbytes


def is_adapted(llm: nn.Module) -> bool:
    """Whether a language model carries an adapter."""
    return hasattr(llm, "peft_config")


def open_llm(name_or_path: str | os.PathLike[str], **kwargs: Any) -> Any:
    """Opens a causal language model by name or path; code from its folder is not run.

    Raises:
        PallavaError: There is no such model.
    """
    try:
        return AutoModelForCausalLM.from_pretrained(name_or_path, **kwargs)
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise PallavaError(
            f"No language model at {name_or_path}: {reason} Give the path of a Hugging Face folder, or a hub name."
        ) from None


def load_adapter(base_llm: str | None, adapter: Path, **kwargs: Any) -> Any:
    """The base language model with an adapter beside it.

    Raises:
        PallavaError: The base is not named, or not there.
    """
    if not base_llm:
        raise PallavaError(f"{adapter} needs its base language model, and names none: give base_llm=... (its path).")
    block_broken_bitsandbytes()
    from peft import PeftModel  # imports bitsandbytes where it finds it

    return PeftModel.from_pretrained(open_llm(base_llm, **kwargs), str(adapter))
