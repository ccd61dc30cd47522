"""The checks before a training: each looks at one matter and yields what it found."""

import importlib.metadata
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.registry import PARAM_SCHEDULERS
from packaging.requirements import Requirement
from torch.utils.data import DataLoader

from pallava.io.stacks import installed_stack
from pallava.model.versions import need_bitsandbytes
from pallava.prompts import check_vocabulary, choose_template
from pallava.training import preflight
from pallava.training.checkpoints import checkpoint_bytes
from pallava.training.dataset import check_connectors
from pallava.training.doctor.case import Case
from pallava.training.steps import check_length

Found = tuple[str, str]
"""Status ("ok", "warn" or "fail"), and what was found; for the last also what to do."""
_NAMED = ("torch", "transformers", "mmengine", "xtuner", "deepspeed", "peft")
_PATHS = {  # by the config's key, the name at its top that a user sets
    "train_dataloader.dataset.data_path": "data_path",
    "train_dataloader.dataset.image_folder": "image_folder",
    "model.visual_encoder.source": "plip_path",
    "model.llm.pretrained_model_name_or_path": "llm_name_or_path",
    "model.pretrained_pth": "pretrained_pth",
    "load_from": "load_from",
    "default_hooks.sample_chat.images": "sample_images",
}
_SHM = Path("/dev/shm")
_FEW_STEPS = 10  # in a whole training: fewer leave each change to chance


def _check_versions(case: Case) -> Iterator[Found]:
    versions = {name: _version(name) for name in ("pallava", *_NAMED)}
    stack = installed_stack(trains=True)
    listed = ", ".join(f"{name} {found}" for name, found in versions.items())
    yield "ok", f"the {stack.name} stack: python {platform.python_version()}, {listed}"
    for requirement in map(Requirement, importlib.metadata.requires("pallava") or ()):
        if requirement.name == "transformers":  # a stack has another one than the default
            continue
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        found = _version(requirement.name)
        if found == "none" or not requirement.specifier.contains(found, prereleases=True):
            yield "fail", f"{requirement} is required, got {found}; run `pip install '{requirement}'`"
    if case.get("model.llm.load_in_4bit"):
        need_bitsandbytes()
        yield "ok", f"bitsandbytes {_version('bitsandbytes')}, for 4 bit"


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _check_cards(case: Case) -> Iterator[Found]:
    preflight.check_cards()
    if not torch.cuda.is_available():
        yield "warn", "no card on this machine; examine the cards on a node that has them"
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        yield "ok", f"card {index}: {card.name}, {card.total_memory / 1e9:.1f} GB, sm_{card.major}{card.minor}"


def _check_launch(case: Case) -> Iterator[Found]:
    config = case.config.to_dict()
    if case.deepspeed is not None:  # what xtuner's trainer makes of a config
        halves = {"bf16": torch.bfloat16, "fp16": torch.float16}
        settings = {**case.deepspeed, **{name: {"enabled": case.dtype == dtype} for name, dtype in halves.items()}}
        config |= {"strategy": {"config": settings}, "optim_wrapper": {"type": "DeepSpeedOptimWrapper"}}
    preflight.check_stage(config)
    preflight.check_precision(config)
    runner = "plain runner" if case.deepspeed is None else f"ZeRO stage {case.zero_stage}"
    yield "ok", f"{runner}, processes: {case.settings.num_processes}"


def _check_config_paths(case: Case) -> Iterator[Found]:
    count = 0
    for key, name in _PATHS.items():
        value = case.get(key) or []
        for path in [value] if isinstance(value, str) else value:
            if _is_name(key, path):
                continue
            count += 1
            if not Path(path).exists():
                yield "fail", f"{key} '{path}' does not exist; correct {name} in the config"
    yield "ok", f"files and folders looked for: {count}"


def _is_name(key: str, path: str) -> bool:
    """Return whether this is a name on the hub or one of timm's, which the check of the parts looks up."""
    is_hub = key.startswith("model.llm.") and path.count("/") <= 1 and not path.startswith((".", "/", "~"))
    return is_hub or path.startswith("timm:")


def _check_parts(case: Case) -> Iterator[Found]:
    yield "ok", f"encoder {type(case.visual_encoder).__name__}"
    language_model = case.language_model
    in_4bit = case.get("model.llm.load_in_4bit", False)
    if getattr(language_model.config, "quantization_config", None) or case.get("model.llm.quantization_config"):
        yield "warn", "the language model's quantization is left out: its memory is that of half precision"
    yield "ok", f"language model {type(language_model).__name__}, in {'4 bit and ' * in_4bit}{case.dtype}"
    check_connectors(case.config.to_dict())
    counts = case.parameters
    frozen = counts.frozen_llm + counts.frozen_others
    yield "ok", f"parameters: {counts.trained / 1e6:.1f} million trained, {frozen / 1e6:.1f} million frozen"


def _check_tokens(case: Case) -> Iterator[Found]:
    template = choose_template(case.get("train_dataloader.dataset.prompt_template"), case.tokenizer)
    yield "ok", f"the tokenizer has the tokens of the prompt template '{template.name}'"
    embeddings = case.model.llm.get_input_embeddings()
    check_vocabulary(case.tokenizer, embeddings.num_embeddings)
    yield "ok", f"{len(case.tokenizer)} tokens for {embeddings.num_embeddings} embeddings"


def _check_batch(case: Case) -> Iterator[Found]:
    loader: DataLoader[Any] = case.loader
    yield "ok", f"rows: {len(loader.dataset)}, batches of a process in an epoch: {case.num_batches}"  # type: ignore
    for name, batch in (("first", case.first_batch), ("longest", case.longest_batch)):
        rows, tokens = batch["data"]["input_ids"].shape
        size = f"{rows} rows x {tokens} text tokens, {len(batch['data']['pixel_values'])} tiles"
        yield "ok", f"the {name} batch: {size}, {_batch_bytes(batch) / 1e6:.1f} MB"


def _check_steps(case: Case) -> Iterator[Found]:
    iterations = case.get("train_cfg.max_iters") or int(case.num_epochs * case.num_batches)
    counts, schedulers = case.get("optim_wrapper.accumulative_counts", 1), case.get("param_scheduler", [])
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    known = {"optimizer": optimizer, "epoch_length": case.num_batches}
    for scheduler in schedulers if isinstance(schedulers, list) else [schedulers]:  # as the trainer builds them
        PARAM_SCHEDULERS.build(scheduler, default_args=known)
    steps = -(-iterations // counts)  # the plain runner makes one of what is left at the end
    if case.deepspeed is not None:
        check_length(iterations, counts)
        steps = iterations // counts
    text = f"{iterations} iterations, {counts} to an optimizer step: {steps} steps"
    if steps < _FEW_STEPS:
        yield "warn", f"{text}; so few learn little: give more rows or epochs, or a lower accumulative_counts"
    else:
        yield "ok", text


def _batch_bytes(batch: Mapping[str, Any]) -> int:
    return sum(value.nbytes for value in batch["data"].values() if isinstance(value, torch.Tensor))


def _check_shared_memory(case: Case) -> Iterator[Found]:
    workers = case.num_workers
    if not workers or not _SHM.exists():
        yield "ok", "batches need no shared memory"
        return
    waiting = workers * (case.get("train_dataloader.prefetch_factor") or 2) * case.settings.processes_per_node
    needed = waiting * max(_batch_bytes(case.first_batch), _batch_bytes(case.longest_batch))
    free = free_bytes(_SHM)
    text = f"{waiting} batches that wait on a node take {needed / 1e9:.2f} GB of {_SHM}, {free / 1e9:.2f} GB are free"
    if needed > free:
        yield "fail", f"{text}; lower dataloader_num_workers, or enlarge it (Docker: --shm-size, or --ipc=host)"
    else:
        yield "ok", text


def _check_disk(case: Case) -> Iterator[Found]:
    hook = case.get("default_hooks.checkpoint", {})
    each = checkpoint_bytes(case.parameters.trained, case.dtype, has_deepspeed=case.deepspeed is not None)
    steps = case.num_epochs * (1 if hook.get("by_epoch", True) else case.num_batches)
    limit = hook.get("max_keep_ckpts", -1)
    saves = max(1, int(steps // max(hook.get("interval", 1), 1)))
    kept = min(saves, limit + 1) if limit > 0 else saves  # the new one is whole before an old one goes
    free = free_bytes(case.work_dir)
    text = f"{kept} checkpoints of {each / 1e9:.2f} GB in '{case.work_dir}', {free / 1e9:.2f} GB are free"
    if kept * each > free:
        yield "fail", f"{text}; lower save_total_limit, raise save_steps, or give another --work-dir"
    else:
        yield "ok", text


def free_bytes(path: Path) -> int:
    """Return the free room of the disk that a path is on, or will be."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


Check = Callable[[Case], Iterator[Found]]
CHECKS: dict[str, Check] = {
    "versions": _check_versions,
    "cards": _check_cards,
    "launch": _check_launch,
    "paths": _check_config_paths,
    "parts": _check_parts,
    "tokens": _check_tokens,
    "first batch": _check_batch,
    "steps": _check_steps,
    "shared memory": _check_shared_memory,
    "disk": _check_disk,
}
"""Checks by their names, in the order of the report."""
