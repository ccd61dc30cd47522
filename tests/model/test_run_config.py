"""The config beside a checkpoint: found, read and described, and never executed."""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.config import Config
from transformers import AutoTokenizer, BitsAndBytesConfig, LlamaConfig

from pallava.config_files import find_config
from pallava.errors import PallavaError
from pallava.io.files import read_package_data
from pallava.model import published
from pallava.model.card import write_model_card
from pallava.model.convert import (
    CONFIG_FILE,
    convert_run,
    describe_run,
    find_training_config,
    training_config,
    write_training_config,
)
from pallava.model.loading import load_llm, load_tokenizer
from pallava.prompts import choose_template, get_template
from pallava.training.hooks.config import TrainingConfigHook, load_config
from tests.test_chat_templates import make_tokenizer

DUMPED = "model = dict(type='PALLaVAModel', llm=dict(type='load_llm'))\ntrain_dataloader = dict(dataset=dict())\n"
_PICKLED = {
    "type": "load_llm",
    "pretrained_model_name_or_path": "{llm}",
    "weights_only": False,
    "use_safetensors": False,
}
VALUES: dict[str, Any] = {"model": {"type": "PALLaVAModel"}, "train_dataloader": {"dataset": {}}}


@pytest.mark.parametrize("name", ["pallava_domain_alignment", "pallava_instruction_tuning"])
def test_a_config_survives_as_json(name: str, tmp_path: Path) -> None:
    config = Config.fromfile(find_config(name))
    write_training_config(tmp_path, config.to_dict(), config.filename)
    found = find_training_config(tmp_path / "iter_8.pth")
    assert found is not None
    assert found["config_file"] == f"{name}.py"
    assert found["model"]["llm"]["type"] == "pallava.model.loading.load_llm"
    assert found == load_config(find_config(name))
    config.dump(tmp_path / "dumped.py")
    assert {**load_config(tmp_path / "dumped.py"), "config_file": f"{name}.py"} == found


def test_callables_become_their_import_paths() -> None:
    values = {"a": load_llm, "b": (AutoTokenizer.from_pretrained, {1: {2}}), "c": Path("x"), "d": [None, True, 1.5]}
    found = training_config(values)
    assert json.loads(json.dumps(found)) == found
    assert found["a"] == "pallava.model.loading.load_llm"
    assert found["b"] == ["transformers.models.auto.tokenization_auto.AutoTokenizer.from_pretrained", {"1": [2]}]
    assert found["c"] == "x"
    assert found["d"] == [None, True, 1.5]


def test_types_of_a_quantized_language_model_can_be_read_back() -> None:
    found = training_config({"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.bfloat16})
    assert BitsAndBytesConfig(**found).bnb_4bit_compute_dtype == torch.bfloat16


@pytest.mark.parametrize("is_json_there", [True, False])
@pytest.mark.parametrize("program", ["{dumped}", "open({proof!r}, 'w')\n{dumped}", "import os\n{dumped}x = 1\n"])
def test_a_program_is_never_executed(program: str, is_json_there: bool, tmp_path: Path) -> None:
    proof = tmp_path / "executed"
    (tmp_path / "config.py").write_text(program.format(proof=str(proof), dumped=DUMPED))
    if is_json_there:
        write_training_config(tmp_path, VALUES, "config.py")
        assert find_training_config(tmp_path / "iter_8.pth") is not None
    else:
        with pytest.raises(PallavaError, match=r"config.py.*--config"):
            find_training_config(tmp_path / "iter_8.pth")
    assert not proof.exists()


def test_other_programs_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / "zero_to_fp32.py").write_text("import torch\n")  # DeepSpeed leaves it beside its checkpoints
    assert find_training_config(tmp_path / "iter_8.pth") is None


def test_one_of_several(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(DUMPED)
    write_training_config(tmp_path, VALUES, "a.py")
    assert find_training_config(tmp_path / "iter_8.pth") is not None
    (tmp_path / "b.py").write_text(DUMPED)
    with pytest.raises(PallavaError, match=r"several configs \(a.py, b.py\)"):
        find_training_config(tmp_path / "iter_8.pth")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not JSON"),
        ("[]", "train_dataloader.dataset"),
        ("{}", "train_dataloader.dataset"),
        ('{"train_dataloader": {"dataset": {"x": 1}}}', "model"),
        ('{"train_dataloader": {"dataset": {}}, "model": {}, "config_file": ["a.py"]}', "config_file.*a.py"),
    ],
)
def test_what_is_not_a_config(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / CONFIG_FILE).write_text(text)
    (tmp_path / "b.py").write_text(DUMPED)
    with pytest.raises(PallavaError, match=reason):
        find_training_config(tmp_path / "iter_8.pth")


class _Evil:
    def __init__(self, proof: Path):
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.proof),)


def _write_malicious_llm(folder: Path, proof: Path) -> str:
    """Write a language model whose weights are a pickle that makes a folder."""
    LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1).save_pretrained(folder)
    torch.save({"evil": _Evil(proof)}, folder / "pytorch_model.bin")
    return str(folder)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ({"type": "os.mkdir", "path": "{proof}"}, "os.mkdir"),
        ({"type": "PALLaVAModel", "llm": {"type": "os.mkdir", "path": "{proof}"}}, "os.mkdir"),
        ({"type": "PALLaVAModel", "llm": {"type": "evil.load_llm"}}, "evil.load_llm"),
        ({"type": "PALLaVAModel", "llm": {"type": "pallava.cli.main"}}, "pallava.cli.main"),
        ({"type": "PALLaVAModel", "llm": {"type": "pallava.model.weights.os.mkdir", "path": "{proof}"}}, "os.mkdir"),
        ({"type": "PALLaVAModel", "llm": {"type": "load_llm", "trust_remote_code": True}}, "trust_remote_code"),
        ({"type": "PALLaVAModel", "llm": {"type": "load_llm", "a": [{"trust_remote_code": 1}]}}, "trust_remote_code"),
        ({"type": "PALLaVAModel", "llm": _PICKLED}, "weights_only=False"),
        ({"type": "PALLaVAModel", "llm": {**_PICKLED, "weights_only": None}}, "weights_only=None"),
        ({"type": "PALLaVAModel", "llm": {"type": "load_llm", "a": [{"megatron_core": "os"}]}}, "megatron_core='os'"),
        ({"type": "PALLaVAModel", "llm": {"type": "LoraConfig", "megatron_config": {"a": 1}}}, "megatron_config"),
        ({"type": "PALLaVAModel", "llm": {"type": ["load_llm"]}}, "load_llm"),
        ({"type": "PALLaVAModel", "llm": {}}, "type"),
        ({"type": "PALLaVAModel"}, "llm must be"),
    ],
)
def test_a_config_beside_weights_names_only_our_parts(model: dict[str, Any], reason: str, tmp_path: Path) -> None:
    proof = tmp_path / "executed"
    llm = _write_malicious_llm(tmp_path / "llm", proof)
    values = json.loads(json.dumps({**VALUES, "model": model}).replace("{proof}", str(proof)).replace("{llm}", llm))
    with pytest.raises(PallavaError, match=reason):
        convert_run(values, {}, tmp_path / "out", merge=False, source="test")
    assert not proof.exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["pallava_domain_alignment", "pallava_instruction_tuning"])
def test_a_config_is_described(name: str) -> None:
    described = describe_run(load_config(find_config(name)))
    assert described["data"] == [f"./data/{name.removeprefix('pallava_')}.jsonl"]
    assert described["config"] == f"{name}.py"
    assert described["prompt template"] == "llama3_chat"
    assert described["learning rate"] > 0
    assert described["LoRA rank"] > 0
    assert "epochs" in described or "steps" in described


def test_a_card_takes_both(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    described = describe_run(load_config(find_config("pallava_instruction_tuning")))
    assert "| instruction_tuning.jsonl |" in write_model_card(tmp_path, training=described).read_text()
    card = write_model_card(tmp_path, training=read_package_data(published.__file__)["training"]).read_text()
    assert "| PathVQA, training questions | 19755 |" in card


def test_a_bare_config_is_described() -> None:
    assert describe_run(training_config(VALUES)) == {"data": []}


def test_the_marks_of_a_tokenizers_own_template_are_written(tmp_path: Path) -> None:
    """A later version of the tokenizer may have others."""
    tokenizer = make_tokenizer("qwen")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    dataset = {
        "prompt_template": "tokenizer",
        "tokenizer": {"type": load_tokenizer, "pretrained_model_name_or_path": str(tmp_path / "tokenizer")},
    }
    config = Config({"model": {"type": "PALLaVAModel"}, "train_dataloader": {"dataset": dataset}})
    TrainingConfigHook().before_run(SimpleNamespace(cfg=config, work_dir=tmp_path))
    found = find_training_config(tmp_path / "iter_8.pth")
    assert found is not None
    assert get_template(found["train_dataloader"]["dataset"]["prompt_template"]) == choose_template(
        "tokenizer", tokenizer
    )
