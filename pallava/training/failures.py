"""Mistakes of a user under ``xtuner train``: refused where they would have no effect, and reported in one sentence."""

import functools
import inspect
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.runner import FlexibleRunner, Runner

from pallava.config_files import DEEPSPEED_SETTINGS
from pallava.errors import PallavaError, without_worker
from pallava.io.files import read_package_data
from pallava.training import preflight
from pallava.training.checkpoints import is_whole, newest_whole, read_meta
from pallava.training.compat import AUTO

# What the runner and xtuner's trainer read of a config; other names at its top only help to write it.
_READ = {*inspect.signature(Runner.__init__).parameters} - {"self", "cfg"}
_READ |= {"strategy", "runner_type", "framework", "sequence_parallel_size", "use_varlen_attn", "compile"}
_KNOWN: dict[str, str] = read_package_data(__file__)  # by words of an error, what a user did wrong


def print_sentences() -> None:
    """Make Python print a user's mistake as ``error: ...``; exit code 1 and other errors stay as they were."""
    before = sys.excepthook

    def print_sentence(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if message := user_message(error, trace):
            sys.stderr.write(f"error: {message}\n")
        else:
            before(kind, error, trace)

    sys.excepthook = print_sentence


def user_message(error: BaseException, trace: TracebackType | None = None) -> str | None:
    """Return what a user did wrong, or None for an error that is not known to be a user's.

    A part that a config describes wrongly fails in the call that builds it, and no deeper in the traceback `trace`.
    """
    if isinstance(error, PallavaError):
        return str(error)
    if isinstance(error, KeyboardInterrupt):
        return "interrupted outside of the training's steps; the checkpoints that were written before stay"
    if isinstance(error, FileNotFoundError):
        words = without_worker(str(error))
        is_name = words.startswith("Cannot find ")  # xtuner's, of --deepspeed
        return f"{words}; {f'give {DEEPSPEED_SETTINGS}' if is_name else 'correct the path'}"
    calls = [frame.name for frame in traceback.extract_tb(trace)]
    if isinstance(error, (TypeError, KeyError)) and calls[-1:] == ["build_from_cfg"]:
        return f"a part of the config cannot be built: {error.args[0]}; correct its type or its settings"
    if isinstance(error, (TypeError, KeyError, IndexError)) and calls[-1:] == ["get_seed_from_checkpoint"]:
        *_, (frame, _) = traceback.walk_tb(trace)
        path = frame.f_locals["pth_model"]
        return f"'{path}' is not a checkpoint of a training; resume from one, or load it by model.pretrained_pth"
    return next((message for words, message in _KNOWN.items() if words in str(error)), None)


def refuse_other_launches() -> None:
    """Make mmengine refuse a checkpoint that this launch cannot load, before it builds the model."""
    for runner in (Runner, FlexibleRunner):
        runner.from_cfg = classmethod(functools.partial(_check_and_build, runner.from_cfg.__func__))  # type: ignore


def _check_and_build(build: Any, runner: Any, config: Config) -> Any:
    preflight.check(config)
    resume_newest(config)
    check_launch(config)
    return build(runner, config)


def resume_newest(config: Config) -> None:
    """Replace ``--resume auto`` by the newest whole checkpoint of the work directory; without any, begin anew.

    Its seed becomes the run's: the order of the data depends on it.
    """
    if isinstance(config.get("resume"), str) and config.resume != AUTO:  # a path, which mmengine takes there, too
        config.load_from, config.resume = config.resume, True
    if not config.get("resume") or config.get("load_from") not in (AUTO, None):
        return
    newest = newest_whole(Path(config.work_dir))
    config.load_from = None if newest is None else str(newest)
    config.resume = newest is not None
    if newest is None:
        print_log(f"no whole checkpoint in '{config.work_dir}': the training begins", "current")
        return
    print_log(f"resuming from '{newest}'", "current")
    config.randomness = {**config.get("randomness", {}), "seed": read_meta(newest)["seed"]}


def check_launch(config: Mapping[str, Any]) -> None:
    """Check that the checkpoint to resume or to load was written by a launch like this one.

    Raises:
        PallavaError: DeepSpeed wrote it, or did not, or another number of processes, or with batches of another size.
    """
    path = Path(config.get("load_from") or "")
    if path == Path() or not path.exists():  # not a local one, or reported as missing
        return
    has_deepspeed = "DeepSpeed" in str((config.get("optim_wrapper") or {}).get("type"))
    is_theirs = path.name.endswith("_states.pt") or any(path.glob("*_states.pt"))
    advice = "or start from its weights by model.pretrained_pth"
    if is_theirs and not has_deepspeed:
        raise PallavaError(f"'{path}' must be resumed with --deepspeed, which wrote it; add that, {advice}")
    if has_deepspeed and not (is_theirs and path.is_dir()):
        raise PallavaError(f"'{path}' is not a folder that --deepspeed wrote; give one, leave that out, {advice}")
    if config.get("resume"):
        _check_whole(path)
        _check_batches(path, config, advice)


def _check_whole(path: Path) -> None:
    if not is_whole(path):
        raise PallavaError(
            f"'{path}' is not a whole checkpoint: files are missing or cut; copy it again, or resume from the newest "
            "whole one by --resume auto"
        )


def _check_batches(path: Path, config: Mapping[str, Any], advice: str) -> None:
    """Refuse another number of batches, or of rows in them, in an optimizer step: their order would not continue."""
    wrote = {"processes": len([*path.glob("*_optim_states.pt")]), **read_meta(path).get("launch", {})}
    strategy, wrapper = config.get("strategy") or {}, config.get("optim_wrapper") or {}
    counts = strategy.get("gradient_accumulation_steps", wrapper.get("accumulative_counts", 1))
    here = {
        "processes": num_processes(config.get("launcher")),
        "batch_size": (config.get("train_dataloader") or {}).get("batch_size", 0),
        "accumulative_counts": counts,
    }
    for name, value in here.items():
        if value is not None and wrote.get(name) not in (None, 0, value):
            raise PallavaError(
                f"'{path}' must be resumed with {name}={wrote[name]}, on which its place in the data depends, got "
                f"{value}; set it alike{' (NPROC_PER_NODE)' * (name == 'processes')}, {advice}"
            )


def num_processes(launcher: str | None) -> int | None:
    """Return the number of processes by the variables of a launcher; None if only a running group knows it."""
    name = {"slurm": "SLURM_NTASKS", "mpi": "OMPI_COMM_WORLD_SIZE"}.get(launcher or "none", "WORLD_SIZE")
    return int(os.environ[name]) if name in os.environ else 1 if name == "WORLD_SIZE" else None


def refuse_ineffective_options() -> None:
    """Make mmengine refuse ``--cfg-options`` that would change nothing, which it adds to the config as new keys."""
    merge = Config.merge_from_dict

    @functools.wraps(merge)
    def check_and_merge(self: Config, options: Mapping[str, Any], allow_list_keys: bool = True) -> None:
        check_options(self.to_dict(), options)
        merge(self, options, allow_list_keys)
        if precision := options.get("optim_wrapper.precision"):
            self.precision = precision  # the trainer drops the wrapper under --deepspeed, and preflight compares this

    Config.merge_from_dict = check_and_merge


def check_options(config: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Check that each option sets what the trainer reads.

    A config is executed before it is changed: what it has computed from a name at its top keeps the old value. Keys
    are full ones, such as ``optim_wrapper.optimizer.lr``. What the trainer reads may get new settings, and new parts by
    their `type`; whatever takes a setting judges its name.

    Raises:
        PallavaError: The trainer does not read a key; names keys that it does read.
    """
    read = dict(_values_by_key({name: config[name] for name in sorted(_READ & config.keys())}))
    holders = {key for key, value in read.items() if isinstance(value, Mapping)} | (_READ - read.keys())
    new_parts = {key.rpartition(".")[0] for key in options if key.endswith(".type")} - read.keys()
    holders |= {part for part in new_parts if part.rpartition(".")[0] in holders}
    for key in options:
        parent, _, name = key.rpartition(".")
        if key in read or key in _READ or parent in holders:
            continue
        near = [known for known in read if known.rpartition(".")[2] == name]
        advice = "give the full key that the trainer reads"
        if near:
            advice = f"write {near[0]}" if len(near) == 1 else f"write each that should change of {', '.join(near)}"
        raise PallavaError(
            f"--cfg-options {key}=... would change nothing; {advice}, or set it in a copy (`pallava config copy`)"
        )


def _values_by_key(values: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    values = dict(enumerate(values)) if isinstance(values, list) else values
    for name, value in values.items() if isinstance(values, Mapping) else ():
        key = f"{path}.{name}" if path else str(name)
        yield key, value
        yield from _values_by_key(value, key)
