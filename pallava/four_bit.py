"""Language models in 4 bit, as QLoRA trains on them (https://arxiv.org/abs/2305.14314), through bitsandbytes."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pallava.errors import PallavaError

if TYPE_CHECKING:
    import torch
    from torch import nn

SETTINGS = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
"""How `load_llm` quantizes: values of the normal distribution, and the scale of each block quantized, too."""
_DEFAULTS = {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": False}  # transformers'
_BLOCK, _SCALES = 64, 256  # weights that share a scale, and scales that share one

BYTES_PER_WEIGHT = 0.5 + 1 / _BLOCK + 4 / (_BLOCK * _SCALES)
"""Memory of a weight under `SETTINGS`: 4 bit, and its share of the scales."""


def find_settings(llm: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return how a config's `model.llm` quantizes to 4 bit, as `BitsAndBytesConfig` names it; None if it does not.

    Raises:
        PallavaError: Some layers are left out, which a model folder could not repeat.
    """
    given = llm.get("quantization_config") or llm
    if not given.get("load_in_4bit"):
        return None
    if given.get("llm_int8_skip_modules"):
        raise PallavaError("4 bit must be of all linear layers but the output; leave llm_int8_skip_modules out")
    kind = llm.get("type")
    is_ours = given is llm and str(getattr(kind, "__name__", kind)).rpartition(".")[2] == "load_llm"
    defaults = SETTINGS if is_ours else _DEFAULTS
    return {name: given.get(name, value) for name, value in defaults.items()}


def check_settings(settings: Any) -> None:
    """Refuse what a model folder says of its base's quantization if it is not as `find_settings` returns it.

    Raises:
        PallavaError: It is not.
    """
    is_known = isinstance(settings, Mapping) and settings.keys() == SETTINGS.keys() and settings["load_in_4bit"] is True
    if not is_known or settings["bnb_4bit_quant_type"] not in ("nf4", "fp4"):
        raise PallavaError(
            f"base_quantization in config.json must have {', '.join(SETTINGS)}, in 4 bit of nf4 or fp4, got "
            f"{str(settings)[:150]}; convert the run again"
        )


def quantization_config(settings: Mapping[str, Any], dtype: "torch.dtype", skip: list[str] | None = None) -> Any:
    """Return the settings in transformers' form, computing in `dtype`.

    `skip` names the modules that stay as they are; by default the output layer alone.
    """
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(**settings, bnb_4bit_compute_dtype=dtype, llm_int8_skip_modules=skip)


def linear_layers(llm: "nn.Module") -> "dict[str, nn.Module]":
    """Return the layers of a language model that 4 bit quantizes: all linear ones but the output."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    output = llm.get_output_embeddings()  # type: ignore[operator]
    layers = {name: each for name, each in llm.named_modules() if isinstance(each, (nn.Linear, Conv1D))}
    return {name: each for name, each in layers.items() if each is not output}


def mark_in_4bit(llm: "nn.Module") -> None:
    """Mark the weights of a language model without memory that 4 bit would quantize, by `is_4bit`."""
    for layer in linear_layers(llm).values():
        layer.weight.is_4bit = True  # type: ignore[union-attr]


def round_weights(llm: "nn.Module", settings: Mapping[str, Any]) -> None:
    """Give a language model the weights that it has in 4 bit, in place and in its own type.

    LoRA that was trained on the former must be added to these, and not to the weights of its files.
    """
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit
    from torch import nn

    how = {
        "quant_type": settings["bnb_4bit_quant_type"],
        "compress_statistics": settings["bnb_4bit_use_double_quant"],
    }
    for layer in linear_layers(llm).values():
        is_linear = isinstance(layer, nn.Linear)  # transformers turns the weights of a Conv1D, as GPT-2 has
        weight: Any = layer.weight.data
        rounded = dequantize_4bit(*quantize_4bit((weight if is_linear else weight.T).contiguous(), **how))
        layer.weight.data = rounded if is_linear else rounded.T.contiguous()
