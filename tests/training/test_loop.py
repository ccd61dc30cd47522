"""The training loop: where it resumes, what it reads, and how its loader fails."""

import os
import re
import signal
import socket
import time
from functools import partial
from types import SimpleNamespace

import pytest
from mmengine.dataset import DefaultSampler
from mmengine.logging import MessageHub
from torch.utils.data import DataLoader, Dataset

from pallava.errors import PallavaError
from pallava.io.peers import NOTICE
from pallava.training.batches import choose_num_workers
from pallava.training.loop import TrainLoop
from pallava.training.sampler import LengthSampler
from pallava.training.steps import ends_step, is_due

ROWS, BATCH = 10, 2


class Rows(Dataset):
    """Rows that remember who read them, and what happens at one of them."""

    modality_length = tuple(range(3, 3 + ROWS))

    def __init__(self, at=None, act=None):
        self.read, self.at, self.act = [], at, act

    def __len__(self):
        return ROWS

    def __getitem__(self, index):
        self.read.append(index)
        if index == self.at:
            self.act()
        return index


class Runner(SimpleNamespace):
    """The parts of mmengine's runner that the loop sees."""

    iter = property(lambda self: self.train_loop.iter)
    max_iters = property(lambda self: self.train_loop.max_iters)


def make_runner(name):
    model = SimpleNamespace(train=lambda: None, train_step=lambda batch, optim_wrapper: {"loss": 0.0})
    runner = Runner(
        seed=7,
        model=model,
        hooks=[],
        optim_wrapper=SimpleNamespace(_accumulative_counts=1),
        message_hub=MessageHub.get_instance(f"loop-{name}"),
        _val_loop=None,
        batches=[],
    )

    def call_hook(stage, data_batch=None, **_):
        if stage == "before_train_iter":
            runner.batches.append(data_batch)

    runner.call_hook = call_hook
    return runner


def make_loop(name, start=0, rows=None, max_iters=12, **options):
    rows, runner = rows or Rows(), make_runner(name)
    sampler = options.pop("sampler", DefaultSampler)(rows, seed=7)
    loader = DataLoader(rows, BATCH, sampler=sampler, **options.pop("loader", {}))
    loop = TrainLoop(runner, loader, max_iters=max_iters, **options)
    runner.train_loop, loop._iter = loop, start
    return loop, rows


@pytest.mark.parametrize("sampler", [DefaultSampler, partial(LengthSampler, batch_size=BATCH)])
@pytest.mark.parametrize("start", [1, 4, 5, 7, 10])
def test_resumes_anywhere_without_reading_what_was_seen(start, sampler):
    """Five batches an epoch: in its middle, before and at its end, and in the next one."""
    whole, _ = make_loop(f"whole-{start}", sampler=sampler)
    whole.run()
    resumed, rows = make_loop(f"resumed-{start}", start, sampler=sampler)
    resumed.run()
    batches = [batch.tolist() for batch in whole.runner.batches]
    assert [batch.tolist() for batch in resumed.runner.batches] == batches[start:]
    assert rows.read == [row for batch in batches[start:] for row in batch]
    assert len({tuple(batch) for batch in batches}) > ROWS // BATCH, "every epoch has the same order"


def test_refuses_a_sampler_of_another_batch_size():
    with pytest.raises(PallavaError, match=rf"train_dataloader.batch_size, {BATCH}, got {BATCH + 1}"):
        make_loop("size", sampler=partial(LengthSampler, batch_size=BATCH + 1))


@pytest.mark.parametrize(
    ("given", "neighbours", "expected"), [(None, 1, 12), (None, 8, 1), (None, 16, 1), (3, 8, 3), (0, 1, 0)]
)
def test_workers_follow_the_cores(given, neighbours, expected, monkeypatch):
    """Of those of this machine with the same cores; processes of other machines do not count."""
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {*range(12)}, raising=False)
    others = [("elsewhere", {*range(12)}), (socket.gethostname(), {99})]
    monkeypatch.setattr("pallava.training.batches.all_gather_object", lambda mine: [mine] * neighbours + others)
    assert choose_num_workers({"num_workers": given})["num_workers"] == expected


def test_refuses_other_rows():
    loop, _ = make_loop("other", start=3)
    loop.runner.message_hub.update_info("num_rows", ROWS + 1)
    with pytest.raises(PallavaError, match=f"{ROWS + 1} rows, got {ROWS}"):
        loop.run()


def test_refuses_processes_at_different_places(monkeypatch):
    """Of a work directory that is on a disk of the first node alone."""
    monkeypatch.setattr("pallava.training.loop.all_gather_object", lambda place: [place, 0])
    loop, rows = make_loop("places", start=4)
    with pytest.raises(PallavaError, match="iteration 4 .*process 1 at 0"):
        loop.run()
    assert not rows.read


@pytest.mark.parametrize("length", [{"max_iters": None}, {"max_epochs": 1}])
def test_refuses_no_length_and_two(length):
    with pytest.raises(PallavaError, match="max_epochs"):
        make_loop("length", **length)


def test_epochs_may_be_a_fraction():
    loop, _ = make_loop("fraction", max_iters=None, max_epochs=1.5)
    assert loop.max_iters == 7


def rows_named(message) -> list[str]:
    return re.findall(r"\d+", message.split("at rows ")[1].split(";")[0].split("(")[0])


def test_names_a_worker_that_died():
    rows = Rows(at=4, act=lambda: os.kill(os.getpid(), signal.SIGKILL))
    loop, _ = make_loop("dead", rows=rows, loader={"num_workers": 1, "prefetch_factor": 1})
    with pytest.raises(PallavaError) as caught:
        loop.run()
    assert "worker 0 (pid " in str(caught.value)
    assert "signal 9" in str(caught.value)
    assert "4" in rows_named(str(caught.value))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_names_a_worker_that_hangs(num_workers, monkeypatch):
    said = []

    def end(message):  # in the place of os._exit, in the timer's thread
        said.append(message)
        if not num_workers:  # else the main thread hears of the workers' deaths
            os.kill(os.getpid(), signal.SIGUSR2)

    def give_up(*_):
        raise TimeoutError

    monkeypatch.setattr("pallava.training.batches.end_process", end)
    before = signal.signal(signal.SIGUSR2, give_up)
    try:
        options = {"num_workers": num_workers, **({"prefetch_factor": 1} if num_workers else {})}
        loop, _ = make_loop(
            f"hang-{num_workers}", rows=Rows(4, lambda: time.sleep(60)), loader=options, loader_timeout=1
        )
        with pytest.raises(PallavaError) as caught:
            loop.run()
    finally:
        signal.signal(signal.SIGUSR2, before)
    message = str(caught.value)
    assert num_workers or said == [message]
    assert "no batch for 1 s" in message
    assert "4" in rows_named(message)


@pytest.mark.parametrize(
    ("counts", "interval", "total", "expected"),
    [
        (1, 4, 10, [4, 8]),
        (3, 4, 16, [6, 9, 12, 16]),
        (6, 2000, 12000, [2004, 4002, 6000, 8004, 10002, 12000]),
        (3, 1, 7, [3, 6, 7]),
    ],
)
def test_checkpoints_are_due_where_steps_end(counts, interval, total, expected):
    wrapper = SimpleNamespace(_accumulative_counts=counts)
    runs = [SimpleNamespace(iter=i, max_iters=total, optim_wrapper=wrapper) for i in range(total)]
    assert [run.iter + 1 for run in runs if is_due(run, interval)] == expected
    assert all(ends_step(run) for run in runs if is_due(run, interval))


def test_a_training_that_does_not_end_at_a_step_is_not_due_twice():
    runs = SimpleNamespace(iter=15, max_iters=16, optim_wrapper=SimpleNamespace(_accumulative_counts=3))
    assert not is_due(runs, 5)


@pytest.mark.parametrize("counts", [12, 13])
def test_deepspeed_must_reach_a_step(counts):
    loop, _ = make_loop(f"steps-{counts}")
    loop.runner.optim_wrapper = SimpleNamespace()
    engine = {"micro_steps": 0, "model": SimpleNamespace(), "gradient_accumulation_steps": lambda: counts}
    loop.runner.model.__dict__.update(engine)
    if counts > 12:
        with pytest.raises(PallavaError, match="13 iterations.*got 12"):
            loop.run()
    else:
        loop.run()
    assert len(loop.runner.batches) == (0 if counts > 12 else 12)


def test_workers_do_not_outlive_an_epoch():
    loop, _ = make_loop("persistent", loader={"num_workers": 1, "persistent_workers": True})
    loop.run()
    assert len(loop.runner.batches) == 12


def test_a_broken_connection_is_left_to_the_watch(monkeypatch):
    """Which of the two speaks first would be a matter of luck; the watch ends the process while the loop waits."""
    waited, (loop, _) = [], make_loop("broken")
    monkeypatch.setattr("pallava.io.peers.time.sleep", waited.append)

    def fail(*_, **__):
        raise RuntimeError("[gloo/transport/tcp/pair.cc:561] Connection closed by peer")

    loop.runner.model.train_step = fail
    with pytest.raises(RuntimeError, match="gloo"):
        loop.run()
    assert waited == [NOTICE]


def test_refuses_an_order_that_cannot_be_restored():
    loader = DataLoader(Rows(), BATCH, shuffle=True)
    with pytest.raises(PallavaError, match="RandomSampler"):
        TrainLoop(make_runner("random"), loader, max_iters=1)
