"""Published weights, which have no config: what they hold is inferred from their keys and shapes.

A checkpoint (``llm.base_model.model....lora_A.default.weight``, ``projector.model....``), the folders ``projector/``
and ``llm_adapter/``, or an archive of either become a network beside a base language model and an encoder.
"""

import contextlib
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import init_empty_weights
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from pallava.errors import PallavaError
from pallava.io.archives import unpack
from pallava.io.files import temporary_beside
from pallava.model.connectors import CONNECTOR_PREFIXES, ScaleInvariantConnector, own_connector_keys
from pallava.model.encoders import load_encoder, load_image_processor
from pallava.model.loading import add_lora, load_tokenizer, loading_errors, open_llm
from pallava.model.modeling import PALLaVAForConditionalGeneration
from pallava.model.processor import PALLaVAProcessor
from pallava.model.weights import StateDict, load_strictly, read_json, read_weights, shorten
from pallava.prompts import get_template

_PROJECTOR, _ADAPTER, _ENCODER = "projector", "llm_adapter", "plip"  # folders of the published layout
_HEADS, _WIDTH, _TEMPLATE = 12, 768, "llama3_chat"  # as published
_LORA = re.compile(r"llm\.base_model\.model\.(?P<module>.+)\.lora_(?P<half>[AB])\.default\.weight")
# What changes the mathematics of an adapter, and is off in the published ones.
_OTHER_LORA = (
    "use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "layers_to_transform", "layer_replication",
    "fan_in_fan_out", "lora_bias", "megatron_config", "target_parameters", "trainable_token_indices",
)  # fmt: skip
Log = Callable[[str], None]


class _Published(NamedTuple):
    state: StateDict  # under the keys of a training checkpoint
    source: Path
    lora_alpha: float | None = None  # as described beside the weights, like what follows
    num_attention_heads: int | None = None
    encoder: Path | None = None


def is_published_folder(path: Path) -> bool:
    """Return whether a folder holds a connector and an adapter in folders of their own."""
    return (path / _PROJECTOR).is_dir()


def is_archive(path: Path) -> bool:
    """Return whether a file is an archive, or is named like one; PyTorch's own zip does not count."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(262)
    return head.startswith(b"\x1f\x8b") or head.endswith(b"ustar") or path.suffix in (".tar", ".tgz", ".gz")


def open_published(
    path: Path,
    out: Path,
    *,
    llm: str | None,
    visual_encoder: str | None,
    merge: bool,
    dtype: torch.dtype | None,
    lora_alpha: float | None,
    connector_heads: int | None,
    prompt_template: str | None,
    log: Log,
) -> tuple[PALLaVAForConditionalGeneration, PALLaVAProcessor]:
    """Open published weights beside a base language model and an encoder; no key may be left over or missing.

    Takes what `pallava.model.convert.convert` takes. Unless `merge` needs them, the base language model's weights stay
    on the meta device and take no memory, which is enough to write a folder with an adapter.
    """
    with _unpacked(path, out) as source:
        weights = _read(source)
        encoder = visual_encoder or weights.encoder
        if llm is None or encoder is None:
            raise PallavaError(
                f"no config beside '{path}'; name the one it was trained with by --config, or, for published weights, "
                "which have none, the base language model by --llm and the folder plip by --visual-encoder"
            )
        for line in describe_weights(weights.state):
            log(line)
        rank, targets, _ = _find_lora(weights.state)
        lora = {"r": rank, "target_modules": targets, "task_type": "CAUSAL_LM"}
        if rank:
            reason = "twice the rank, as published; the weights do not record it, change it by --lora-alpha"
            lora["lora_alpha"] = _choose("LoRA alpha", lora_alpha, weights.lora_alpha, float(2 * rank), log, reason)
        heads = _choose_heads(weights, connector_heads, log)
        with _unpacked(Path(encoder), out) as opened:
            opened_source = str(opened) if opened != Path(encoder) else str(encoder)  # or timm: and its name
            processor = _open_processor(opened_source, llm, prompt_template, log)
            connector, adapter = _split(weights)
            opened_connector = ScaleInvariantConnector.from_published(connector, heads, weights.source)
            if merge or not rank:
                base = open_llm(llm, torch_dtype=dtype or "auto", low_cpu_mem_usage=True)  # once in memory
            else:
                base = _describe_base(llm, dtype)
            if adapter:
                base = _add_lora(base, adapter, lora, weights.source)
            with loading_errors(opened_source, "visual encoder"):
                visual = load_encoder(opened_source)
    return PALLaVAForConditionalGeneration.from_parts(base, visual, opened_connector).eval(), processor


def describe_weights(state: Mapping[str, Tensor]) -> list[str]:
    """Return in lines what a checkpoint holds: every key, LoRA, and whether the connector reads the tiles."""
    connector = {key for key in state if key.startswith(CONNECTOR_PREFIXES)}
    in_lora = {key for key in state if _LORA.fullmatch(key)}
    left_out = {key for key in connector if key.endswith("embeddings.position_ids")}
    others = set(state) - connector - in_lora
    counts = {"of LoRA": in_lora, "of the connector": connector - left_out, "of other parts": others}
    parts = [f"{len(keys)} {name}" for name, keys in counts.items() if keys]
    parts += [f"left out: {key}, a buffer that is never read" for key in sorted(left_out)]
    rank, targets, num_modules = _find_lora(state)
    layers = {match for key in connector for match in re.findall(r"\.layer\.([^.]+)\.", key)}
    reading = {match for key in connector for match in re.findall(r"\.layer\.([^.]+)\.crossattention\.", key)}
    tiles = "cross-attention: none: this model ignores the tiles, and sees the overview of an image alone"
    if reading:
        tiles = f"cross-attention: present in {len(reading)} of {len(layers)} layers: the tiles are read"
    return [
        f"keys: {len(state)}, {', '.join(parts)}",
        f"LoRA: rank {rank} on {num_modules} layers ({', '.join(targets)})" if rank else "LoRA: none",
        tiles if connector else "connector: none",
    ]


def _find_lora(state: Mapping[str, Tensor]) -> tuple[int, list[str], int]:
    """Return LoRA's rank, 0 without LoRA, the names of adapted layers, such as ``q_proj``, and their number."""
    found = {key: match for key in state if (match := _LORA.fullmatch(key))}
    modules = {match["module"] for match in found.values()}
    ranks = (int(state[key].shape[0]) for key, match in found.items() if match["half"] == "A" and state[key].dim())
    return next(ranks, 0), sorted({module.rpartition(".")[2] for module in modules}), len(modules)


@contextlib.contextmanager
def _unpacked(path: Path, beside: Path) -> Iterator[Path]:
    """Yield a path itself, or the content of an archive, unpacked beside the output and removed afterwards."""
    if not is_archive(path):
        yield path
        return
    folder = temporary_beside(beside)
    try:
        unpack([path], folder)
        yield _only_entry(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _only_entry(folder: Path) -> Path:
    """Enter folders that hold one thing, as the published archives do; additions of macOS do not count."""
    inside = [path for path in folder.iterdir() if not path.name.startswith("._") and path.name != "__MACOSX"]
    if len(inside) != 1 or is_published_folder(folder):
        return folder
    return _only_entry(inside[0]) if inside[0].is_dir() else inside[0]


def _read(path: Path) -> _Published:
    """Read a checkpoint, or a folder with ``projector/`` and ``llm_adapter/``; no part may be left unread."""
    if not is_published_folder(path):
        return _Published(read_weights(path), path)
    if (path / "visual_encoder_adapter").exists():
        raise PallavaError(f"'{path}' holds visual_encoder_adapter, which is not read; merge it into the encoder first")
    state = {
        key if key.startswith(CONNECTOR_PREFIXES) else f"projector.{key}": value
        for key, value in read_weights(path / _PROJECTOR).items()
    }
    described = path / _PROJECTOR / "config.json"
    heads = _number(read_json(described), "num_attention_heads", described) if described.is_file() else None
    alpha = None
    if (path / _ADAPTER).is_dir():
        alpha = _read_alpha(path / _ADAPTER / "adapter_config.json")
        state |= {
            "llm." + re.sub(r"\.lora_([AB])\.weight$", r".lora_\1.default.weight", key): value
            for key, value in read_weights(path / _ADAPTER).items()
        }
    encoder = path / _ENCODER
    return _Published(state, path, alpha, int(heads) if heads else None, encoder if encoder.is_dir() else None)


def _split(weights: _Published) -> tuple[StateDict, StateDict]:
    """Return the connector and LoRA under the keys of their modules; no key may be left over."""
    state = weights.state
    connector = {key: value for key, value in state.items() if key.startswith(CONNECTOR_PREFIXES)}
    adapter = {key.removeprefix("llm."): value for key, value in state.items() if _LORA.fullmatch(key)}
    if unknown := sorted(set(state) - {*connector, *(f"llm.{key}" for key in adapter)}):
        raise PallavaError(
            f"'{weights.source}' holds {len(unknown)} keys that are in no part of PA-LLaVA: {shorten(unknown)}; "
            "expected projector... and llm.base_model.model....lora_A.default.weight; name their config by --config"
        )
    return own_connector_keys(connector), adapter


def _choose_heads(weights: _Published, given: int | None, log: Log) -> int:
    width = next((value.numel() for key, value in weights.state.items() if key.endswith(".norm.weight")), 0)
    if not given and not weights.num_attention_heads and width != _WIDTH:
        raise PallavaError(
            f"the connector in '{weights.source}' is {width} wide, the published one {_WIDTH}; give its number of "
            "attention heads, which no weight records, by --connector-heads"
        )
    return _choose("attention heads of the connector", given, weights.num_attention_heads, _HEADS, log)


def _choose(name: str, given: Any, recorded: Any, default: Any, log: Log, reason: str = "as published") -> Any:
    """Return the first of three values that is set, and log it with its origin."""
    value = given or recorded or default
    origin = "as given" if given else "as recorded beside the weights" if recorded else reason
    log(f"{name}: {f'{value:g}' if isinstance(value, float) else value} ({origin})")
    return value


def _open_processor(encoder: str, llm: str, given: str | None, log: Log) -> PALLaVAProcessor:
    tokenizer = load_tokenizer(llm)
    template = get_template(given or _TEMPLATE)
    if template.suffix_as_eos and template.suffix not in tokenizer.get_vocab():
        raise PallavaError(
            f"the tokenizer of '{llm}' does not know {template.suffix}, with which {template.name} ends an answer; "
            "give the template that the weights were trained with by --prompt-template"
        )
    _choose("prompt template", given, None, _TEMPLATE, log)
    with loading_errors(encoder, "visual encoder"):
        image_processor = load_image_processor(encoder)
    return PALLaVAProcessor(image_processor, tokenizer, template)


def _describe_base(llm: str, dtype: torch.dtype | None) -> Any:
    """Build the base language model without its weights."""
    with loading_errors(llm), init_empty_weights(include_buffers=False):
        config = AutoConfig.from_pretrained(llm, trust_remote_code=False)
        dtype = dtype or config.torch_dtype
        model = AutoModelForCausalLM.from_config(config, torch_dtype=dtype, trust_remote_code=False)
    with contextlib.suppress(OSError):  # the base may have none; what its config says stands then
        model.generation_config = GenerationConfig.from_pretrained(llm)
    return model


def _add_lora(base: Any, adapter: StateDict, lora: dict[str, Any], source: Path) -> Any:
    width = max(base.config.hidden_size, base.config.intermediate_size)
    if not 0 < lora["r"] <= width:  # 0: matrices B without any A
        raise PallavaError(f"'{source}' has LoRA of rank {lora['r']}, but {base.config.name_or_path} is {width} wide")
    try:
        model = add_lora(base, lora)
    except ValueError as error:  # a target that the base has not
        raise PallavaError(f"the LoRA of '{source}' does not fit {base.config.name_or_path}: {error}") from None
    expected = {key: value for key, value in model.state_dict().items() if ".lora_" in key}
    load_strictly(model, adapter, source=source, expected=expected)
    return model


def _read_alpha(file: Path) -> float:
    """Read LoRA's alpha; refuse what would make another model of the same weights."""
    values = read_json(file)
    kind = values.get("peft_type") if isinstance(values, dict) else None
    if kind != "LORA":
        raise PallavaError(f"'{file}' describes an adapter of type {kind}; only LORA is read")
    wrong = [name for name in _OTHER_LORA if values.get(name)]
    wrong += ["bias"] if values.get("bias", "none") != "none" else []
    if wrong:
        raise PallavaError(f"'{file}' asks for {', '.join(wrong)}, which published weights of PA-LLaVA do not have")
    alpha, rank = _number(values, "lora_alpha", file), _number(values, "r", file)
    if alpha is None or rank is None:
        raise PallavaError(f"'{file}' must have r and lora_alpha, got {', '.join(values)}")
    return alpha * rank**0.5 if values.get("use_rslora") else alpha  # which scales by the square root of the rank


def _number(values: Any, name: str, file: Path) -> float | None:
    value = values.get(name) if isinstance(values, dict) else None
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e6:
        raise PallavaError(f"'{file}' says {name} = {value!r}: expected a number above 0")
    return value
