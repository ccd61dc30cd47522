"""The language model and its tokenizer as a config names them."""

from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from xtuner.registry import BUILDER

from pallava.devices import device_dtype
from pallava.model.loading import open_llm, open_tokenizer


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
        PallavaError: There is no such model, it cannot be read, or it is not whole.
    """
    dtype = device_dtype() if torch_dtype == "auto" else torch_dtype
    return open_llm(pretrained_model_name_or_path, torch_dtype=dtype, **options)


@BUILDER.register_module()
def load_tokenizer(pretrained_model_name_or_path: str, **options: Any) -> PreTrainedTokenizerBase:
    """Loads the language model's tokenizer; takes what `load_llm` takes.

    Raises:
        PallavaError: There is no such tokenizer, or it cannot be read.
    """
    return open_tokenizer(pretrained_model_name_or_path, **options)
