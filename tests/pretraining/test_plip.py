import itertools

import pytest
import torch

from pallava.model import load_plip
from pallava.pretraining.plip import PretrainingSettings, train_plip

MODEL = {
    "embed_dim": 16,
    "vision_cfg": {"layers": 2, "width": 16, "head_width": 8, "patch_size": 8, "image_size": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.mark.parametrize("lock_text", [True, False])
def test_a_locked_text_tower_stays_as_it_was_and_the_encoder_learns(tmp_path, lock_text):
    batch = (torch.randn(4, 3, 16, 16), ["one", "two", "three", "four"])
    states = {}
    for steps in (0, 3):
        settings = PretrainingSettings("pallava-test", MODEL, steps, 1e-2, lock_text=lock_text, seed=1)
        losses = train_plip(itertools.repeat(batch), settings, tmp_path / str(steps))
        assert len(losses) == steps
        states[steps] = torch.load(tmp_path / str(steps) / "open_clip.pt")
    moved = {name for name, value in states[0].items() if not torch.equal(value, states[3][name])}
    assert "visual.conv1.weight" in moved
    assert any(name.startswith("transformer.") for name in moved) is not lock_text
    assert ("text_projection" in moved) is not lock_text
    assert ("token_embedding.weight" in moved) is not lock_text
    encoder = load_plip(tmp_path / "3" / "encoder")
    assert torch.equal(encoder.vision_model.embeddings.patch_embedding.weight, states[3]["visual.conv1.weight"])
