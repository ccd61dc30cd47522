"""From a training checkpoint or published weights to the one folder that opens with transformers and pallava alone.

One file, if a long one, because what a run's config may name and what needs consent are judged where the parts are
built. Training writes that config into the work directory as JSON; it is written, found, read and described here, too.
"""

import copy
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor

from pallava.errors import PallavaError, check_paths
from pallava.four_bit import find_settings, round_weights
from pallava.io.files import read_package_data, report_os_errors, whole_folder, write_json
from pallava.model import (
    PALLaVAConfig,
    PALLaVAForConditionalGeneration,
    PALLaVAProcessor,
    load_encoder,
    load_image_processor,
    load_plip,
    loading,
    published,
)
from pallava.model.card import write_model_card
from pallava.model.connectors import CONNECTORS, build_connector, import_name, import_path, own_checkpoint_keys
from pallava.model.published import describe_weights, is_archive, is_published_folder, open_published
from pallava.model.versions import need_bitsandbytes
from pallava.model.weights import compare_keys, list_keys, load_strictly, read_json, read_weights
from pallava.prompts import check_vocabulary

CONFIG_FILE = "training_config.json"
_NAME = "config_file"  # key of the name of the Python file that the config was
_DUMPED = re.compile(r"^model = dict\(.*^train_dataloader = dict\(", re.MULTILINE | re.DOTALL)
_MOST_CHARACTERS = 1 << 20  # of a config
_COMPUTING = ("torch_dtype", "quantization_config", "load_in_4bit", "load_in_8bit", "attn_implementation")
_OUR_PACKAGES = ("pallava", "peft", "transformers")


def convert(
    checkpoint: str | Path,
    out: str | Path,
    *,
    config: str | Path | Mapping[str, Any] | None = None,
    llm: str | None = None,
    visual_encoder: str | None = None,
    merge: bool = False,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
    lora_alpha: float | None = None,
    connector_heads: int | None = None,
    prompt_template: str | None = None,
    max_shard_size: str = "2GB",
    trust_remote_code: bool = False,
    log: Callable[[str], None] = lambda line: None,
) -> Path:
    """Write a model folder from a checkpoint of a run, or from published weights.

    Args:
        checkpoint: A ``.pth`` file, a DeepSpeed folder, a file inside one, or a run's work directory (its newest); for
            published weights also a folder with ``projector/`` and ``llm_adapter/``, or an archive of any of them.
        out: The folder to write.
        config: The run's config: a ``training_config.json``, or its values (default: the one beside the checkpoint).
            Published weights have none.
        llm: Base language model (default: the config's).
        visual_encoder: Visual encoder (default: the config's, or ``plip/`` beside published weights).
        merge: Whether to merge LoRA into the language model instead of keeping it as an adapter beside it.
        dtype: Type of the weights written (default: as the parts have).
        overwrite: Whether to replace an existing model folder.
        lora_alpha: Alpha of LoRA, without a config (default: twice the rank, as published).
        connector_heads: Attention heads of the connector, without a config (default: 12, as published).
        prompt_template: Name of the prompt template, or "tokenizer", without a config (default: ``llama3_chat``, as
            published).
        max_shard_size: Size of each file of weights.
        trust_remote_code: Whether to import and run what the config names and does not come with pallava, such as a
            connector of your own.
        log: Receives what was found, line by line.

    Returns:
        The folder.

    Raises:
        PallavaError: A part cannot be found or read safely, the weights do not fit, or the folder is not empty.
    """
    check_paths(checkpoint, out)
    checkpoint, out = Path(checkpoint), Path(out)
    check_out(out, overwrite=overwrite)
    if not checkpoint.exists():
        raise PallavaError(f"no weights at '{checkpoint}': the path does not exist; give a checkpoint file or folder")
    if out.resolve() in (checkpoint.resolve(), *checkpoint.resolve().parents) and any(out.iterdir()):
        raise PallavaError(
            f"'{out}' holds the checkpoint '{checkpoint}', and replacing it would delete it; choose another folder"
        )
    is_published = is_archive(checkpoint) or is_published_folder(checkpoint)
    values = None if is_published else _open_config(checkpoint, config)
    unrecorded: dict[str, Any] = {
        "lora_alpha": lora_alpha, "connector_heads": connector_heads, "prompt_template": prompt_template
    }  # fmt: skip
    writing: dict[str, Any] = {"merge": merge, "dtype": dtype, "max_shard_size": max_shard_size}
    if values is None:
        network, processor = open_published(
            checkpoint, out, llm=llm, visual_encoder=visual_encoder, merge=merge, dtype=dtype, log=log, **unrecorded
        )
        network.config.encoder_source = visual_encoder
        _write(network, processor, out, read_package_data(published.__file__)["training"], **writing)
        return out
    if any(unrecorded.values()):
        raise PallavaError(
            "--lora-alpha, --connector-heads and --prompt-template are for weights without a config, and one was given "
            "or is beside the checkpoint; leave them out, or move the weights away from it"
        )
    _set_parts(values, llm, visual_encoder)
    state = read_weights(checkpoint)
    for line in describe_weights(state):
        log(line)
    convert_run(values, state, out, source=checkpoint, trust_remote_code=trust_remote_code, **writing)
    return out


def check_out(out: str | Path, *, overwrite: bool) -> None:
    """Refuse to write a model folder over something else, or, unless `overwrite`, over another one."""
    out = Path(out)
    if out.resolve() == Path.cwd():
        raise PallavaError("the working directory cannot be replaced by a model folder; name a folder in it")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / "config.json").is_file():
        raise PallavaError(f"'{out}' exists and is not a model folder; nothing was written, choose another folder")
    if not overwrite:
        raise PallavaError(f"'{out}' exists; choose another folder, or add --overwrite to replace it")


def convert_run(
    values: Mapping[str, Any],
    state: Mapping[str, Tensor],
    out: str | Path,
    *,
    merge: bool,
    source: object,
    dtype: torch.dtype | None = None,
    trust_remote_code: bool = False,
    **save_kwargs: Any,
) -> None:
    """Build the trained model from its config and weights, and write it with its processor; parameters of `convert`.

    `values` is the run's config as `training_config` returns it, `state` has our keys or the published ones, `source`
    is the origin of the weights for messages, and `save_kwargs` are `save_pretrained`'s.

    Raises:
        PallavaError: The config names parts that are not known, or the weights do not fit the config's model.
    """
    _check_training_config(values, source)
    dataset = values["train_dataloader"]["dataset"]
    network = _build_network(values["model"], merge=merge, trust_remote_code=trust_remote_code)
    tokenizer = _build(dataset, "tokenizer", trust_remote_code)
    loading.check_reopenable_part(tokenizer, "tokenizer")
    image_processor = _build(dataset, "image_processor", trust_remote_code)
    processor = PALLaVAProcessor(image_processor, tokenizer, dataset.get("prompt_template"))
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    expected = {key: value for key, value in network.state_dict().items() if key in trained}
    if dtype == torch.float32:  # before weights are rounded to the type of the base's files
        network = network.to(dtype)
    own = own_checkpoint_keys(state, network.config.connector_config, source)
    load_strictly(network, own, source=source, expected=expected)
    network.config.encoder_source = values["model"]["visual_encoder"].get("source")
    _write(network, processor, Path(out), describe_run(values), merge=merge, dtype=dtype, **save_kwargs)


def _build_network(
    model: Mapping[str, Any], *, merge: bool, trust_remote_code: bool = False
) -> PALLaVAForConditionalGeneration:
    """Build the network that a config describes; its parameters require gradients where the run trains them.

    A run in 4 bit trained its adapter, or its connector, beside rounded weights: where the language model is to be
    written, it gets these. Otherwise the folder says how its base is quantized.
    """
    if str(model.get("type")).rpartition(".")[2] != "PALLaVAModel":
        raise PallavaError(f"the config's model.type must be PALLaVAModel, got {model.get('type')!r}")
    llm = _build(model, "llm", trust_remote_code)
    loading.check_reopenable_part(llm, "language model")
    quantization = find_settings(model["llm"])
    if quantization and (merge or not model.get("llm_lora")):
        need_bitsandbytes()
        round_weights(llm, quantization)
        quantization = None
    encoder = _build(model, "visual_encoder", trust_remote_code)
    connector = _build_connector(model, encoder, llm, trust_remote_code)
    llm.requires_grad_(not model.get("freeze_llm", True))
    encoder.requires_grad_(not model.get("freeze_visual_encoder", True))
    if model.get("llm_lora"):
        lora = _build(model, "llm_lora", trust_remote_code)
        with _building("llm_lora"):
            llm = loading.add_lora(llm, lora)
    layer = model.get("vision_feature_layer", -2)
    network = PALLaVAForConditionalGeneration.from_parts(llm, encoder, connector, vision_feature_layer=layer)
    network.config.base_quantization = quantization
    return network.eval()


def _build_connector(model: Mapping[str, Any], encoder: Any, llm: Any, trust_remote_code: bool) -> Any:
    part = dict(model.get("connector") or {})
    name = str(part.pop("type", build_connector.__name__))
    if not _is_ours(name, build_connector.__name__):
        part["kind"] = name
    known = {*CONNECTORS, *map(import_path, CONNECTORS.values())}
    if not trust_remote_code and part.get("kind", next(iter(CONNECTORS))) not in known:
        raise _untrusted(part["kind"])
    with _building("connector"):
        return build_connector(encoder.config.hidden_size, llm.config.hidden_size, **part)


def _open_base(pretrained_model_name_or_path: str, **options: Any) -> Any:
    """Open the base language model as its files have it, however a training computed with it."""
    options = {name: value for name, value in options.items() if name not in _COMPUTING}
    return loading.open_llm(pretrained_model_name_or_path, torch_dtype="auto", low_cpu_mem_usage=True, **options)


# Parts by the end of the name that a config gives them; none of them is imported by that name.
_PARTS: Mapping[str, Callable[..., Any]] = {
    "load_llm": _open_base,
    "load_tokenizer": loading.load_tokenizer,
    "load_encoder": load_encoder,
    "load_plip": load_plip,
    "load_image_processor": load_image_processor,
    "LoraConfig": dict,  # which `add_lora` takes
    "AutoModelForCausalLM.from_pretrained": _open_base,
    "AutoTokenizer.from_pretrained": loading.load_tokenizer,
}


def _build(parts: Mapping[str, Any], key: str, trust_remote_code: bool) -> Any:
    """Build a part of a config: one of ours, or with the user's consent any other."""
    part = parts.get(key)
    if not isinstance(part, Mapping) or not isinstance(part.get("type"), str):
        raise PallavaError(f"the config's {key} must be an object with a type, got {str(part)[:100]}")
    if not trust_remote_code and (option := _find_code(part)):
        raise _untrusted(option)
    build = next((build for name, build in _PARTS.items() if _is_ours(part["type"], name)), None)
    if build is None and not trust_remote_code:
        raise _untrusted(part["type"])
    build = build or import_name(part["type"])
    with _building(key):
        return build(**{name: value for name, value in part.items() if name != "type"})


@contextmanager
def _building(key: str) -> Iterator[None]:
    """Turn what options that do not exist or fit raise in a part's construction into one sentence."""
    try:
        yield
    except PallavaError:
        raise
    except (TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise PallavaError(f"a part of the config cannot be built: {key}: {reason}") from error


def _is_ours(name: str, end: str) -> bool:
    return name == end or (name.endswith(f".{end}") and name.partition(".")[0] in _OUR_PACKAGES)


def _find_code(value: Any) -> str | None:
    """Find an option by which transformers or peft execute code: of a repository, a pickle, or a module of Megatron."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            runs_code = key == "trust_remote_code" or str(key).startswith("megatron_")
            if (runs_code and inner) or (key == "weights_only" and inner is not True):
                return f"{key}={inner!r}"[:100]
    inside = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    return next(filter(None, map(_find_code, inside)), None)


def _untrusted(name: str) -> PallavaError:
    return PallavaError(
        f"the config of the checkpoint names {name}, which does not come with pallava; if you trust it, allow its "
        "import by --trust-remote-code (trust_remote_code=True); if the weights have another origin, move them away "
        "from the config, and give --llm and --visual-encoder"
    )


def _open_config(checkpoint: Path, config: str | Path | Mapping[str, Any] | None) -> dict[str, Any] | None:
    if config is None:
        return find_training_config(checkpoint)
    if isinstance(config, Mapping):
        _check_training_config(config, "config")
        return copy.deepcopy(dict(config))
    if Path(config).suffix == ".py":
        raise PallavaError(f"'{config}' is a program; `pallava convert --config` executes it if it exists")
    return _read_training_config(Path(config))


def _set_parts(values: dict[str, Any], llm: str | None, visual_encoder: str | None) -> None:
    model, dataset = values["model"], values["train_dataloader"]["dataset"]
    for value, key, parts in (
        (llm, "pretrained_model_name_or_path", (model.get("llm"), dataset.get("tokenizer"))),
        (visual_encoder, "source", (model.get("visual_encoder"), dataset.get("image_processor"))),
    ):
        for part in parts:
            if value is not None and isinstance(part, dict):
                part[key] = value


def _write(
    network: PALLaVAForConditionalGeneration,
    processor: PALLaVAProcessor,
    out: Path,
    training: Mapping[str, Any],
    *,
    merge: bool,
    dtype: torch.dtype | None,
    **save_kwargs: Any,
) -> None:
    """Merge, cast and write, each in place: the language model is never twice in memory."""
    check_vocabulary(processor.tokenizer, network.llm.get_input_embeddings().num_embeddings)
    if merge and loading.is_adapted(network.llm):
        network.llm = loading.merge_lora(network.llm)
        network.config.base_llm = None
    if dtype is not None:
        network = network.to(dtype)
    network.use_end_tokens(processor.end_token_ids)
    processor.reads_tiles = network.config.connector_config.reads_tiles
    out = out.resolve()
    with report_os_errors(f"cannot write '{out}'"), whole_folder(out, replace=True) as folder:
        network.save_pretrained(folder, **save_kwargs)
        processor.save_pretrained(folder)
        write_model_card(folder, title=out.name, training=training)
        _check_opens(folder, network)
        for path in folder.rglob("*.safetensors"):  # newer safetensors let nobody else read them
            path.chmod((folder / "config.json").stat().st_mode)


def _check_opens(folder: Path, network: PALLaVAForConditionalGeneration) -> None:
    """Refuse a folder that would not open as this network; weights are compared by name and shape, and not read."""
    try:
        config = PALLaVAConfig.from_pretrained(folder)
        PALLaVAProcessor.from_pretrained(folder)
        llm = None
        if loading.is_adapted(network.llm):
            llm = loading.load_adapter(config.base_llm, folder / loading.ADAPTER_FOLDER, device_map="meta")
        with init_empty_weights(include_buffers=False):
            opened = PALLaVAForConditionalGeneration(config, llm)
        reason = list_keys(compare_keys(network.state_dict(), opened.state_dict()))
    except Exception as error:  # transformers and peft stumble over anything
        reason = " ".join(str(error).split()).replace(f"{folder}/", "")[:180] or type(error).__name__
    if reason:
        raise PallavaError(f"the folder would not open ({reason}); nothing was written, give other parts, or --merge")


def _to_json(values: Any) -> Any:
    """Turn a loaded config into plain JSON values; classes and functions become their import path."""
    if isinstance(values, Mapping):
        return {str(key): _to_json(value) for key, value in values.items()}
    if isinstance(values, (list, tuple, set, frozenset)):
        return [_to_json(value) for value in values]
    if values is None or isinstance(values, (bool, int, float, str)):
        return values
    if isinstance(values, torch.dtype):
        return str(values).removeprefix("torch.")  # transformers looks the name up in torch
    owner = getattr(values, "__self__", None)  # of `AutoTokenizer.from_pretrained` the class that it was taken from
    if isinstance(owner, type):
        return f"{owner.__module__}.{owner.__qualname__}.{values.__name__}"
    name = getattr(values, "__qualname__", None)
    return f"{values.__module__}.{name}" if name else str(values)


def training_config(values: Mapping[str, Any], config_file: str | Path | None = None) -> dict[str, Any]:
    """Turn a run's loaded config into the JSON that `pallava convert` reads, with the name of the file it came from."""
    return {**_to_json(values), _NAME: Path(config_file).name if config_file else None}


def write_training_config(
    work_dir: str | Path, values: Mapping[str, Any], config_file: str | Path | None = None
) -> None:
    """Write what `training_config` returns into a run's work directory."""
    write_json(Path(work_dir) / CONFIG_FILE, training_config(values, config_file))


def _read_training_config(path: Path) -> dict[str, Any]:
    values = read_json(path)
    _check_training_config(values, path)
    return values


def _check_training_config(values: Any, source: object) -> None:
    """Refuse a config without the parts that a model folder is made from."""
    found = values if isinstance(values, Mapping) else {}
    loader = found.get("train_dataloader")
    dataset = loader.get("dataset") if isinstance(loader, Mapping) else None
    for name, part in (("train_dataloader.dataset", dataset), ("model", found.get("model"))):
        if not isinstance(part, Mapping):
            raise PallavaError(f"'{source}' is not the config of a training: {name} must be an object, got {part!r}")
    if not isinstance(found.get(_NAME), (str, type(None))):
        raise PallavaError(f"'{source}' is not the config of a training: {_NAME} must be text, got {found[_NAME]!r}")


def find_training_config(checkpoint: Path) -> dict[str, Any] | None:
    """Read the config beside a checkpoint, a file inside one, or in a work directory; None without any.

    One of several is refused, and so is one in Python alone, which is a program.
    """
    for folder in (checkpoint, checkpoint.parent, checkpoint.parent.parent):
        file, programs = folder / CONFIG_FILE, {path.name for path in folder.glob("*.py") if _is_config(path)}
        if not file.is_file() and programs:
            raise PallavaError(
                f"'{folder}' has a config in Python ({', '.join(sorted(programs))}) but no {CONFIG_FILE}; if you trust "
                "it, name it by --config FILE, which executes it; if it is not the weights' own, move them away from it"
            )
        if file.is_file():
            values = _read_training_config(file)
            if values.get(_NAME) and programs - {values[_NAME]}:
                names = ", ".join(sorted({*programs, values[_NAME]}))
                raise PallavaError(f"'{folder}' holds several configs ({names}); name the checkpoint's own by --config")
            return values
    return None


def _is_config(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return bool(_DUMPED.search(file.read(_MOST_CHARACTERS)))
    except OSError:
        return False


def describe_run(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's data and settings for the model card; what its config does not have is left out."""
    model, loader = values["model"], values["train_dataloader"]
    dataset, loop = loader["dataset"], values.get("train_cfg") or {}
    started_from = model.get("pretrained_pth")
    settings = {
        "config": values.get(_NAME),
        "started from": Path(started_from).name if started_from else None,
        "epochs": loop.get("max_epochs"),
        "steps": loop.get("max_iters"),
        "batch size of a process": loader.get("batch_size"),
        "learning rate": ((values.get("optim_wrapper") or {}).get("optimizer") or {}).get("lr"),
        "LoRA rank": (model.get("llm_lora") or {}).get("r"),
        "prompt template": dataset.get("prompt_template"),
        "context length": dataset.get("context_length"),
    }
    data = [dataset["data_path"]] if dataset.get("data_path") else []
    return {"data": data, **{name: value for name, value in settings.items() if value is not None}}
