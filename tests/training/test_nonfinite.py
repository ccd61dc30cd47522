"""Steps that are not finite: skipped, counted, named, and the end if they go on."""

import logging
from types import SimpleNamespace

import pytest
import torch
from mmengine.logging import MessageHub

from pallava.errors import PallavaError
from pallava.training.hooks.nonfinite import SKIPPED, NonFiniteHook
from pallava.training.optimizer import FiniteAmpOptimWrapper, FiniteOptimWrapper


def wrap(weights, precision, monkeypatch):
    """Wrap an optimizer as on a GPU of that precision; scaling and skipping are the same on a CPU."""
    options = {"optimizer": torch.optim.AdamW(weights, lr=0.1), "clip_grad": {"max_norm": 1.0}}
    if precision == "float32":
        return FiniteOptimWrapper(**options)
    monkeypatch.setattr("mmengine.optim.optimizer.amp_optimizer_wrapper.is_cuda_available", lambda: True)
    wrapper = FiniteAmpOptimWrapper(dtype=precision, loss_scale={"enabled": False}, **options)
    if precision == "float16":
        wrapper.loss_scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    return wrapper


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("gradient", [float("nan"), float("inf"), -float("inf")])
def test_a_step_that_is_not_finite_changes_nothing(gradient, precision, monkeypatch):
    weights = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    wrapper = wrap(weights, precision, monkeypatch)
    for values, is_skipped in (((1.0, 1.0), False), ((1.0, gradient), True), ((1.0, 1.0), False)):
        before = [weight.detach().clone() for weight in weights]
        loss = sum((weight * value).sum() for weight, value in zip(weights, values, strict=True))
        wrapper.update_params(loss)
        assert wrapper.is_skipped is is_skipped
        assert all(torch.equal(a, b) for a, b in zip(before, weights, strict=True)) is is_skipped
        assert all(weight.grad is None for weight in weights)
    assert wrapper.optimizer.state[weights[0]]["step"] == 2


def make_runner(name):
    return SimpleNamespace(
        iter=0,
        max_iters=100,
        optim_wrapper=SimpleNamespace(_accumulative_counts=2, is_skipped=False, optimizer=None),
        model=None,
        message_hub=MessageHub.get_instance(f"nonfinite-{name}"),
        logger=logging.getLogger(name),
    )


def step(hook, runner, losses, *, is_skipped):
    runner.optim_wrapper.is_skipped = is_skipped
    for loss in losses:
        batch = {"data_samples": {"ids": [f"row{runner.iter}"]}}
        hook.after_train_iter(runner, 0, batch, {"loss": torch.tensor(loss)})
        runner.iter += 1


def test_names_the_rows_of_the_loss(caplog):
    hook, runner = NonFiniteHook(), make_runner("names")
    with caplog.at_level(logging.WARNING, "names"):
        step(hook, runner, [1.0, 1.0], is_skipped=False)
        step(hook, runner, [1.0, float("nan")], is_skipped=True)
    (message,) = caplog.messages
    assert "row3" in message
    assert "row2" not in message
    assert runner.message_hub.get_info(SKIPPED) == 1


def test_names_all_rows_where_only_the_gradient_is_not_finite(caplog):
    hook, runner = NonFiniteHook(), make_runner("gradient")
    with caplog.at_level(logging.WARNING, "gradient"):
        step(hook, runner, [1.0, 1.0], is_skipped=True)
    assert "row0, row1" in caplog.messages[0]


def test_ends_after_so_many_in_a_row_and_resumes_the_count():
    hook, runner = NonFiniteHook(max_in_a_row=3), make_runner("row")
    for is_skipped in (True, True, False, True, True):
        step(hook, runner, [1.0, float("nan") if is_skipped else 1.0], is_skipped=is_skipped)
    resumed = NonFiniteHook(max_in_a_row=3)
    with pytest.raises(PallavaError, match="3 optimizer steps in a row"):
        step(resumed, runner, [1.0, float("inf")], is_skipped=True)
    assert runner.message_hub.get_info(SKIPPED) == 5


def test_a_loss_scale_that_is_too_large_is_not_the_end():
    hook, runner = NonFiniteHook(max_in_a_row=2), make_runner("scale")
    runner.optim_wrapper.loss_scaler = SimpleNamespace(is_enabled=lambda: True)
    for _ in range(5):
        step(hook, runner, [1.0, 1.0], is_skipped=True)
    step(hook, runner, [float("nan"), 1.0], is_skipped=True)
    with pytest.raises(PallavaError, match="a loss"):
        step(hook, runner, [float("nan"), 1.0], is_skipped=True)
