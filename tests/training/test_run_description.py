"""A run's config as a model card tells it."""

from pathlib import Path

import pytest
from mmengine.config import Config

from pallava.config_files import find_config
from pallava.model.model_card import write_model_card
from pallava.model.run_description import PUBLISHED_TRAINING, describe_run


@pytest.mark.parametrize("name", ["pallava_domain_alignment", "pallava_instruction_tuning"])
def test_a_config_is_described(name: str) -> None:
    told = describe_run(Config.fromfile(find_config(name)))
    assert told["data"] == [f"./data/{name.removeprefix('pallava_')}.jsonl"]
    assert told["config"] == f"{name}.py"
    assert told["prompt template"] == "llama3_chat"
    assert told["learning rate"] > 0
    assert told["LoRA rank"] > 0
    assert "epochs" in told or "steps" in told


def test_a_card_takes_both(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    told = describe_run(Config.fromfile(find_config("pallava_instruction_tuning")))
    assert "| instruction_tuning.jsonl |" in write_model_card(tmp_path, training=told).read_text()
    assert (
        "| PathVQA, training questions | 19755 |" in write_model_card(tmp_path, training=PUBLISHED_TRAINING).read_text()
    )
