"""The command on published weights, and on what DeepSpeed leaves of a training that began with them."""

import shutil
from pathlib import Path

import pytest
from mmengine.config import Config

from pallava.cli import main
from tests.model.test_published import CHECKPOINT, assert_recorded
from tests.smoke.test_training import train
from tests.tiny import golden
from tests.tiny.training import save_data, save_parts, write_config

pytestmark = pytest.mark.smoke


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The recorded language model with a tokenizer of a few words, and the recorded encoder as it was published."""
    folder = tmp_path_factory.mktemp("parts")
    save_parts(folder)
    shutil.rmtree(folder / "plip")
    golden.llm().save_pretrained(folder / "llm")
    return {"llm": folder / "llm", "plip": golden.published_plip_folder(folder / "plip")}


def convert(checkpoint: Path, out: Path, *words: str) -> None:
    assert main(["convert", str(checkpoint), str(out), *words]) == 0


def given(parts: dict[str, Path]) -> list[str]:
    words = ["--llm", str(parts["llm"]), "--visual-encoder", str(parts["plip"])]
    return [*words, "--connector-heads", "4", "--prompt-template", "qwen_chat"]


def test_published_weights_in_their_archive(
    parts: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    convert(Path(f"{CHECKPOINT}.tar.gz"), tmp_path / "out", *given(parts), "--merge")
    printed = capsys.readouterr().out
    assert "LoRA: rank 4 on 14 layers" in printed
    assert "cross-attention: present in 2 of 2 layers" in printed
    assert_recorded(tmp_path / "out")


@pytest.mark.slow
def test_a_deepspeed_folder_made_by_training(parts: dict[str, Path], tmp_path: Path) -> None:
    """Training begins with the published weights and changes nothing, as its learning rate is 0."""
    data = save_data(tmp_path, num_rows=2)
    path = write_config("pallava_instruction_tuning", parts, data, tmp_path / "config.py", num_steps=2)
    config = Config.fromfile(path)
    config.model.pretrained_pth = str(CHECKPOINT)
    config.model.connector.update(num_hidden_layers=2, num_attention_heads=4, intermediate_size=32)
    config.model.llm_lora.update(r=4, lora_alpha=8)
    config.optim_wrapper.optimizer.lr = 0.0
    config.param_scheduler = []
    config.dump(path)
    train(path, tmp_path / "run", "--deepspeed", "deepspeed_zero2", "--seed", "1024")
    checkpoint = tmp_path / "run" / "iter_2.pth"
    assert (checkpoint / "mp_rank_00_model_states.pt").is_file()
    convert(checkpoint, tmp_path / "by its config")
    alone = Path(shutil.move(checkpoint, tmp_path / "far" / "away" / "iter_2.pth"))
    convert(alone, tmp_path / "without it", *given(parts), "--merge")
    for name in ("by its config", "without it"):
        assert_recorded(tmp_path / name)
