"""What a training is watched by, against numbers worked out by hand."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from mmengine.logging import MessageHub
from mmengine.optim import OptimWrapper
from torch import nn

from pallava.training import optimizer
from pallava.training.hooks import metrics
from pallava.training.hooks.metrics import TrainingMetricsHook, count_tokens, summarize
from pallava.training.optimizer import grouped_adamw

BATCH = {  # a row of 3 tokens with an image, one of 5 without: 2 + 4 and 5 positions where an image has 4 tokens
    "input_ids": torch.tensor([[5, -200, 6, 0, 0], [5, 6, 7, 8, 9]]),
    "attention_mask": torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]),
    "labels": torch.tensor([[-100, -100, 6, -100, -100], [-100, -100, -100, 8, 9]]),
}
KEYS = ["iteration", "time", "loss", "lr", "connector_lr", "grad_norm", "skipped_steps"]
KEYS += ["samples_per_second", "tokens_per_second", "padding_share", "uneven_share", "waiting_share", "memory"]


@pytest.mark.parametrize(
    ("num_visual_tokens", "expected"),
    [(1, (3, 2, 10)), (4, (3, 1, 12)), (196, (3, 198 - 5, 2 * 198))],
)
def test_tokens_of_a_batch(num_visual_tokens, expected):
    assert count_tokens(BATCH, num_visual_tokens) == expected


def test_a_step_of_two_processes():
    """Batches, loss, samples, taught, padding, seconds, waiting, memory and positions of two batches of each."""
    sums = torch.tensor([[2, 3.0, 12, 100, 30, 4.0, 1.0, 500.4, 300, 100], [2, 5.0, 12, 60, 10, 4.0, 2.0, 700, 40, 60]])
    assert summarize(sums.double()) == {
        "loss": 2.0,
        "samples_per_second": 6.0,
        "tokens_per_second": 40.0,
        "padding_share": 0.08,
        "uneven_share": 1 - 500 / (2 * (300 + 100)),
        "waiting_share": 0.5,
        "memory": 700,
    }


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.connector, self.llm = nn.Linear(1, 1), nn.Linear(1, 1)
        self.network = SimpleNamespace(config=SimpleNamespace(num_visual_tokens=4))
        for name, parameter in self.named_parameters():
            parameter.lr_group = name.split(".")[0]


class Clock:
    """A clock that only the test moves."""

    now = 0.0

    def perf_counter(self):
        return self.now

    time = perf_counter


class Run:
    """A runner whose hooks are called by hand."""

    def __init__(self, folder, name, accumulative_counts=1, model=None):
        model = model or Model()
        adamw = grouped_adamw(Model().parameters(), lr=2e-4, lr_mults={"connector": 0.5})
        self.hooks = []
        self.runner = SimpleNamespace(
            iter=0,
            max_iters=100,
            log_dir=folder,
            model=model,
            optim_wrapper=OptimWrapper(adamw, accumulative_counts=accumulative_counts),
            message_hub=MessageHub.get_instance(name),
            register_hook=self.hooks.append,
        )
        hook = TrainingMetricsHook()
        hook.before_run(self.runner)
        self.hooks.insert(0, hook)
        self.file = folder / "vis_data" / "metrics.jsonl"
        for each in self.hooks:
            each.before_train(self.runner)

    def step(self, clock, loss, waiting=1.0, training=3.0, other=0.0, **scalars):
        hub = self.runner.message_hub
        clock.now += waiting
        hub.update_scalar("train/lr", 2e-4)
        self.hooks[0].before_train_iter(self.runner, self.runner.iter, {"data": BATCH})
        clock.now += training
        for name, value in {"loss": loss, **scalars}.items():
            hub.update_scalar(f"train/{name}", value)
        self.hooks[0].after_train_iter(self.runner, self.runner.iter, {"data": BATCH})
        clock.now += other  # a checkpoint
        self.hooks[1].after_train_iter(self.runner, self.runner.iter)
        self.runner.iter += 1

    def lines(self):
        return [json.loads(line, parse_constant=pytest.fail) for line in self.file.read_text().splitlines()]


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(metrics, "time", clock)
    return clock


def test_a_line_for_each_step(tmp_path, clock):
    run = Run(tmp_path, "lines")
    run.step(clock, 2.0, grad_norm=0.5, other=100.0)
    run.step(clock, 1.0, grad_norm=0.25, waiting=3.0, training=1.0)
    first, second = run.lines()
    assert list(first) == list(second) == KEYS
    expected = {"iteration": 2, "loss": 1.0, "lr": 2e-4, "connector_lr": 1e-4, "grad_norm": 0.25, "skipped_steps": 0}
    expected |= {"samples_per_second": 0.5, "tokens_per_second": 0.75, "padding_share": 1 / 12, "waiting_share": 0.75}
    expected["uneven_share"] = 0.0
    assert {key: second[key] for key in expected} == expected
    assert (first["loss"], first["waiting_share"], first["samples_per_second"]) == (2.0, 0.25, 0.5)
    assert 100 < first["memory"] < 100_000
    scalars = run.runner.message_hub.log_scalars
    assert scalars["train/waiting_share"].mean(10) == 0.5
    assert list(scalars["train/grad_norm"].data[0]) == [0.5, 0.25]  # once, as mmengine has it
    saved = run.runner.message_hub.state_dict()["log_scalars"]
    assert "train/connector_lr" in saved
    assert "train/waiting_share" not in saved


def test_accumulated_batches_are_one_step(tmp_path, clock):
    run = Run(tmp_path, "accumulated", accumulative_counts=2)
    for loss in (1.0, 3.0, 5.0):
        run.step(clock, loss)
    (line,) = run.lines()
    assert (line["iteration"], line["loss"], line["samples_per_second"]) == (2, 2.0, 0.5)
    run.step(clock, 7.0)
    assert [line["loss"] for line in run.lines()] == [2.0, 6.0]


def test_a_skipped_step_has_no_norm(tmp_path, clock):
    run = Run(tmp_path, "skipped")
    run.step(clock, 1.0, grad_norm=0.5)
    run.runner.message_hub.update_info("skipped_steps", 1)
    run.step(clock, math.nan)
    run.step(clock, 1.0, grad_norm=0.25)
    found = [(line["loss"], line["grad_norm"], line["skipped_steps"]) for line in run.lines()]
    assert found == [(1.0, 0.5, 0), (None, None, 1), (1.0, 0.25, 1)]


def test_deepspeed_counts_and_measures_itself(tmp_path, clock):
    engine = SimpleNamespace(module=Model(), skipped_steps=0, get_global_grad_norm=lambda: torch.tensor(0.5))
    run = Run(tmp_path, "engine", model=engine)
    run.step(clock, 1.0)
    engine.skipped_steps = 1
    run.step(clock, 2.0)
    assert [(line["grad_norm"], line["skipped_steps"]) for line in run.lines()] == [(0.5, 0), (None, 1)]
    assert list(run.runner.message_hub.log_scalars["train/grad_norm"].data[0]) == [0.5]


def test_a_resumed_run_goes_on_counting(tmp_path, clock):
    """What was skipped before is not a step that was skipped now."""
    MessageHub.get_instance("resumed").update_info("skipped_steps", 3)
    run = Run(tmp_path, "resumed")
    run.step(clock, 1.0, grad_norm=0.5)
    assert [(line["grad_norm"], line["skipped_steps"]) for line in run.lines()] == [(0.5, 3)]


def test_old_configs_find_it():
    assert optimizer.GroupLearningRateHook is TrainingMetricsHook
