"""The language model and its tokenizer as a config names them."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from xtuner.registry import BUILDER

from pallava.errors import PallavaError
from pallava.training.optimizer import device_dtype


@BUILDER.register_module()
def load_llm(
    pretrained_model_name_or_path: str, torch_dtype: str | torch.dtype = "auto", **options: Any
) -> PreTrainedModel:
    """Loads a causal language model in the precision that training will use.

    Args:
        pretrained_model_name_or_path: A folder or a name on the Hugging Face hub.
        torch_dtype: "auto" is what the device trains in (bf16, fp16, or float32 on a CPU), whatever the files hold.
        options: Of `AutoModelForCausalLM.from_pretrained`, `gguf_file` and `quantization_config` among them.

    Raises:
        PallavaError: There is no such model, or it cannot be read.
    """
    dtype = device_dtype() if torch_dtype == "auto" else torch_dtype
    return _load(AutoModelForCausalLM, pretrained_model_name_or_path, torch_dtype=dtype, **options)


@BUILDER.register_module()
def load_tokenizer(pretrained_model_name_or_path: str, **options: Any) -> PreTrainedTokenizerBase:
    """Loads the language model's tokenizer; takes what `load_llm` takes.

    Raises:
        PallavaError: There is no such tokenizer, or it cannot be read.
    """
    return _load(AutoTokenizer, pretrained_model_name_or_path, **options)


def _load(loader: Any, source: str, **options: Any) -> Any:
    if _is_local(source) and not Path(source).is_dir():
        raise PallavaError(f"No language model at {source}: the folder does not exist. Set llm_name_or_path.")
    try:
        return loader.from_pretrained(source, **options)
    except (OSError, ValueError) as error:
        if isinstance(error, PallavaError):
            raise
        reason = " ".join(str(error).split())
        raise PallavaError(
            f"The language model {source} could not be loaded: set llm_name_or_path to its folder, or to a name on the "
            f"Hugging Face hub that this machine can reach and may read. ({reason})"
        ) from error


def _is_local(source: str) -> bool:
    """A hub name has at most one slash and no leading dot or slash."""
    return source.startswith((".", "/", "~")) or source.count("/") > 1
