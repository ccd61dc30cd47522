"""A resumed run draws what the interrupted one would have drawn."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.hooks import CheckpointHook
from mmengine.logging import MessageHub

from pallava.training.hooks.random_state import RandomStateHook, get_random_state, set_random_state


def draw():
    return (torch.rand(3).tolist(), random.random(), random.gauss(0, 1), np.random.rand(3).tolist())


def make_runner(iteration, hub_name, interval=4):
    return SimpleNamespace(
        iter=iteration,
        max_iters=10,
        hooks=[CheckpointHook(interval=interval, by_epoch=False)],
        message_hub=MessageHub.get_instance(hub_name),
        train_dataloader=torch.utils.data.DataLoader([1, 2]),
        seed=0,
    )


def test_state_survives_safe_saving(tmp_path):
    torch.save(get_random_state(), tmp_path / "state.pth")
    expected = draw()
    set_random_state(torch.load(tmp_path / "state.pth", weights_only=True))
    assert draw() == expected


@pytest.mark.parametrize(("iteration", "is_stored"), [(3, True), (4, False), (7, True), (9, True)])
def test_stored_where_a_checkpoint_comes_next(iteration, is_stored):
    runner = make_runner(iteration, f"stored-{iteration}")
    RandomStateHook().after_train_iter(runner, 0)
    assert ("random_states" in runner.message_hub.runtime_info) is is_stored


def test_restored_once_before_the_first_step():
    runner = make_runner(3, "restored")
    RandomStateHook().after_train_iter(runner, 0)
    expected = draw()
    resumed = RandomStateHook()
    resumed.before_train_iter(runner, 0)
    assert draw() == expected
    resumed.before_train_iter(runner, 1)
    assert draw() != expected


def test_the_loader_leaves_the_state_alone():
    runner = make_runner(0, "loader")
    RandomStateHook().before_train(runner)
    before = torch.get_rng_state()
    list(runner.train_dataloader)
    assert torch.equal(torch.get_rng_state(), before)


def test_comes_before_the_checkpoint():
    from mmengine.hooks.hook import Hook
    from mmengine.runner import get_priority

    assert get_priority(RandomStateHook.priority) < get_priority(CheckpointHook.priority)
    assert isinstance(RandomStateHook(), Hook)
