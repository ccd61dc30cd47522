"""Where packages differ from what training pins: transformers newer than 4.48, and a bitsandbytes that is broken.

Trainings run under transformers 4.48, which xtuner 0.2.0 pins, and 4.57; model folders also open under 5.x. Each
difference is here once with its reason; drop a function when the pin has moved past it:
``tests/smoke/test_newest_transformers.py`` and ``tests/smoke/test_families.py`` fail when one is not needed.
bitsandbytes 0.45.0, which xtuner pins, cannot be imported beside triton 3.3 or newer (torch 2.7), and a folder with an
adapter opens without xtuner, too.
"""

import importlib
import importlib.metadata
import inspect
import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import GenerationConfig, GenerationMixin
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from pallava.errors import PallavaError
from pallava.io.stacks import INSTALL_NEWER, check_version

_VERSION = tuple(int(part) for part in transformers.__version__.split(".")[:2])

NEEDS_CLASS_NAMES = _VERSION < (5, 0)
"""Whether a processor names the class of its image processor: 5.x finds it in the folder, and warns of the name."""

INSTALL_BITSANDBYTES = "pip install --no-deps bitsandbytes==0.50.2"
"""The command for 4 bit; ``constraints/four_bit.txt`` has the same version."""

CACHE_ARGUMENT = "past_key_values"
"""Name of the argument with keys and values, which is shorter from 5.24 on."""
if "cache" in inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters:
    CACHE_ARGUMENT = "cache"

if _VERSION >= (4, 56):  # they read `torch_dtype`, the name that all stacks know, with a warning at every command
    for _name in ("configuration_utils", "modeling_utils"):
        logging.getLogger(f"transformers.{_name}").addFilter(
            lambda record: "`torch_dtype` is deprecated" not in record.getMessage()
        )


def vision_tower(encoder: Any) -> Any:
    """Return what has `embeddings` and `encoder`: 4.x wraps them as `vision_model`, in 5.x it is the model itself."""
    return getattr(encoder, "vision_model", encoder)


def name_tower(build: Callable[[Any], Any], config: Any, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name a vision encoder's weights as this transformers does, whichever wrote them: see `vision_tower`."""
    with torch.device("meta"):  # which draws no random numbers
        prefix = "vision_model." if hasattr(build(config), "vision_model") else ""
    return {prefix + key.removeprefix("vision_model."): value for key, value in state.items()}


def names_to_write(encoder: Any, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name the weights of a model with a vision encoder as 4.x does, which 5.x opens, too: see `vision_tower`."""
    if not re.fullmatch(r"(clip|siglip)_vision_model", encoder.config.model_type) or hasattr(encoder, "vision_model"):
        return dict(state)
    return {re.sub(r"^visual_encoder\.", "visual_encoder.vision_model.", key): value for key, value in state.items()}


def register_by_name(model_class: Any) -> None:
    """Let `transformers serve` find a model: it looks a class up by its name, whatever is registered."""
    # Not the module imported above: in 5.x an import of one of its parts loads the package a second time.
    setattr(importlib.import_module("transformers"), model_class.__name__, model_class)
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[model_class.config_class.model_type] = model_class.__name__


def fill_defaults(config: GenerationConfig) -> None:
    """Fill what a generation config leaves open as 4.x does, in place.

    5.x takes it from the language model's own file instead, by which Llama 3 would sample, and files do not say
    ``do_sample: false``.
    """
    for name, value in getattr(config, "_get_default_generation_params", dict)().items():
        if getattr(config, name, None) is None and name != "max_length":
            setattr(config, name, value)


def own_settings() -> dict[str, Any]:
    """Return options of `generate` that keep it to the generation config that it is given.

    4.57 fills settings that have their default value from the language model's own file, by which Llama 3 would sample.
    """
    return {"use_model_defaults": False} if (4, 50) <= _VERSION < (5, 0) else {}


def decoder_of(llm: Any) -> Any:
    """Return the stack of layers below a language model's output layer; Gemma 3's `base_model` is itself."""
    return llm.get_decoder() if llm.base_model is llm else llm.base_model


def keep_name(key: str) -> Any:
    """Return a key as `_fix_state_dict_key_on_load` does that renames nothing; from 4.49 on with whether it has."""
    return key if _VERSION < (4, 49) else (key, False)


@contextmanager
def embeddings_behind_cache(llm: nn.Module, embeddings: Tensor) -> Iterator[None]:
    """Let `generate` begin with embeddings (B, L', H) of which a cache holds the first positions.

    4.48 takes embeddings for an empty cache alone: it passes on ids, of which there are none.
    """
    if _VERSION >= (4, 57):
        yield
        return

    def pass_embeddings(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if kwargs["input_ids"] is not None and kwargs["input_ids"].shape[1] == 0:
            new = len(kwargs["cache_position"])
            kwargs |= {"input_ids": None, "inputs_embeds": embeddings[:, -new:]}
            if (positions := kwargs.get("position_ids")) is not None:
                kwargs["position_ids"] = positions[:, -new:]
        return args, kwargs

    hook = llm.register_forward_pre_hook(pass_embeddings, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def keys_and_values(cache: Any) -> list[tuple[Tensor, Tensor]]:
    """Return those of each layer of a cache; newer transformers keep them in objects of its layers."""
    if hasattr(cache, "layers"):
        return [(layer.keys, layer.values) for layer in cache.layers]
    return list(zip(cache.key_cache, cache.value_cache, strict=True))


@contextmanager
def keep_attention(config: Any) -> Iterator[None]:
    """Keep each part's kind of attention while the whole, or its configuration, is built.

    4.48 sets that of all parts to the whole's default, eager attention, which keeps all scores. 4.57 sets it to None,
    with which no model computes.
    """
    parts = [getattr(config, name) for name in config.sub_configs]
    kinds = [getattr(part, "_attn_implementation_internal", None) for part in parts]
    yield
    for part, kind in zip(parts, kinds, strict=True):
        if kind is not None:
            part._attn_implementation_internal = kind


def choose_attention(config: Any) -> Any:
    """Return a part's configuration with the kind of attention left to the part, which is about to be built.

    4.57 gives all parts the one that the user asked for, which is the language model's, and refuses it where an encoder
    or a connector does not have it.
    """
    config._attn_implementation_internal = None
    return config


@dataclass(frozen=True)
class TextPart:
    """The language model inside a model of transformers that sees images by itself."""

    renames: dict[str, str]  # of its weights, as patterns
    others: tuple[str, ...]  # beginnings of the other weights' names


# In 4.x a prefix that the text part names as its base, `language_model.`, goes by itself.
TEXT_PARTS = {
    "gemma3": TextPart(
        {r"^model\.language_model\.": "model."}
        if _VERSION < (5, 0)
        else {r"^language_model\.model\.": "model.", r"^model\.language_model\.": "model."},
        ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector."),
    )
}
"""Those that are known, by the `model_type` of the whole; MedGemma is a Gemma 3."""


def advise(error: Exception) -> str | None:
    """Return what to do about an error of transformers that a newer one would not raise."""
    is_newer = "does not recognize this architecture" in str(error)
    return f"run `{INSTALL_NEWER}`" if is_newer and _VERSION < (4, 57) else None


_ROPE_TYPES = ("default", "linear", "dynamic", "llama3")  # that 4.x reads from `rope_scaling` alone


def _is_plain(rope: Mapping[str, Any]) -> bool:
    return rope.get("rope_type", "default") == "default" and rope.keys() <= {"rope_type", "rope_theta"}


def read_rope(config: Any) -> None:
    """Give a configuration that transformers 5 wrote the rotary embedding's settings by the names of 4.x, in place.

    5.x writes them as `rope_parameters`, which 4.x keeps without reading it: every position would turn by the angle of
    its default `rope_theta`.

    Raises:
        PallavaError: They are of a form that 4.x has no names for, or reads elsewhere: yarn, longrope, GPT-NeoX's.
    """
    found = getattr(config, "rope_parameters", None)
    if _VERSION >= (5, 0) or not found:
        return
    kinds = {"full_attention": found} if "rope_theta" in found else dict(found)
    full, sliding = kinds.pop("full_attention", None), kinds.pop("sliding_attention", None)
    can_slide = sliding is None or (hasattr(config, "rope_local_base_freq") and _is_plain(sliding))
    can_read = bool(full) and full.get("rope_type", "default") in _ROPE_TYPES and "rope_theta" in full
    can_read &= hasattr(config, "rope_theta") and not hasattr(config, "rotary_pct")
    if kinds or not can_read or not can_slide or any(isinstance(value, dict) for value in full.values()):
        raise PallavaError(
            f"rope_parameters of a {config.model_type} cannot be read by transformers {transformers.__version__}, got "
            f"{str(found)[:150]}; use the transformers that wrote them"
        )
    rest = {key: value for key, value in full.items() if key not in ("rope_theta", "partial_rotary_factor")}
    config.rope_theta = full["rope_theta"]
    config.rope_scaling = None if rest.get("rope_type", "default") == "default" else rest
    if "partial_rotary_factor" in full:
        config.partial_rotary_factor = full["partial_rotary_factor"]
    if sliding is not None:
        config.rope_local_base_freq = sliding["rope_theta"]
    del config.rope_parameters


def keep_attention_cap(llm: Any) -> bool:
    """Use eager attention where a language model caps its scores (Gemma 2), and return whether sdpa was to be used.

    transformers 4.48 leaves the cap out in sdpa, its default, without a word; newer ones (5.24) refuse sdpa for it.
    """
    config = llm.config
    if not getattr(config, "attn_logit_softcapping", None) or config._attn_implementation != "sdpa":
        return False
    config._attn_implementation = "eager"
    logging.getLogger(__name__).warning(
        "%s caps the scores of its attention, which sdpa leaves out: eager attention is used", type(llm).__name__
    )
    return True


def block_broken_bitsandbytes() -> bool:
    """Hide a bitsandbytes that is installed but broken from peft and transformers; return whether it was hidden.

    They check whether the package exists, not whether it works, so that LoRA on an ordinary model fails. Must run
    before the first LoRA is built.
    """
    return bool(_fault_of_bitsandbytes())


@cache
def _fault_of_bitsandbytes() -> str:
    """Return why bitsandbytes cannot be imported, after hiding it, or else nothing."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns at every command on a CPU
    try:
        importlib.import_module("bitsandbytes")
    except Exception as error:  # it fails in many ways: ImportError, RuntimeError, OSError of a shared library
        reason = f"{type(error).__name__}: {error}"
    else:
        return ""
    for name in [name for name in sys.modules if name.split(".")[0] == "bitsandbytes"]:
        del sys.modules[name]  # half loaded
    sys.modules["bitsandbytes"] = None  # type: ignore[assignment]  # Python's way to say "not importable"
    _hide(reason)
    return reason


def need_bitsandbytes() -> None:
    """Check that language models can be quantized, and let transformers do it.

    Raises:
        PallavaError: bitsandbytes cannot be imported, or is too old.
    """
    if reason := _fault_of_bitsandbytes():
        raise _needs_bitsandbytes(f"which cannot be imported ({reason})")
    found = importlib.metadata.version("bitsandbytes")
    if tuple(map(int, re.findall(r"\d+", found)[:2])) < (0, 50):
        raise _needs_bitsandbytes(f"in version 0.50 or newer, got {found}")
    if _VERSION < (4, 49):
        integration = importlib.import_module("transformers.integrations.bitsandbytes")
        # 4.48 demands Intel's extension of torch on a CPU, and fails where that is missing: it removes a member of a
        # frozenset. This bitsandbytes needs no extension.
        integration._validate_bnb_multi_backend_availability = lambda raise_exception: True  # type: ignore[attr-defined]


def _needs_bitsandbytes(reason: str) -> PallavaError:
    return PallavaError(
        f"a 4- or 8-bit language model needs bitsandbytes, {reason}: xtuner 0.2.0 pins 0.45.0, which does not work "
        f"with this torch; run `{INSTALL_BITSANDBYTES}`, or leave the quantization out"
    )


def _hide(reason: str) -> None:
    from peft import import_utils as peft_imports
    from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
    from transformers.quantizers.quantizer_bnb_8bit import Bnb8BitHfQuantizer
    from transformers.utils import import_utils

    peft_imports.is_bnb_available.cache_clear()
    peft_imports.is_bnb_4bit_available.cache_clear()
    import_utils._bitsandbytes_available = False

    def refuse(self: Any, *args: Any, **kwargs: Any) -> None:
        # Its own advice, `pip install -U bitsandbytes`, contradicts xtuner's pin.
        raise _needs_bitsandbytes(f"which cannot be imported ({reason})")

    for quantizer in (Bnb4BitHfQuantizer, Bnb8BitHfQuantizer):
        quantizer.validate_environment = refuse  # type: ignore[method-assign]


check_version(_VERSION)
