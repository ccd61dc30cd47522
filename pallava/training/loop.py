"""The training loop: it resumes at any optimizer step without reading what was seen, and ends well on a signal."""

import os
import signal
import sys
from contextlib import closing
from typing import Any

import torch
from mmengine.dist import all_gather_object, all_reduce, barrier, broadcast_object_list, get_rank, get_world_size
from mmengine.runner import BaseLoop
from torch.utils.data import DataLoader

from pallava.errors import PallavaError
from pallava.io.peers import PeerWatch, leave_to_watch
from pallava.training.batches import Batches, choose_num_workers
from pallava.training.doctor.auto import settle
from pallava.training.features import connected_features
from pallava.training.hooks.checkpoint import WholeCheckpointHook
from pallava.training.interrupts import EXIT_CODE, Interrupts
from pallava.training.steps import accumulative_counts, check_length, ends_step


class TrainLoop(BaseLoop):
    """Trains for a number of iterations (batches of a process) or of epochs.

    xtuner's loop reads and decodes every batch again to reach the place where a run was interrupted. This one starts
    the epoch's order there: the sampler's order depends on its seed and the epoch alone. A signal (see `Interrupts`)
    ends the training at the next optimizer step, on all processes alike, with a checkpoint and `EXIT_CODE`. A process
    that is gone ends the others.

    Args:
        runner: mmengine's runner.
        dataloader: The loader, or its config, whose `num_workers` None follows the cores.
        max_iters: Number of iterations.
        max_epochs: Number of epochs, which may be a fraction; instead of `max_iters`.
        loader_timeout: Time in seconds after which a worker of the loader that returns no batch ends the training.

    Raises:
        PallavaError: The length is missing or given twice, or the config has a validation.
    """

    def __init__(
        self,
        runner: Any,
        dataloader: DataLoader | dict[str, Any],
        max_iters: int | None = None,
        max_epochs: float | None = None,
        loader_timeout: float = 1800,
    ) -> None:
        super().__init__(runner, choose_num_workers(dataloader) if isinstance(dataloader, dict) else dataloader)
        if (max_iters is None) == (max_epochs is None):
            raise PallavaError("train_cfg must have one of max_iters and max_epochs")
        if runner._val_loop is not None:
            raise PallavaError("the training loop does not validate; remove val_cfg, and use `pallava evaluate`")
        self._batches = Batches(self.dataloader, runner.seed or 0, loader_timeout)
        length = len(self.dataloader)
        self._max_iters = int(max_iters if max_epochs is None else max_epochs * length)  # type: ignore[arg-type]
        self._epoch = self._iter = 0
        self.stop_training = False  # mmengine's EarlyStoppingHook sets it
        self.interrupts = Interrupts()

    @property
    def max_epochs(self) -> int:
        """Return 1: to mmengine the whole training is one epoch, as in its own iteration-based loop."""
        return 1

    @property
    def max_iters(self) -> int:
        """Return the number of iterations."""
        return self._max_iters

    @property
    def epoch(self) -> int:
        """Return 0, the number of mmengine's one epoch."""
        return self._epoch

    @property
    def iter(self) -> int:
        """Return the number of iterations that are done."""
        return self._iter

    def run(self) -> Any:
        """Train; a run that a signal ended raises SystemExit with `EXIT_CODE`.

        Raises:
            PallavaError: A worker of the loader died or hangs, the data are not those of the interrupted run, or they
                are too few for an optimizer step.
        """
        try:
            with self.interrupts:
                self._train()
        except (RuntimeError, OSError, EOFError) as error:  # of a dead worker, wherever the main thread was
            if (failure := self._batches.describe_dead_worker()) is None:
                leave_to_watch(error)
                raise
            raise PallavaError(failure) from None
        return self.runner.model

    def _train(self) -> None:
        runner, peers = self.runner, _watch_peers()
        self._check_alike()
        settle(runner, self.dataloader)
        runner.call_hook("before_train")
        runner.call_hook("before_train_epoch")
        self._check_rows()
        if hasattr(runner.model, "micro_steps"):  # DeepSpeed does not save where it is in an accumulation
            check_length(self._max_iters, accumulative_counts(runner))
            runner.model.model.micro_steps = self._iter
        features = connected_features(self.dataloader.dataset, runner.model, runner.optim_wrapper)
        with features, closing(self._batches.iterate(self._iter)) as batches:
            while self._iter < self._max_iters and not self.stop_training:
                runner.model.train()
                self._run_iter(next(batches), peers)
        runner.call_hook("after_train_epoch")
        runner.call_hook("after_train")
        _part(peers)

    def _run_iter(self, batch: Any, peers: PeerWatch | None) -> None:
        runner = self.runner
        runner.call_hook("before_train_iter", batch_idx=self._iter, data_batch=batch)
        outputs = runner.model.train_step(batch, optim_wrapper=runner.optim_wrapper)
        runner.call_hook("after_train_iter", batch_idx=self._iter, data_batch=batch, outputs=outputs)
        if ends_step(runner) and self._iter + 1 < self._max_iters:
            received = torch.tensor(self.interrupts.received)
            all_reduce(received, "max")
            if received:
                self._stop(signal.Signals(int(received)).name, peers)
        self._iter += 1

    def _stop(self, name: str, peers: PeerWatch | None) -> None:
        """Save, and end all processes together."""
        saves = [hook for hook in self.runner.hooks if isinstance(hook, WholeCheckpointHook)]
        paths = [str(hook.save(self.runner)) for hook in saves]
        _part(peers)
        self.interrupts.ignore()
        self.runner.visualizer.close()
        if get_rank() == 0:
            sys.stderr.write(
                f"stopped by {name} after iteration {self._iter + 1}; saved {', '.join(paths) or 'nothing'}; the same "
                "command with --resume auto continues\n"
            )
        raise SystemExit(EXIT_CODE)

    def _check_alike(self) -> None:
        """Refuse processes that resumed at different places: they would wait for each other, or mix their weights."""
        places = all_gather_object(self._iter)
        if len(set(places)) > 1:
            rank = next(rank for rank, place in enumerate(places) if place != places[0])
            raise PallavaError(
                f"all processes must resume from the same checkpoint, but process 0 is at iteration {places[0]} and "
                f"process {rank} at {places[rank]}; put the work directory on a disk that all nodes share"
            )

    def _check_rows(self) -> None:
        """Refuse to continue in the middle of another data set."""
        rows, known = len(self.dataloader.dataset), self.runner.message_hub.runtime_info.get("num_rows")  # type: ignore[arg-type]
        if self._iter and known not in (None, rows):
            raise PallavaError(
                f"the data must be those of the interrupted run, {known} rows, got {rows}; give the same file, or "
                "start from the weights by model.pretrained_pth"
            )
        self.runner.message_hub.update_info("num_rows", rows)


def _watch_peers() -> PeerWatch | None:
    if get_world_size() == 1:
        return None
    peers, rank = PeerWatch(get_rank()), get_rank()
    meeting = [peers.host(os.environ["MASTER_ADDR"], get_world_size() - 1) if rank == 0 else None]
    broadcast_object_list(meeting)
    if rank and meeting[0] is not None:
        peers.join(meeting[0])
    return peers


def _part(peers: PeerWatch | None) -> None:
    """End together: from now on no process waits for another."""
    barrier()
    if peers is not None:
        peers.close()
