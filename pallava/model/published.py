"""Published weights, which have no config: what they hold is inferred from their keys and shapes.

A checkpoint (``llm.base_model.model....lora_A.default.weight``, ``projector.model....``), the folders ``projector/``
and ``llm_adapter/``, or an archive of either become a network beside a base language model and an encoder.
"""

import contextlib
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pallava.errors import PallavaError
from pallava.io.archives import unpack
from pallava.io.files import read_package_data, temporary_beside
from pallava.model.connectors import CONNECTOR_PREFIXES, ScaleInvariantConnector
from pallava.model.encoders import load_encoder, load_image_processor
from pallava.model.loading import add_lora, load_tokenizer, loading_errors, open_llm
from pallava.model.modeling import PALLaVAForConditionalGeneration
from pallava.model.processor import PALLaVAProcessor
from pallava.model.weights import StateDict, load_strictly, read_json, read_weights, shorten
from pallava.prompts import choose_template

_PROJECTOR, _ADAPTER, _ENCODER = "projector", "llm_adapter", "plip"  # folders of the published layout
_HEADS, _WIDTH, _TEMPLATE = 12, 768, "llama3_chat"  # as published
_LORA = re.compile(r"llm\.base_model\.model\.(?P<module>.+)\.lora_(?P<half>[AB])\.default\.weight")
Log = Callable[[str], None]


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

    Raises:
        PallavaError: A part is not named, cannot be read safely or does not fit.
    """
    with _unpacked(path, out) as source:
        state, recorded = _read(source)
        encoder = visual_encoder or recorded.get("encoder")
        if llm is None or encoder is None:
            raise PallavaError(
                f"no config beside '{path}'; name the one it was trained with by --config, or, for published weights, "
                "which have none, the base language model by --llm and the folder plip by --visual-encoder"
            )
        for line in describe_weights(state):
            log(line)
        rank, targets, _ = _find_lora(state)
        lora = {"r": rank, "target_modules": targets, "task_type": "CAUSAL_LM"}
        if rank:
            reason = "twice the rank, as published; the weights do not record it, change it by --lora-alpha"
            lora["lora_alpha"] = _choose("LoRA alpha", lora_alpha, recorded.get("alpha"), float(2 * rank), log, reason)
        heads = _choose_heads(state, source, connector_heads, recorded.get("heads"), log)
        tokenizer = load_tokenizer(llm)
        template = choose_template(_choose("prompt template", prompt_template, None, _TEMPLATE, log), tokenizer)
        with _unpacked(encoder, out) as opened, loading_errors(opened, "visual encoder"):
            image_processor, visual = load_image_processor(opened), load_encoder(opened)
        connector, adapter, others = _split(state)
        if others:
            raise PallavaError(
                f"'{source}' holds {len(others)} keys that are in no part of PA-LLaVA: {shorten(sorted(others))}; "
                "expected projector... and llm.base_model.model....lora_A.default.weight; name their config by --config"
            )
        opened_connector = ScaleInvariantConnector.from_published(connector, heads, source)
        once = {"low_cpu_mem_usage": True} if merge or not rank else {"device_map": "meta"}  # or not at all
        base = open_llm(llm, torch_dtype=dtype or "auto", **once)
        if adapter:
            base = _add_lora(base, adapter, lora, source)
    network = PALLaVAForConditionalGeneration.from_parts(base, visual, opened_connector).eval()
    return network, PALLaVAProcessor(image_processor, tokenizer, template)


def describe_weights(state: Mapping[str, Tensor]) -> list[str]:
    """Return in lines what a checkpoint holds: every key, LoRA, and whether the connector reads the tiles."""
    connector, in_lora, others = map(set, _split(state))
    left_out = {key for key in connector if key.endswith("embeddings.position_ids")}
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
def _unpacked(given: Any, beside: Path) -> Iterator[Any]:
    """Yield what is given, or the content of an archive, unpacked beside the output and removed afterwards."""
    if not is_archive(Path(given)):
        yield given
        return
    folder = temporary_beside(beside)
    try:
        unpack([Path(given)], folder)
        yield _only_entry(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _only_entry(folder: Path) -> Path:
    """Enter folders that hold one thing, as the published archives do; additions of macOS do not count."""
    inside = [path for path in folder.iterdir() if not path.name.startswith("._") and path.name != "__MACOSX"]
    if len(inside) != 1 or is_published_folder(folder):
        return folder
    return _only_entry(inside[0]) if inside[0].is_dir() else inside[0]


def _read(path: Path) -> tuple[StateDict, dict[str, Any]]:
    """Read a checkpoint, or a folder with ``projector/`` and ``llm_adapter/``; no part may be left unread.

    Returns:
        Weights under the keys of a training checkpoint, and what is recorded beside them: `alpha`, `heads`, `encoder`.
    """
    if not is_published_folder(path):
        return read_weights(path), {}
    if (path / "visual_encoder_adapter").exists():
        raise PallavaError(f"'{path}' holds visual_encoder_adapter, which is not read; merge it into the encoder first")
    state = {
        key if key.startswith(CONNECTOR_PREFIXES) else f"projector.{key}": value
        for key, value in read_weights(path / _PROJECTOR).items()
    }
    recorded: dict[str, Any] = {}
    described = path / _PROJECTOR / "config.json"
    if described.is_file() and (heads := _number(read_json(described), "num_attention_heads", described)):
        recorded["heads"] = int(heads)
    if (path / _ENCODER).is_dir():
        recorded["encoder"] = path / _ENCODER
    if (path / _ADAPTER).is_dir():
        recorded["alpha"] = _read_alpha(path / _ADAPTER / "adapter_config.json")
        state |= {
            "llm." + re.sub(r"\.lora_([AB])\.weight$", r".lora_\1.default.weight", key): value
            for key, value in read_weights(path / _ADAPTER).items()
        }
    return state, recorded


def _split(state: Mapping[str, Tensor]) -> tuple[StateDict, StateDict, StateDict]:
    """Return the weights of the connector, of LoRA, and all others."""
    connector = {key: value for key, value in state.items() if key.startswith(CONNECTOR_PREFIXES)}
    adapter = {key: value for key, value in state.items() if _LORA.fullmatch(key)}
    others = {key: value for key, value in state.items() if key not in connector and key not in adapter}
    return connector, adapter, others


def _choose_heads(state: StateDict, source: Path, given: int | None, recorded: int | None, log: Log) -> int:
    width = next((value.numel() for key, value in state.items() if key.endswith(".norm.weight")), 0)
    if not given and not recorded and width != _WIDTH:
        raise PallavaError(
            f"the connector in '{source}' is {width} wide, the published one {_WIDTH}; give its number of "
            "attention heads, which no weight records, by --connector-heads"
        )
    return _choose("attention heads of the connector", given, recorded, _HEADS, log)


def _choose(name: str, given: Any, recorded: Any, default: Any, log: Log, reason: str = "as published") -> Any:
    """Return the first of three values that is set, and log it with its origin."""
    value = given or recorded or default
    origin = "as given" if given else "as recorded beside the weights" if recorded else reason
    log(f"{name}: {f'{value:g}' if isinstance(value, float) else value} ({origin})")
    return value


def _add_lora(base: Any, adapter: StateDict, lora: dict[str, Any], source: Path) -> Any:
    width = max(base.config.hidden_size, base.config.intermediate_size)
    if not 0 < lora["r"] <= width:  # 0: matrices B without any A
        raise PallavaError(f"'{source}' has LoRA of rank {lora['r']}, but {base.config.name_or_path} is {width} wide")
    try:
        model = add_lora(base, lora)
    except ValueError as error:  # a target that the base has not
        raise PallavaError(f"the LoRA of '{source}' does not fit {base.config.name_or_path}: {error}") from None
    expected = {key: value for key, value in model.state_dict().items() if ".lora_" in key}
    own = {key.removeprefix("llm."): value for key, value in adapter.items()}
    load_strictly(model, own, source=source, expected=expected)
    return model


def _read_alpha(file: Path) -> float:
    """Read LoRA's alpha; refuse what would make another model of the same weights."""
    values = read_json(file)
    kind = values.get("peft_type") if isinstance(values, dict) else None
    if kind != "LORA":
        raise PallavaError(f"'{file}' describes an adapter of type {kind}; only LORA is read")
    wrong = [name for name in read_package_data(__file__)["other_lora"] if values.get(name)]
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
