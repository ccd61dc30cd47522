"""Processes that share one evaluation, and their answers on the disk, so that a stopped evaluation can be resumed."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist

from pallava.errors import PallavaError
from pallava.io.store import Store

_FOLDER = "answers"
_NAMESPACE, _SETTINGS = "answers", "settings"
_OLD_ANSWERS = "process_*.jsonl"
_PATIENCE = timedelta(days=7)  # the first process to be done waits for the last one

Value = TypeVar("Value")


@dataclass(frozen=True)
class Processes:
    """The processes of one evaluation: number of this one, of all on all nodes, and of this one on its node."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @classmethod
    @contextmanager
    def join(cls, environment: Mapping[str, str] = os.environ) -> Iterator["Processes"]:
        """Connect to the others for the length of the context, if torchrun has started several.

        A process group that exists already is used, and stays.
        """
        rank, count, local = (int(environment.get(name, "0")) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        with ExitStack() as stack:
            if count > 1 and not dist.is_initialized():
                dist.init_process_group("gloo", timeout=_PATIENCE)
                stack.callback(dist.destroy_process_group)
            yield cls(rank, count, local) if count > 1 else cls()

    def gather(self, value: Value) -> list[Value]:
        """Return the values of all processes, in each of them, once all have called this."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def agree(self, work: Callable[[], Any]) -> Any:
        """Call a function in every process; if it raises a `PallavaError` in one, raise that error in all."""
        result, failure = None, ""
        try:
            result = work()
        except PallavaError as error:
            failure = str(error)
        if failures := [text for text in self.gather(failure) if text]:
            raise PallavaError(failures[0])
        return result


class AnswerStore(ExitStack):
    """The answers of an evaluation: one file a process, below the folder of its results; to be closed.

    An answer is ``{"answer": text, "problem": reason}``, empty if a problem kept the question from being asked; it
    may have further values.
    """

    def __init__(self, out: Path, settings: Mapping[str, Any], processes: Processes | None = None) -> None:
        """Open the file of this process; the first process also opens those of processes that no longer take part.

        Answers of other `settings`, on which they depend beside the questions, do not mix: they are an error.
        """
        super().__init__()
        self.processes = processes or Processes()
        self._folder = out / _FOLDER
        self._stores: list[Store] = []
        try:
            self.processes.agree(lambda: self._open(settings))
        except PallavaError:
            self.close()
            raise

    def read(self) -> dict[str, dict[str, Any]]:
        """Return the answers of all processes by key, once all have called this; an answer precedes a problem."""
        found: dict[str, dict[str, Any]] = {}
        own = [store.get_all(_NAMESPACE) for store in self._stores]
        for answers in (each for stored in self.processes.gather(own) for each in stored):
            found |= {key: one for key, one in answers.items() if not one["problem"] or key not in found}
        return found

    def put(self, answers: Mapping[str, Mapping[str, Any]]) -> None:
        """Write answers by key."""
        self._stores[0].put(_NAMESPACE, answers)

    def _open(self, settings: Mapping[str, Any]) -> None:
        rank, count = self.processes.rank, self.processes.count
        if rank == 0 and any(path.stat().st_size for path in self._folder.glob(_OLD_ANSWERS)):
            raise PallavaError(
                f"'{self._folder}' holds answers of an earlier version, which cannot be resumed; use another --out, or "
                f"remove '{self._folder}' to ask again"
            )
        names = [f"process_{rank}.sqlite"]
        if rank == 0:
            running = {f"process_{number}.sqlite" for number in range(count)}
            names += sorted({path.name for path in self._folder.glob("process_*.sqlite")} - running)
        for name in names:
            store = self.enter_context(Store(self._folder / name))
            self._stores.append(store)
            found = store.get_all(_SETTINGS).get(_SETTINGS, {})
            differing = [name for name in sorted({*found, *settings}) if found.get(name) != settings.get(name)]
            if differing and store.get_all(_NAMESPACE):
                named = ", ".join(f"{name} ({found.get(name)} there, {settings.get(name)} now)" for name in differing)
                raise PallavaError(
                    f"'{self._folder.parent}' holds answers of another evaluation, which differs in {named}; use "
                    f"another --out, or remove '{self._folder}'"
                )
            store.put(_SETTINGS, {_SETTINGS: settings})
