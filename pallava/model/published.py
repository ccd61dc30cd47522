"""Published weights without the config they were trained with: what they hold, read off their keys and shapes.

A checkpoint (``llm.base_model.model....lora_A.default.weight``, ``projector.model....``) or the folders ``projector/``
and ``llm_adapter/`` become a network beside a base language model and an encoder.
"""

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from pallava.errors import PallavaError
from pallava.model.connectors import CONNECTOR_PREFIXES, ScaleInvariantConnector, own_connector_keys
from pallava.model.encoders import load_encoder
from pallava.model.loading import loading_errors, open_llm
from pallava.model.modeling import PALLaVAForConditionalGeneration
from pallava.model.versions import block_broken_bitsandbytes
from pallava.model.weights import StateDict, load_strictly, read_json, read_weights, shorten

PROJECTOR_FOLDER, ADAPTER_FOLDER, ENCODER_FOLDER = "projector", "llm_adapter", "plip"
PUBLISHED_HEADS, PUBLISHED_WIDTH = 12, 768
PUBLISHED_ALPHA = 2  # times the rank

_LORA = re.compile(r"llm\.base_model\.model\.(?P<module>.+)\.lora_(?P<half>[AB])\.default\.weight")
# What changes the mathematics of an adapter, and is off in the published ones.
_OTHER_LORA = (
    "use_dora",
    "rank_pattern",
    "alpha_pattern",
    "modules_to_save",
    "layers_to_transform",
    "layer_replication",
    "fan_in_fan_out",
    "lora_bias",
    "megatron_config",
    "target_parameters",
    "trainable_token_indices",
)


@dataclass(frozen=True)
class Lora:
    """A LoRA adapter as its keys and shapes show it.

    Attributes:
        rank: Of its first matrix.
        targets: Names of the linear layers that have one, such as ``q_proj``.
        num_modules: How many of them.
    """

    rank: int
    targets: tuple[str, ...]
    num_modules: int


@dataclass(frozen=True)
class PublishedWeights:
    """Trained weights, and what is known of them beside their shapes.

    Attributes:
        state: Under the keys of a training checkpoint.
        source: Where they come from, for messages.
        lora_alpha: As an ``adapter_config.json`` says; no shape tells it.
        num_attention_heads: Of the connector, as its ``config.json`` says; no shape tells them.
        encoder: An encoder's folder beside the weights.
    """

    state: StateDict
    source: Path
    lora_alpha: float | None = None
    num_attention_heads: int | None = None
    encoder: Path | None = None


def is_published_folder(path: Path) -> bool:
    """Whether a folder holds a connector and an adapter in folders of their own."""
    return (path / PROJECTOR_FOLDER).is_dir()


def read_published(path: Path) -> PublishedWeights:
    """Reads a checkpoint, or a folder with ``projector/`` and ``llm_adapter/``.

    Raises:
        PallavaError: It cannot be read safely, or holds a part that would be left unread.
    """
    if not is_published_folder(path):
        return PublishedWeights(read_weights(path), path)
    if (path / "visual_encoder_adapter").exists():
        raise PallavaError(f"{path} holds visual_encoder_adapter, which is not read: merge it into the encoder first.")
    state = {
        key if key.startswith(CONNECTOR_PREFIXES) else f"projector.{key}": value
        for key, value in read_weights(path / PROJECTOR_FOLDER).items()
    }
    described = path / PROJECTOR_FOLDER / "config.json"
    heads = _number(read_json(described), "num_attention_heads", described) if described.is_file() else None
    alpha = None
    if (path / ADAPTER_FOLDER).is_dir():
        alpha = _read_alpha(path / ADAPTER_FOLDER / "adapter_config.json")
        state |= {
            "llm." + re.sub(r"\.lora_([AB])\.weight$", r".lora_\1.default.weight", key): value
            for key, value in read_weights(path / ADAPTER_FOLDER).items()
        }
    encoder = path / ENCODER_FOLDER
    return PublishedWeights(state, path, alpha, int(heads) if heads else None, encoder if encoder.is_dir() else None)


def find_lora(state: Mapping[str, Tensor]) -> Lora | None:
    """Reads rank and targets off a checkpoint's keys; None where it has no LoRA."""
    found = {key: match for key in state if (match := _LORA.fullmatch(key))}
    ranks = [int(state[key].shape[0]) for key, match in found.items() if match["half"] == "A" and state[key].dim()]
    if not ranks:
        return None
    modules = {match["module"] for match in found.values()}
    return Lora(ranks[0], tuple(sorted({module.rpartition(".")[2] for module in modules})), len(modules))


def describe_weights(state: Mapping[str, Tensor]) -> list[str]:
    """Says in lines what a checkpoint holds: every key, LoRA, and whether the connector reads the tiles."""
    connector = {key for key in state if key.startswith(CONNECTOR_PREFIXES)}
    of_lora = {key for key in state if _LORA.fullmatch(key)}
    left_out = {key for key in connector if key.endswith("embeddings.position_ids")}
    counts = {"of LoRA": of_lora, "of the connector": connector - left_out, "of other parts": set(state) - connector}
    counts["of other parts"] -= of_lora
    parts = [f"{len(keys)} {name}" for name, keys in counts.items() if keys]
    parts += [f"left out: {key}, a buffer that is never read" for key in sorted(left_out)]
    lora = find_lora(state)
    lines = [f"keys: {len(state)}, {', '.join(parts)}"]
    lines.append(
        f"LoRA: rank {lora.rank} on {lora.num_modules} layers ({', '.join(lora.targets)})" if lora else "LoRA: none"
    )
    return [*lines, _describe_cross_attention(connector)]


def _describe_cross_attention(connector: set[str]) -> str:
    if not connector:
        return "connector: none"
    layers = {key.split(".layer.")[1].split(".")[0] for key in connector if ".layer." in key}
    reading = {key.split(".layer.")[1].split(".")[0] for key in connector if ".crossattention." in key}
    if not reading:
        return "cross-attention: none: this model ignores the tiles, and sees the overview of an image alone"
    return f"cross-attention: present in {len(reading)} of {len(layers)} layers: the tiles are read"


def build_published(
    weights: PublishedWeights,
    llm: str,
    encoder: str | Path,
    *,
    lora_alpha: float,
    num_attention_heads: int,
    dtype: torch.dtype | None = None,
    with_base: bool = False,
) -> PALLaVAForConditionalGeneration:
    """Puts published weights beside a base language model and an encoder; no key may be left over or missing.

    Args:
        weights: The connector and, if there is any, LoRA.
        llm: Folder or hub name of the base language model.
        encoder: Source of the encoder, as for `load_encoder`.
        lora_alpha: LoRA's scale times its rank.
        num_attention_heads: Of the connector.
        dtype: Of the base language model; default: as it is stored.
        with_base: Whether its weights are read. Without, they stay on the meta device and take no memory: enough to
            write a folder with an adapter.

    Raises:
        PallavaError: The weights do not fit, are not finite, or a part cannot be opened.
    """
    state, source = weights.state, weights.source
    connector = {key: value for key, value in state.items() if key.startswith(CONNECTOR_PREFIXES)}
    adapter = {key.removeprefix("llm."): value for key, value in state.items() if _LORA.fullmatch(key)}
    known = {*connector, *(f"llm.{key}" for key in adapter)}
    if unknown := sorted(set(state) - known):
        raise PallavaError(
            f"{source} holds {len(unknown)} keys that are of no part of PA-LLaVA: {shorten(unknown)}. Expected "
            "projector... and llm.base_model.model....lora_A.default.weight; give --config if a config describes them."
        )
    opened = ScaleInvariantConnector.from_published(own_connector_keys(connector), num_attention_heads, source)
    if with_base:
        base = open_llm(llm, torch_dtype=dtype or "auto", low_cpu_mem_usage=True)  # once in memory
    else:
        base = _describe_base(llm, dtype)
    if adapter:
        lora = find_lora(state)
        base = _add_lora(base, adapter, lora, lora_alpha, source)
    with loading_errors(encoder, "visual encoder"):
        visual_encoder = load_encoder(encoder)
    return PALLaVAForConditionalGeneration.from_parts(base, visual_encoder, opened).eval()


def _describe_base(llm: str, dtype: torch.dtype | None) -> Any:
    """The base language model without its weights."""
    with loading_errors(llm), init_empty_weights(include_buffers=False):
        config = AutoConfig.from_pretrained(llm, trust_remote_code=False)
        model = AutoModelForCausalLM.from_config(
            config, torch_dtype=dtype or config.torch_dtype, trust_remote_code=False
        )
    with contextlib.suppress(OSError):  # the base may have none; what its config says stands then
        model.generation_config = GenerationConfig.from_pretrained(llm)
    return model


def _add_lora(base: Any, adapter: StateDict, lora: Lora | None, alpha: float, source: Path) -> Any:
    if lora is None:
        raise PallavaError(f"{source} holds LoRA's matrices B without any A: {shorten(sorted(adapter))}.")
    width = max(base.config.hidden_size, base.config.intermediate_size)
    if not 0 < lora.rank <= width:
        raise PallavaError(f"{source} has LoRA of rank {lora.rank}, but {base.config.name_or_path} is {width} wide.")
    block_broken_bitsandbytes()
    from peft import LoraConfig, get_peft_model  # imports bitsandbytes where it finds it

    config = LoraConfig(r=lora.rank, lora_alpha=alpha, target_modules=list(lora.targets), task_type="CAUSAL_LM")  # type: ignore[arg-type]
    try:
        model = get_peft_model(base, config)
    except ValueError as error:  # a target that the base has not
        raise PallavaError(f"LoRA of {source} does not fit {base.config.name_or_path}: {error}") from None
    expected = {key: value for key, value in model.state_dict().items() if ".lora_" in key}
    load_strictly(model, adapter, source=source, expected=expected)
    return model


def _read_alpha(file: Path) -> float:
    """LoRA's alpha; refuses what would make another model of the same weights."""
    if not file.is_file():
        raise PallavaError(f"No {file.name} in {file.parent}: an adapter needs it.")
    values = read_json(file)
    kind = values.get("peft_type") if isinstance(values, dict) else None
    if kind != "LORA":
        raise PallavaError(f"{file} describes an adapter of type {kind}; only LORA is read.")
    wrong = [name for name in _OTHER_LORA if values.get(name)]
    wrong += ["bias"] if values.get("bias", "none") != "none" else []
    if wrong:
        raise PallavaError(f"{file} asks for {', '.join(wrong)}, which published weights of PA-LLaVA do not have.")
    alpha, rank = _number(values, "lora_alpha", file), _number(values, "r", file)
    if alpha is None or rank is None:
        raise PallavaError(f"{file} does not tell r and lora_alpha.")
    return alpha * rank**0.5 if values.get("use_rslora") else alpha  # which scales by the square root of the rank


def _number(values: Any, name: str, file: Path) -> float | None:
    value = values.get(name) if isinstance(values, dict) else None
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e6:
        raise PallavaError(f"{file} says {name} = {value!r}: expected a number above 0.")
    return value
