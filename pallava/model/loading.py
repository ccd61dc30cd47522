"""Open a model folder, a language model with or without an adapter, and a tokenizer, without running their code."""

import copy
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel

from pallava.devices import device_dtype
from pallava.errors import PallavaError, check_paths
from pallava.four_bit import SETTINGS, mark_in_4bit, quantization_config
from pallava.model.versions import (
    TEXT_PARTS,
    advise,
    block_broken_bitsandbytes,
    keep_attention_cap,
    need_bitsandbytes,
    read_rope,
)
from pallava.model.weights import check_finite, list_keys, read_json, read_weights, shorten

ADAPTER_FOLDER = "adapter"
"""Folder inside a model folder that holds the language model's LoRA."""

_HUB_OPTIONS = ("revision", "cache_dir", "token", "local_files_only", "force_download")
_LLM_OPTIONS = ("device_map", "max_memory", "offload_folder", "quantization_config", "attn_implementation")
_MAX_REASON = 300  # characters
_MAX_NEW_TOKENS = 256


class Placeholder(nn.Module):
    """Keeps the place of a language model that is opened apart."""

    def tie_weights(self) -> None:
        """Tie nothing."""


def find_folder(folder: str | os.PathLike[str], options: dict[str, Any]) -> Path:
    """Return the model folder itself, or the local copy of a repository (``owner/name``) on the Hugging Face hub.

    The hub's options are removed from `options`.

    Raises:
        PallavaError: The folder does not exist, or is not a model folder.
    """
    check_paths(folder)
    path, hub = Path(folder), {key: options.pop(key) for key in _HUB_OPTIONS if key in options}
    if not path.exists() and str(folder).count("/") == 1 and not str(folder).startswith((".", "/", "~")):
        from huggingface_hub import snapshot_download

        try:
            path = Path(snapshot_download(str(folder), **hub))
        except (OSError, ValueError) as error:  # it does not exist, or has a name that the hub could not have
            reason = _reason(error)
            raise PallavaError(
                f"'{folder}' is neither a folder here nor found on the Hugging Face hub: {reason}"
            ) from None
    if not (path / "config.json").is_file():
        raise PallavaError(f"'{path}' is not a model folder: its config.json is missing; `pallava convert` writes one")
    if not isinstance(found := read_json(path / "config.json"), dict) or found.get("model_type") != "pallava":
        found = f"model_type {found.get('model_type')!r}" if isinstance(found, dict) else str(found)[:100]
        raise PallavaError(f"'{path / 'config.json'}' must be a PA-LLaVA's, got {found}; `pallava convert` writes one")
    return path


def open_whole(opener: Any, path: Path, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Open a folder strictly and from safetensors alone by `opener`, transformers' own `from_pretrained`.

    Raises:
        PallavaError: Weights cannot be read, or one is missing, unexpected, reshaped or not finite.
    """
    options = {"use_safetensors": True, "ignore_mismatched_sizes": True, **options}
    with_info = options.pop("output_loading_info", False)
    try:
        model, info = opener(path, *args, output_loading_info=True, **options)
    except (OSError, SafetensorError) as error:
        raise PallavaError(f"weights in '{path}' cannot be read ({_reason(error)}); copy or convert it again") from None
    _check_complete(info, f"'{path}'")
    check_finite(model.state_dict(), path)
    return (model, info) if with_info else model


def open_beside_llm(
    opener: Any,
    path: Path,
    args: tuple[Any, ...],
    options: dict[str, Any],
    base_llm: str | None,
    load_in_4bit: bool = False,
) -> Any:
    """Open encoder and connector from a folder as `open_whole` does, and its adapter beside the base language model.

    Options of placement and quantization go to the language model; `base_llm` is by default the one the folder names.
    It is in 4 bit where the adapter was trained on that, or by `load_in_4bit`.

    Raises:
        PallavaError: As in `open_whole`, or the base language model cannot be opened.
    """
    config = options.pop("config")
    llm_options = {key: options.pop(key) for key in _LLM_OPTIONS if options.get(key) is not None}
    base = base_llm or config.base_llm
    if base and (load_in_4bit or config.base_quantization):
        check_not_quantized(base, {})
    if settings := config.base_quantization or (SETTINGS if load_in_4bit else None):
        llm_options.setdefault("quantization_config", in_4bit(settings, options["torch_dtype"]))
    llm = load_adapter(base, path / ADAPTER_FOLDER, torch_dtype=options["torch_dtype"], **llm_options)
    own = copy.deepcopy(config)
    # "auto" means the type that the folder's weights are stored in, and not what the config says of the whole.
    setattr(own, "dtype" if hasattr(own, "dtype") else "torch_dtype", None)
    opened = open_whole(opener, path, (Placeholder(), *args), {**options, "config": own})
    model = opened[0] if isinstance(opened, tuple) else opened
    model.to(llm.device).llm = llm
    if not (path / "generation_config.json").is_file():
        model.generation_config = greedy(llm)
    return opened


def check_not_in_4bit(path: Path, config: Any) -> None:
    """Refuse to quantize the language model of a folder that is quantized already."""
    if config.base_quantization or getattr(config.text_config, "quantization_config", None):
        raise PallavaError(f"the language model of '{path}' is quantized already; leave --load-in-4bit out")


def whole_in_4bit(config: Any, dtype: Any) -> Any:
    """Return the `quantization_config` by which the language model of a whole network, and no more, is in 4 bit."""
    with init_empty_weights():
        llm = AutoModelForCausalLM.from_config(config.text_config)
    output = next(name for name, each in llm.named_modules() if each is llm.get_output_embeddings())
    return in_4bit(SETTINGS, dtype, skip=["visual_encoder", "connector", f"llm.{output}"])


def is_adapted(llm: nn.Module) -> bool:
    """Return whether a language model carries an adapter."""
    return hasattr(llm, "peft_config")


def add_lora(llm: nn.Module, config: Any) -> Any:
    """Add LoRA to a language model, to every linear layer but the output's without `target_modules`."""
    block_broken_bitsandbytes()
    from peft import LoraConfig, get_peft_model  # imports bitsandbytes where it finds it

    config = LoraConfig(**config) if isinstance(config, Mapping) else config
    if config.target_modules is None:
        config.target_modules = "all-linear"  # peft leaves the output layer out
    return get_peft_model(llm, config)  # type: ignore[arg-type]


def merge_lora(llm: Any) -> Any:
    """Merge LoRA into its language model, in place, as peft does: summed in float32, kept in the model's type."""
    layers = llm.get_input_embeddings(), llm.get_output_embeddings()
    inside, outside = (getattr(layer, "base_layer", layer) for layer in layers)
    if inside.weight is outside.weight and layers != (inside, outside):  # or LoRA on one would change both
        outside.weight = nn.Parameter(outside.weight.detach().clone())
        llm.config.tie_word_embeddings = False
    return llm.merge_and_unload()


def for_answering(model: Any, *, keep_types: bool) -> Any:
    """Merge an adapter into its language model, bring all parts to that one's type, and turn to evaluation mode.

    In place. An adapter to a quantized or an offloaded language model stays beside it, for its weights could not hold
    the sum.
    """
    llm = model.llm
    is_whole = not getattr(llm, "is_quantized", False) and not any(weight.is_meta for weight in llm.parameters())
    if is_adapted(llm) and is_whole:
        model.llm = merge_lora(llm)
    for part in () if keep_types else (model.visual_encoder, model.connector):
        part.to(model.llm.dtype)
    return model.eval()


def load_adapter(base_llm: str | None, adapter: Path, **options: Any) -> Any:
    """Open the base language model, with options as in `open_llm`, and its LoRA adapter, through peft.

    Raises:
        PallavaError: The base is not named or cannot be opened, or the adapter does not fit it.
    """
    if not base_llm:
        raise PallavaError(f"adapter '{adapter}' does not name its base language model; give base_llm=... (its path)")
    state = read_weights(adapter)
    check_finite(state, adapter)
    if read_json(adapter / "adapter_config.json").get("megatron_config"):  # peft would import a module that it names
        raise PallavaError(f"adapter '{adapter}' must not ask for Megatron")
    block_broken_bitsandbytes()
    from peft import PeftModel, get_peft_model_state_dict  # imports bitsandbytes where it finds it

    llm = open_llm(base_llm, **options)
    try:
        model = PeftModel.from_pretrained(llm, str(adapter), low_cpu_mem_usage=llm.device.type == "meta")
    except Exception as error:  # a broken description makes peft stumble over anything
        raise PallavaError(f"adapter '{adapter}' does not fit '{base_llm}': {_reason(error)}") from None
    expected = get_peft_model_state_dict(model, save_embedding_layers=False)
    if missing := sorted(expected.keys() - state.keys()):  # peft itself leaves them as they were drawn
        raise PallavaError(f"adapter '{adapter}' lacks {len(missing)} weights: {shorten(missing)}")
    is_auto = options.get("torch_dtype") == "auto"  # peft reads LoRA into float32, whatever its file holds
    for name, parameter in model.named_parameters():
        if (stored := state.get(name.replace(".default.", "."))) is not None:
            parameter.data = parameter.data.to(stored.dtype if is_auto else llm.dtype)
    return model


def open_llm(name_or_path: str | os.PathLike[str], **options: Any) -> Any:
    """Open a causal language model without a missing, unexpected, reshaped or broken weight.

    transformers alone would draw missing weights at random, and leave out the cap of Gemma 2's attention. The options
    are those of `from_pretrained`; code from the folder runs only with `trust_remote_code`. Of a model that sees images
    by itself (Gemma 3, MedGemma) the text part is opened.

    Raises:
        PallavaError: The model does not exist, cannot be read, or is incomplete.
    """
    options = {"trust_remote_code": False, **options}
    with loading_errors(name_or_path):
        options, others = _with_config(name_or_path, options)
        model, report = AutoModelForCausalLM.from_pretrained(name_or_path, output_loading_info=True, **options)
    report = {**report, "unexpected_keys": [key for key in report["unexpected_keys"] if not key.startswith(others)]}
    # A missing key can stay on the meta device, where transformers takes it for one that is tied to another. On the
    # meta device by intent are weights that accelerate offloads, and those of a model that is built without memory.
    weights = model.state_dict()
    is_intended = "device_map" in options or all(parameter.is_meta for parameter in model.parameters())
    on_meta = set() if is_intended else {key for key, value in weights.items() if value.is_meta}
    _check_complete(report, f"language model '{name_or_path}'", on_meta)
    check_finite(weights, name_or_path)
    keep_attention_cap(model)
    return model


def _with_config(name: str | os.PathLike[str], options: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Add the configuration to options of `from_pretrained` that would read another, and list keys not to be read."""
    if options.get("gguf_file"):
        return options, ()
    apart: dict[str, Any] = {
        key: options[key] for key in ("torch_dtype", "dtype", "quantization_config") if key in options
    }
    rest = {key: value for key, value in options.items() if key not in apart}
    whole, rest = AutoConfig.from_pretrained(name, return_unused_kwargs=True, **rest)
    config = _text_config(whole, name)
    is_part, has_rope = config is not whole, hasattr(config, "rope_parameters")
    read_rope(config)
    if not is_part and (not has_rope or hasattr(config, "rope_parameters")):
        return options, ()
    hub = {key: options[key] for key in (*_HUB_OPTIONS, "trust_remote_code") if key in options}
    options = {**rest, **hub, **apart, "config": config}
    if not is_part:
        return options, ()
    part = TEXT_PARTS[whole.model_type]
    return {**options, "key_mapping": part.renames}, part.others


def _text_config(config: Any, name: str | os.PathLike[str]) -> Any:
    """Return the configuration of a language model, or of its text part where it sees images by itself."""
    if config.model_type not in TEXT_PARTS:
        return config
    text = "'%s' is a %s, which sees images by itself: its text part is used as the language model"
    logging.getLogger(__name__).warning(text, name, config.model_type)
    return config.get_text_config()


def load_llm(
    pretrained_model_name_or_path: str,
    torch_dtype: str | torch.dtype | None = "auto",
    load_in_4bit: bool = False,
    **options: Any,
) -> PreTrainedModel:
    """Load the language model that a config names, as `open_llm` does, in the precision of training.

    `torch_dtype` "auto" is that of this device (bf16, fp16, or float32 on a CPU), whatever the files hold, None
    that of transformers. With `load_in_4bit`, its linear layers are quantized as in QLoRA, and compute in that type.

    Raises:
        PallavaError: As in `open_llm`; or bitsandbytes is missing, or the files are quantized already.
    """
    if isinstance(torch_dtype, str):
        name = torch_dtype.removeprefix("torch.")
        torch_dtype = device_dtype() if name == "auto" else getattr(torch, name, None) or name
    if load_in_4bit:
        check_not_quantized(pretrained_model_name_or_path, options)
        options["quantization_config"] = in_4bit(SETTINGS, torch_dtype)
    return open_llm(pretrained_model_name_or_path, torch_dtype=torch_dtype, **options)


def in_4bit(settings: Mapping[str, Any], dtype: Any, skip: list[str] | None = None) -> Any:
    """Return transformers' `quantization_config` for settings of `pallava.four_bit`, once bitsandbytes can be used.

    The layers compute in `dtype`; in the type of a training on this device where that is "auto" or None.
    """
    need_bitsandbytes()
    return quantization_config(settings, dtype if isinstance(dtype, torch.dtype) else device_dtype(), skip)


def check_not_quantized(name: str | os.PathLike[str], options: Mapping[str, Any]) -> None:
    """Refuse to quantize a language model whose files are quantized."""
    hub = {key: options[key] for key in _HUB_OPTIONS if key in options}
    with loading_errors(name):
        config = AutoConfig.from_pretrained(name, **hub)
    if getattr(config, "quantization_config", None):
        raise PallavaError(
            f"language model '{name}' is quantized already; give the one that is not, or leave 4 bit out"
        )


def outline_llm(pretrained_model_name_or_path: str, torch_dtype: torch.dtype, **options: Any) -> PreTrainedModel:
    """Build a language model without its weights, on the meta device; takes what `load_llm` takes.

    Nothing is downloaded, and no code from the folder is run.

    Raises:
        PallavaError: The model is not on this machine, or its folder lacks files of weights.
    """
    name = pretrained_model_name_or_path
    kept = {key: options[key] for key in (*_HUB_OPTIONS, "gguf_file") if key in options} | {"local_files_only": True}
    chosen = {key: options[key] for key in ("attn_implementation",) if options.get(key)}
    with loading_errors(name, downloads_nothing=True):
        config = _text_config(AutoConfig.from_pretrained(name, **kept), name)
        read_rope(config)
        with init_empty_weights():
            model = AutoModelForCausalLM.from_config(config, torch_dtype=torch_dtype, **chosen)
    if options.get("load_in_4bit"):
        mark_in_4bit(model)
    model.config._name_or_path = str(name)
    if Path(name).is_dir() and "gguf_file" not in options:
        _check_files(Path(name))
    return model


def _check_files(folder: Path) -> None:
    """Refuse a folder whose download was not finished."""
    wanted = {"model.safetensors"} if not any(folder.glob("*.bin")) else set[str]()
    for index in folder.glob("*.index.json"):
        wanted = set(map(str, read_json(index).get("weight_map", {}).values()))
    if missing := sorted(name for name in wanted if not (folder / name).is_file()):
        raise PallavaError(
            f"language model '{folder}' lacks {len(missing)} of its {len(wanted)} files of weights "
            f"({shorten(missing)}); download it again"
        )


def check_reopenable_part(part: Any, name: str) -> None:
    """Refuse a language model or tokenizer with code of its own, which no model folder could open again."""
    kind = type(part.get_base_model() if is_adapted(part) else part)
    if not kind.__module__.startswith("transformers."):
        raise PallavaError(
            f"the {name} must be of a class that comes with transformers, or no model folder could open it, got "
            f"{kind.__qualname__} of its own code; give one that opens without trust_remote_code"
        )


def load_tokenizer(pretrained_model_name_or_path: str | os.PathLike[str], **options: Any) -> Any:
    """Load a language model's tokenizer; arguments as in `open_llm`.

    Raises:
        PallavaError: The tokenizer does not exist, or cannot be read.
    """
    with loading_errors(
        pretrained_model_name_or_path, "tokenizer", downloads_nothing=options.get("local_files_only", False)
    ):
        return AutoTokenizer.from_pretrained(pretrained_model_name_or_path, **{"trust_remote_code": False, **options})


@contextmanager
def loading_errors(
    source: str | os.PathLike[str], part: str = "language model", *, downloads_nothing: bool = False
) -> Iterator[None]:
    """Turn whatever transformers raises on a missing or broken part of the model into one sentence."""
    advice = "give the path of a Hugging Face folder, or a name on the hub that this machine can reach and may read"
    name = str(source)  # on the hub, it has at most one slash and no leading dot or slash
    is_local = name.startswith((".", "/", "~")) or (name.count("/") > 1 and ":" not in name)
    if is_local and not Path(source).exists():
        raise PallavaError(f"{part} '{source}' does not exist; {advice}")
    try:
        yield
    except PallavaError:
        raise
    except Exception as error:  # a broken folder makes transformers stumble over anything
        if downloads_nothing and isinstance(error, OSError) and not Path(source).exists():
            raise PallavaError(f"{part} '{source}' is not on this machine; download it, or give its folder") from None
        raise PallavaError(f"{part} '{source}' cannot be opened: {_reason(error)}; {advise(error) or advice}") from None


def greedy(llm: Any) -> GenerationConfig:
    """Return a generation config with the language model's end and padding tokens, and nothing of its sampling."""
    own = getattr(llm, "generation_config", None) or getattr(llm, "config", None) or GenerationConfig()
    eos, pad = own.eos_token_id, own.pad_token_id
    if pad is None:
        pad = eos[0] if isinstance(eos, list) else eos
    return GenerationConfig(
        bos_token_id=own.bos_token_id,
        eos_token_id=eos,
        pad_token_id=pad,
        max_new_tokens=_MAX_NEW_TOKENS,
        do_sample=False,
        use_cache=True,
    )


def _check_complete(report: Mapping[str, Any], source: str, on_meta: set[str] = frozenset()) -> None:  # type: ignore[assignment]
    found = {
        "missing": sorted({*report["missing_keys"], *on_meta}),
        "unexpected": sorted(report["unexpected_keys"]),
        "reshaped": sorted(key if isinstance(key, str) else key[0] for key in report["mismatched_keys"]),
    }
    if wrong := list_keys(found):
        raise PallavaError(
            f"the weights of {source} are not those of its config.json: {wrong}; copy or convert it again"
        )


def _reason(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:_MAX_REASON]
