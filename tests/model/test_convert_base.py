"""The base language model in a conversion: its type, its quantization, its own code, and what would not open."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from pallava.errors import PallavaError
from pallava.four_bit import SETTINGS, find_settings
from pallava.model import PALLaVAConfig, PALLaVAForConditionalGeneration, PALLaVAProcessor, load
from pallava.model.convert import convert_run, training_config
from pallava.model.versions import INSTALL_BITSANDBYTES
from pallava.model.weights import read_weights
from pallava.training.model import PALLaVAModel
from tests.tiny import training as tiny
from tests.tiny.my_base import OWN_CODE

Run = tuple[dict[str, Any], dict[str, Any]]


@pytest.fixture
def parts(tmp_path: Path) -> dict[str, Path]:
    return tiny.save_parts(tmp_path)


def run(
    parts: dict[str, Path], lora: dict[str, Any] | None = None, **llm: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the config of a run, and the weights that it trained."""
    base = {"pretrained_model_name_or_path": str(parts["llm"])}
    lora = {"type": "peft.LoraConfig", "r": 2, "task_type": "CAUSAL_LM", "init_lora_weights": False, **(lora or {})}
    encoder = {"source": str(parts["plip"])}
    model = {
        "type": "pallava.training.model.PALLaVAModel",
        "llm": {"type": "pallava.model.loading.load_llm", **base},
        "visual_encoder": {"type": "pallava.model.load_plip", **encoder},
        "connector": {"type": "pallava.model.connectors.build_connector", "num_hidden_layers": 1},
        "llm_lora": lora,
    }
    torch.manual_seed(5)
    trained = PALLaVAModel(**{key: value for key, value in model.items() if key != "type"})
    model["llm"] |= llm
    dataset = {
        "tokenizer": {"type": "pallava.model.loading.load_tokenizer", **base},
        "image_processor": {"type": "pallava.model.load_image_processor", **encoder},
    }
    return training_config({"model": model, "train_dataloader": {"dataset": dataset}}), trained.state_dict()


def convert(run: Run, out: Path, **options: Any) -> Path:
    convert_run(*run, out, source="test", **{"merge": True, **options})
    return out


def llm_types(out: Path) -> set[torch.dtype]:
    return {value.dtype for key, value in read_weights(out).items() if key.startswith("llm.")}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(
    "llm",
    [
        {},
        {"torch_dtype": "float32"},
        {"type": "transformers.AutoModelForCausalLM.from_pretrained"},
        {"attn_implementation": "flash_attention_2"},  # which the converting machine need not have
    ],
)
def test_the_base_keeps_the_type_of_its_files(
    parts: dict[str, Path], tmp_path: Path, dtype: torch.dtype, llm: dict[str, Any]
) -> None:
    AutoModelForCausalLM.from_pretrained(parts["llm"], torch_dtype=dtype).save_pretrained(parts["llm"])
    out = convert(run(parts, **llm), tmp_path / "out")
    assert llm_types(out) == {dtype}
    opened, _ = load(out, "cpu")
    assert opened.llm.dtype == dtype


def test_a_type_that_is_given_rounds_once(parts: dict[str, Path], tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(parts["llm"], torch_dtype=torch.bfloat16)
    base.save_pretrained(parts["llm"])
    out = convert(run(parts), tmp_path / "out", dtype=torch.float32)
    assert llm_types(out) == {torch.float32}
    merged = read_weights(out)["llm.model.layers.0.mlp.up_proj.weight"]
    assert not torch.equal(merged, merged.bfloat16().float())
    assert llm_types(convert(run(parts), tmp_path / "half", dtype=torch.float16)) == {torch.float16}


@pytest.mark.parametrize("merge", [True, False])
def test_a_run_with_a_base_in_8_bit_becomes_whole(parts: dict[str, Path], tmp_path: Path, merge: bool) -> None:
    llm = {"load_in_8bit": True, "type": "transformers.AutoModelForCausalLM.from_pretrained"}
    whole, quantized = (
        convert(run(parts, **each), tmp_path / name, merge=merge) for name, each in (("a", {}), ("b", llm))
    )
    assert "quantization_config" not in (quantized / "config.json").read_text()
    ids = torch.arange(4, 20)[None]
    with torch.no_grad():
        logits = [load(folder, "cpu")[0](ids).logits for folder in (whole, quantized)]
    assert torch.equal(*logits)


FP4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": False}
QUANTIZED = [
    ({"load_in_4bit": True}, SETTINGS),
    ({"load_in_4bit": True, "type": "transformers.AutoModelForCausalLM.from_pretrained"}, FP4),
    ({"quantization_config": {"type": "transformers.BitsAndBytesConfig", "load_in_4bit": True}}, FP4),
]


@pytest.mark.parametrize(("llm", "settings"), QUANTIZED)
def test_a_run_in_4_bit_keeps_its_base(
    parts: dict[str, Path], tmp_path: Path, llm: dict[str, Any], settings: dict[str, Any]
) -> None:
    """It is neither merged with weights that it did not see, nor opened beside them."""
    trained = run(parts, **llm)
    out = convert(trained, tmp_path / "out", merge=False)
    assert PALLaVAConfig.from_pretrained(out).base_quantization == settings
    for ask in (lambda: load(out, "cpu"), lambda: convert(trained, tmp_path / "merged")):
        with pytest.raises(PallavaError, match="bitsandbytes==0.50.2"):
            ask()
    assert not (tmp_path / "merged").exists()
    with pytest.raises(PallavaError, match="quantized already"):
        load(out, "cpu", load_in_4bit=True)


def test_without_4_bit_nothing_is_said_of_it(parts: dict[str, Path], tmp_path: Path) -> None:
    out = convert(run(parts, load_in_4bit=False), tmp_path / "out", merge=False)
    assert PALLaVAConfig.from_pretrained(out).base_quantization is None
    load(out, "cpu")
    with pytest.raises(PallavaError, match="bitsandbytes==0.50.2"):
        load(out, "cpu", load_in_4bit=True)


@pytest.mark.parametrize("is_tied", [True, False])
def test_a_merged_folder_has_the_bases_ties_sizes_and_ends(
    parts: dict[str, Path], tmp_path: Path, is_tied: bool
) -> None:
    base = AutoModelForCausalLM.from_pretrained(parts["llm"], tie_word_embeddings=is_tied)
    base.generation_config.update(do_sample=True, temperature=0.3, eos_token_id=[3, 4])
    base.save_pretrained(parts["llm"])
    for lora in ({}, {"target_modules": ["lm_head", "q_proj"]}):
        trained = run(parts, lora)
        with torch.no_grad():
            merged, kept = (
                load(convert(trained, tmp_path / f"{bool(lora)}{merge}", merge=merge), "cpu")[0]
                for merge in (True, False)
            )
            ids = torch.arange(4, 20)[None]
            torch.testing.assert_close(merged(ids).logits, kept(ids).logits, atol=1e-5, rtol=0)
        assert merged.config.text_config.tie_word_embeddings is (is_tied and not lora)
        assert merged.config.text_config.vocab_size == base.config.vocab_size
        assert merged.generation_config.do_sample is False
        assert set(merged.generation_config.eos_token_id) == {3, 4, 5}


@pytest.mark.parametrize("part", ["llm", "tokenizer"])
def test_code_of_its_own_is_refused(parts: dict[str, Path], tmp_path: Path, part: str) -> None:
    trained = run(parts)
    name = "config.json" if part == "llm" else "tokenizer_config.json"
    values = json.loads((parts["llm"] / name).read_text())
    (parts["llm"] / name).write_text(json.dumps({**values, **OWN_CODE[part]}))
    shutil.copy(Path(__file__).parents[1] / "tiny" / "my_base.py", parts["llm"] / "my_base.py")
    holder = trained[0]["model"] if part == "llm" else trained[0]["train_dataloader"]["dataset"]
    holder[part]["trust_remote_code"] = True
    with pytest.raises(PallavaError, match="trust_remote_code"):
        convert(trained, tmp_path / "out")
    with pytest.raises(PallavaError, match="of its own code"):
        convert(trained, tmp_path / "out", trust_remote_code=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("builder", "reason"),
    [
        ("open_larger", "does not fit"),
        ("build_nameless", "does not name its base"),
    ],
)
def test_an_adapter_that_would_not_open_is_not_written(
    parts: dict[str, Path], tmp_path: Path, builder: str, reason: str
) -> None:
    """The base that a function of the user's builds is another than its folder holds; merged, it is whole."""
    from tests.tiny import my_base

    llm = {"type": getattr(my_base, builder), "folder": str(parts["llm"])}
    values, _ = run(parts)
    values["model"]["llm"] = {**llm, "type": f"tests.tiny.my_base.{builder}"}
    model = {key: value for key, value in values["model"].items() if key != "type"}
    state = PALLaVAModel(**{**model, "llm": llm}).state_dict()
    with pytest.raises(PallavaError, match=reason):
        convert((values, state), tmp_path / "out", merge=False, trust_remote_code=True)
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]
    opened, _ = load(convert((values, state), tmp_path / "out", trust_remote_code=True), "cpu")
    assert opened.llm.get_input_embeddings().num_embeddings == opened.config.text_config.vocab_size


def test_a_tokenizer_with_too_many_tokens_is_refused(parts: dict[str, Path], tmp_path: Path) -> None:
    trained = run(parts)
    tiny.save_tokenizer(parts["llm"], ["blue"])
    with pytest.raises(PallavaError, match="blue"):
        convert(trained, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_old_folder_stays_where_the_new_one_would_not_open(
    parts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = run(parts)
    out = convert(trained, tmp_path / "out")
    before = (out / "config.json").read_bytes()

    def save_less(self: Any, folder: Path, **_: Any) -> None:
        self.tokenizer.save_pretrained(folder)

    monkeypatch.setattr(PALLaVAProcessor, "save_pretrained", save_less)
    with pytest.raises(PallavaError, match="nothing was written"):
        convert(trained, out)
    assert (out / "config.json").read_bytes() == before
    assert PALLaVAForConditionalGeneration.from_pretrained(out)


def test_the_command_for_4_bit_installs_what_the_constraints_name() -> None:
    (line,) = (Path(__file__).parents[2] / "constraints" / "four_bit.txt").read_text().splitlines()[1:]
    assert f"pip install --no-deps {line}" == INSTALL_BITSANDBYTES
    pages = (
        "docs/training.md",
        *(f"configs/pallava_{stage}.py" for stage in ("domain_alignment", "instruction_tuning")),
    )
    for page in pages:
        assert line.partition("==")[2] in (Path(__file__).parents[2] / page).read_text(encoding="utf-8")


@pytest.mark.parametrize("change", [{"load_in_4bit": False}, {"bnb_4bit_quant_type": "zz"}, {"more": 1}])
def test_a_quantization_that_is_not_ours_is_refused(change: dict[str, Any]) -> None:
    for settings in ({**SETTINGS, **change}, "nf4"):
        with pytest.raises(PallavaError, match="base_quantization in config.json"):
            PALLaVAConfig(base_quantization=settings)
    assert PALLaVAConfig(base_quantization=SETTINGS).base_quantization == SETTINGS


def test_an_adapter_on_4_bit_is_not_opened_beside_another_base(parts: dict[str, Path], tmp_path: Path) -> None:
    out = convert(run(parts, load_in_4bit=True), tmp_path / "out", merge=False)
    base = shutil.copytree(parts["llm"], tmp_path / "quantized")
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(PallavaError, match="quantized already"):
        load(out, "cpu", base_llm=base)


def test_layers_that_4_bit_leaves_out_are_refused() -> None:
    given = {"load_in_4bit": True, "llm_int8_skip_modules": ["o_proj"]}
    with pytest.raises(PallavaError, match="llm_int8_skip_modules"):
        find_settings({"quantization_config": given})
