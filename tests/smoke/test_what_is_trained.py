"""Full tuning, and the connector alone: what moves, what keeps every bit, and what becomes of the checkpoint."""

from pathlib import Path

import pytest
import torch

from pallava.model import PALLaVAForConditionalGeneration
from pallava.model.loading import ADAPTER_FOLDER
from pallava.model.weights import read_weights
from tests.smoke.test_four_bit import QUESTION, pallava
from tests.smoke.test_training import train
from tests.tiny.training import save_data, save_parts, write_config

pytestmark = [pytest.mark.smoke, pytest.mark.slow]
OPTIONS = {
    "full": ("model.freeze_llm=False", "model.llm_lora=None", "optim_wrapper.optimizer.lr=2e-5"),
    "connector": ("model.llm_lora=None",),
}
PARTS = {"full": {"llm", "connector"}, "connector": {"connector"}}


@pytest.mark.parametrize("kind", OPTIONS)
def test_what_is_trained(kind: str, tmp_path: Path) -> None:
    parts, data = save_parts(tmp_path), save_data(tmp_path)
    config = write_config("pallava_instruction_tuning", parts, data, tmp_path / "tiny.py", num_steps=4)
    train(config, tmp_path / "run", "--seed", "1024", "--cfg-options", *OPTIONS[kind])
    trained = read_weights(tmp_path / "run" / "iter_4.pth")
    assert {key.split(".")[0] for key in trained} == PARTS[kind]

    pallava("convert", tmp_path / "run", tmp_path / "model")
    assert not (tmp_path / "model" / ADAPTER_FOLDER).exists()
    written, before = (
        read_weights(tmp_path / "model"),
        {
            **{f"llm.{key}": value for key, value in read_weights(parts["llm"]).items()},
            **{f"visual_encoder.{key}": value for key, value in read_weights(parts["plip"]).items()},
        },
    )
    assert {key.split(".")[0] for key in written} == {"llm", "connector", "visual_encoder"}
    assert all(torch.equal(written[key], value) for key, value in trained.items())
    moved = {key.split(".")[0] for key, value in before.items() if not torch.equal(written[key], value)}
    assert moved == PARTS[kind] - {"connector"}
    if kind == "full":  # all of it
        layers = [key for key in trained if key.startswith("llm.")]
        assert {*layers} == {key for key in before if key.startswith("llm.")}
        assert not [key for key in layers if torch.equal(trained[key], before[key])]
    assert PALLaVAForConditionalGeneration.from_pretrained(tmp_path / "model")
    asked = ("--image", data["sample"], "--question", QUESTION, "--max-new-tokens", 4)
    assert pallava("chat", tmp_path / "model", *asked).stdout.strip()
