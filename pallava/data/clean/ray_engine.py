"""The engine `ray`: findings are computed by Ray Data's workers, on this machine or on a cluster.

This process alone has the store. It cuts what a filter has to judge into shares, a block each, and stores each share's
findings as they arrive, so that a kill loses the shares under way. A share never crosses the local engine's batches: a
network sees the same images together, whatever the engine.
"""

import importlib
import importlib.util
import json
import logging
import os
import pickle
import socket
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import groupby
from typing import Any

from pallava.data.clean.engine import BATCH, Engine
from pallava.data.clean.filters import Candidate, Filter, Findings
from pallava.errors import PallavaError
from pallava.io.processes import batches

_STORE_BYTES = 200 << 20  # of shares under way; Ray would reserve a third of the memory
_BLOCK_BYTES = 1 << 20  # Ray holds back work for which blocks of its default, 128 MiB, would not fit
_PATIENCE = 5  # seconds
_MAX_CORES = 8  # for each GPU
_MAX_RETRIES = 3  # of a share whose worker dies; Ray Data would try a deadly one for ever
_RESTARTS = {"max_restarts": _MAX_RETRIES, "max_task_retries": _MAX_RETRIES}


class RayEngine(Engine):
    """Compute findings by Ray Data: by tasks, or by actors where a filter loads a model, one for each GPU or core.

    Filters without a `share` stay in this process: they cost less than their way, or ask an endpoint.
    """

    window = 256 * BATCH  # records in memory; models are loaded once a window

    def __init__(self, address: str | None, num_workers: int) -> None:
        """Keep the address of a cluster, or the number of CPUs for a Ray of this process's own, started when needed.

        Raises:
            PallavaError: Ray is not installed, or nothing listens at the address.
        """
        self._address, self._num_workers = address, num_workers
        self._is_ours = False
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # read at Ray's import, and by all that it starts
        if not getattr(importlib.util.find_spec("ray"), "origin", None):  # a folder of that name has none
            raise PallavaError("the engine 'ray' needs Ray Data, got none; run `pip install 'ray[data]<2.64'`")
        if address not in (None, "auto"):
            _check_address(address)

    def iter_parts(self, each: Filter, candidates: Sequence[Candidate]) -> Iterator[list[tuple[int, Findings]]]:
        if not each.share:
            yield from super().iter_parts(each, candidates)
            return
        ray = self._ray
        try:
            for start, result in self._iter_shares(each, candidates):
                if isinstance(result, str):
                    raise PallavaError(result)
                yield list(enumerate(result, start))
        except ray.exceptions.RayError as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            raise PallavaError(
                f"the filter '{each.name}' failed in Ray: {reason}; findings so far are kept: run the command again"
            ) from error

    def close(self) -> None:
        if self._is_ours:
            self._ray.shutdown()

    def _iter_shares(self, each: Filter, candidates: Sequence[Candidate]) -> Iterator[tuple[int, list[Findings] | str]]:
        """Yield (index of the first candidate, findings, or the user's error) of shares as they are done."""
        shares = list(_cut(candidates, each.share))
        dataset = self._ray.data.from_items(shares, override_num_blocks=len(shares))  # a block is a task
        dataset.context.target_max_block_size = _BLOCK_BYTES
        dataset.context.enable_progress_bars = False
        workers = self._workers(each, len(shares))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the limits of retries have no other place before 2.64, which drops this
            judged = dataset.map_batches(**workers, batch_size=None, batch_format="pyarrow")
        for block in judged.iter_batches(batch_size=None, batch_format="pyarrow"):
            for row in block.to_pylist():
                yield row["start"], json.loads(row["result"])

    def _workers(self, each: Filter, num_shares: int) -> dict[str, Any]:
        """Return what `map_batches` must know of those who compute."""
        if not each.loads_model:
            return {"fn": _judge, "fn_args": [each], "num_cpus": 1, "max_retries": _MAX_RETRIES}
        count, num_cpus, num_gpus = self._places()
        return {
            "fn": _Judge,
            "fn_constructor_args": [each, num_cpus],
            "compute": self._ray.data.ActorPoolStrategy(size=min(count, num_shares)),
            "num_cpus": num_cpus,
            "num_gpus": num_gpus,
            **(_RESTARTS if self._address else {"max_restarts": 0}),  # a node may go; here it would be the memory
        }

    def _places(self) -> tuple[int, int, int]:
        """Return the number of models that find room, and the CPUs and GPUs of each."""
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        with_gpus = [(int(node["GPU"]), int(node.get("CPU", 0))) for node in nodes if node.get("GPU", 0) >= 1]
        if not with_gpus:
            return max(1, int(sum(node.get("CPU", 0) for node in nodes))), 1, 0
        cores = min(num_cpus // num_gpus for num_gpus, num_cpus in with_gpus)
        return sum(num_gpus for num_gpus, _ in with_gpus), min(cores, _MAX_CORES), 1

    @cached_property
    def _ray(self) -> Any:
        """Import Ray and connect."""
        import ray
        import ray.data  # a second

        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors come as exceptions, too
        if ray.is_initialized():  # by the caller, who also ends it
            return ray
        options: dict[str, Any] = {"address": self._address}
        if self._address is None:
            options = {"address": "local", "num_cpus": self._num_workers, "object_store_memory": _STORE_BYTES}
            options["include_dashboard"] = False
        try:
            with _without_dashboard():
                ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:  # a bare one where its processes do not come up in time, as on busy cores
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            place = f"connect to Ray at '{self._address}'" if self._address else "start Ray"
            advice = "check --ray-address" if self._address else "try again"
            raise PallavaError(f"cannot {place}: {reason}; {advice}, or use --engine local") from None
        self._is_ours = True
        return ray


@contextmanager
def _without_dashboard() -> Iterator[None]:
    """Keep a Ray that is started here from its dashboard's process, which `include_dashboard=False` starts as well.

    Usage statistics or not, that process asks the metadata servers of three clouds whether it runs there.
    """
    node: Any = importlib.import_module("ray._private.node").Node
    start, node.start_api_server = node.start_api_server, lambda *args, **how: None
    try:
        yield
    finally:
        node.start_api_server = start


def _check_address(address: str) -> None:
    """Find out in seconds what Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=_PATIENCE).close()
    except (OSError, OverflowError, ValueError) as error:
        raise PallavaError(f"--ray-address must be auto or a cluster's HOST:PORT, got '{address}': {error}") from None


def _cut(candidates: Sequence[Candidate], size: int) -> Iterator[dict[str, Any]]:
    start = 0
    for _, batch in groupby(candidates, key=lambda one: one.number // BATCH):
        for share in batches(batch, size):
            yield {"start": start, "candidates": pickle.dumps(share)}
            start += len(share)


class _Judge:
    """A worker that keeps its filter, and with it the model."""

    def __init__(self, each: Filter, num_cores: int) -> None:
        self._filter, self._num_cores = each, max(1, num_cores)

    def __call__(self, shares: Any) -> Any:
        return _judge(shares, self._filter, self._num_cores)


def _judge(shares: Any, each: Filter, num_cores: int = 1) -> Any:
    """Return a table of results for a table of shares; a user's error is one, since Ray would try again."""
    import pyarrow

    each.use_cores(num_cores)
    rows = []
    for share in shares.to_pylist():
        result: list[Findings] | str
        try:
            result = each.score(pickle.loads(share["candidates"]))
        except PallavaError as error:
            result = str(error)
        rows.append({"start": share["start"], "result": json.dumps(result)})
    return pyarrow.Table.from_pylist(rows)
