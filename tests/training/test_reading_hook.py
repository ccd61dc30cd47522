"""The entropy of the connector's attention while it is trained."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.logging import MessageHub

from pallava.model.attention import attention_entropy
from pallava.training.hooks.reading import TileReadingHook
from tests.tiny import golden
from tests.training.test_model import tiny


def log(hook: TileReadingHook, model: torch.nn.Module, steps: int) -> list[float]:
    hub = MessageHub.get_instance(f"reading {id(hook)}")
    runner = SimpleNamespace(iter=0, model=SimpleNamespace(module=model), message_hub=hub)  # as DeepSpeed wraps it
    for runner.iter in range(steps):
        hook.before_train_iter(runner, runner.iter)
        model(golden.batch(golden.samples()))
        hook.after_train_iter(runner, runner.iter)
    history = hub.log_scalars.get("train/tile_entropy")
    return [] if history is None else history.data[0].tolist()


def test_it_is_that_of_the_first_image_now_and_then() -> None:
    model, sample = tiny().eval(), golden.samples()[0]
    found = log(TileReadingHook(2), model, 5)
    tokens = model.network.encode_tiles(sample["tiles"])
    expected = attention_entropy(model.connector, tokens[:1], tokens[1:].flatten(0, 1)[None]).mean().item()
    assert found == pytest.approx([expected] * 2)
    assert not model.connector._forward_pre_hooks


@pytest.mark.parametrize(("cross", "interval"), [(False, 1), (True, 0)])
def test_nothing_to_log(cross: bool, interval: int) -> None:
    assert log(TileReadingHook(interval), tiny(cross), 2) == []
