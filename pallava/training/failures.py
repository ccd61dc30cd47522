"""Mistakes of a user under ``xtuner train``: refused where they would have no effect, and reported in one sentence."""

import functools
import inspect
import sys
import traceback
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

from mmengine.config import Config
from mmengine.runner import Runner

from pallava.errors import PallavaError, without_worker

# What the runner and xtuner's trainer read of a config; other names at its top only help to write it.
_READ = {*inspect.signature(Runner.__init__).parameters} - {"self", "cfg"}
_READ |= {"strategy", "runner_type", "framework", "sequence_parallel_size", "use_varlen_attn", "compile"}


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
        return without_worker(str(error))
    if isinstance(error, FileNotFoundError):
        return f"{without_worker(str(error))}; correct the path"
    calls = [frame.name for frame in traceback.extract_tb(trace)]
    if isinstance(error, (TypeError, KeyError)) and calls[-1:] == ["build_from_cfg"]:
        return f"a part of the config cannot be built: {error.args[0]}; correct its type or its settings"
    if isinstance(error, ValueError) and "end should be larger than begin" in str(error):  # of mmengine's schedulers
        return "the warm-up must be at least one step; give more rows or epochs, or set a larger warmup_ratio"
    return None


def refuse_ineffective_options() -> None:
    """Make mmengine refuse ``--cfg-options`` that would change nothing, which it adds to the config as new keys."""
    merge = Config.merge_from_dict

    @functools.wraps(merge)
    def check_and_merge(self: Config, options: Mapping[str, Any], allow_list_keys: bool = True) -> None:
        check_options(self.to_dict(), options)
        merge(self, options, allow_list_keys)

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
        advice = f"write {' or '.join(near)}" if near else "give the full key that the trainer reads"
        raise PallavaError(
            f"--cfg-options {key}=... would change nothing; {advice}, or set it in a copy (`pallava config copy`)"
        )


def _values_by_key(values: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    values = dict(enumerate(values)) if isinstance(values, list) else values
    for name, value in values.items() if isinstance(values, Mapping) else ():
        key = f"{path}.{name}" if path else str(name)
        yield key, value
        yield from _values_by_key(value, key)
