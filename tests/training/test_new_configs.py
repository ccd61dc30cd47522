"""`pallava config new`: presets, what is written, and the sizes that fit a card."""

import dataclasses
import io
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config
from transformers import AutoTokenizer

from pallava.cli import main
from pallava.config_files import find_config
from pallava.errors import PallavaError
from pallava.io.stacks import installed_stack
from pallava.new_configs import PRESETS, STAGES, NewConfig, find_language_model, replace_settings
from pallava.prompts import choose_template, end_token_ids
from pallava.training.doctor import sizes
from pallava.training.doctor.memory import Memory
from tests.test_chat_templates import make_tokenizer
from tests.tiny.training import save_data, save_parts

_BILLIONS = {  # of parameters of the language model, as its model card says
    "llama-3-8b": 8.03,
    "llama-3.1-8b": 8.03,
    "qwen2.5-7b": 7.62,
    "qwen3-8b": 8.19,
    "mistral-7b": 7.25,
    "medgemma-4b": 3.88,
    "smollm2-1.7b": 1.71,
}
_ENDS = {  # a tokenizer in short of its family, and the token at which its answers end
    "llama-3-8b": ("llama3", "<|eot_id|>"),
    "llama-3.1-8b": ("llama3", "<|eot_id|>"),
    "qwen2.5-7b": ("qwen2.5", "<|im_end|>"),
    "qwen3-8b": ("qwen3", "<|im_end|>"),
    "mistral-7b": ("mistral", "</s>"),
    "medgemma-4b": ("gemma", "<end_of_turn>"),
    "smollm2-1.7b": ("qwen", "<|im_end|>"),
}
_FAST = ("llama-3-8b", "smollm2-1.7b")
_LORA = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("parts")
    found = {**save_parts(folder), **save_data(folder), "captions": folder / "captions.json"}
    found["captions"].write_text('[{"image": "0.png", "caption": "a gland"}]', encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(found["llm"])
    tokenizer.chat_template = make_tokenizer("qwen").chat_template
    tokenizer.save_pretrained(found["llm"])
    return found


def make_config(parts: dict[str, Path], **values: Any) -> NewConfig:
    paths = {"llm": parts["llm"], "encoder": parts["plip"], "data": parts["rows"], "images": parts["images"]}
    known = {"stage": "alignment", "prompt_template": "tokenizer", **{key: str(path) for key, path in paths.items()}}
    return NewConfig(**{**known, **values})


def words_of(parts: dict[str, Path], **values: Any) -> list[str]:
    flags = {"llm": parts["llm"], "encoder": parts["plip"], "data": parts["rows"], "images": parts["images"]}
    flags |= {"cards": 1, "card-gb": 80, **values}
    return [word for key, value in flags.items() if value is not None for word in (f"--{key}", str(value))]


def mark(name: str) -> list[pytest.MarkDecorator]:
    if PRESETS[name].transformers != "4.48":
        return [
            pytest.mark.newer,
            pytest.mark.skipif(installed_stack().name != "newer", reason="run `make test-newer`"),
        ]
    return [] if name in _FAST else [pytest.mark.slow]


@pytest.mark.parametrize("name", [pytest.param(name, marks=mark(name)) for name in PRESETS])
def test_a_preset_is_built_without_its_weights(name: str, parts: dict[str, Path]) -> None:
    with sizes._open(make_config(parts, llm=PRESETS[name].hub), 80, PRESETS[name]) as case:
        model = case.model
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    base = sum(each.numel() for key, each in model.llm.named_parameters() if "lora_" not in key)
    if model.llm.config.tie_word_embeddings:  # which on the meta device are two
        base -= model.llm.get_output_embeddings().weight.numel()
    assert base / 1e9 == pytest.approx(_BILLIONS[name], abs=0.006)
    adapted = Counter(key.split(".")[-4] for key, _ in model.llm.named_parameters() if "lora_A" in key)
    assert adapted == dict.fromkeys(_LORA, PRESETS[name].config["num_hidden_layers"])


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_a_template_whose_end_is_taught(name: str) -> None:
    family, end = _ENDS[name]
    tokenizer = make_tokenizer(family)
    template = choose_template(PRESETS[name].prompt_template, tokenizer)
    assert tokenizer.convert_tokens_to_ids(end) in end_token_ids(tokenizer, template)
    assert template.suffix.startswith(end)


def test_a_preset_that_this_transformers_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "qwen3-8b", dataclasses.replace(PRESETS["qwen3-8b"], transformers="99"))
    with pytest.raises(PallavaError, match=r"newer stack.*tokenizers=="):
        find_language_model("qwen3-8b")


@pytest.mark.parametrize("name", ["own.yaml", "v1.0", 'a"b.py', "a\\Nb.py"])
def test_names_that_no_trainer_opens(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "new", str(tmp_path / name)]) == 2
    assert name in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_folder_comes_before_a_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("llama-3-8b").mkdir()
    assert find_language_model("llama-3-8b") == ("llama-3-8b", None)
    with pytest.raises(PallavaError, match="got ''"):
        find_language_model("")


def test_a_preset_goes_by_its_name_on_the_hub() -> None:
    preset = PRESETS["mistral-7b"]
    assert find_language_model("Mistral-7B") == find_language_model(preset.hub) == (preset.hub, preset)
    assert find_language_model("owner/model") == ("owner/model", None)


@pytest.mark.parametrize("stage", STAGES)
def test_only_the_settings_differ_from_the_published_config(stage: str, parts: dict[str, Path], tmp_path: Path) -> None:
    config = make_config(
        parts, stage=stage, stage1="work_dirs/é", cards=2, in_4bit=True, lora_rank=16, batch_size=3, images='a "b"\\'
    )
    (tmp_path / "own.py").write_text(config.write("own.py"), encoding="utf-8")
    new, old = (Config.fromfile(path).to_dict() for path in (tmp_path / "own.py", find_config(STAGES[stage])))
    dataset, model, chat = new["train_dataloader"]["dataset"], new["model"], new["default_hooks"]["sample_chat"]
    for part in (dataset["tokenizer"], model["llm"], chat["tokenizer"], new["tokenizer"]):
        assert part["pretrained_model_name_or_path"] == str(parts["llm"])
    assert model["llm"]["load_in_4bit"]
    assert (model["llm_lora"]["r"], model["llm_lora"]["lora_alpha"]) == (16, 32)
    assert dataset["image_folder"] == 'a "b"\\'
    assert dataset["prompt_template"] == chat["prompt_template"] == "tokenizer"
    assert new["train_dataloader"]["batch_size"] == new["train_dataloader"]["sampler"]["batch_size"] == 3
    assert new["optim_wrapper"]["accumulative_counts"] == {"alignment": 96, "instruction": 64}[stage]
    assert model["pretrained_pth"] == ("work_dirs/é" if stage == "instruction" else old["model"]["pretrained_pth"])
    assert {key: new[key] for key in ("param_scheduler", "train_cfg", "env_cfg")} == {
        key: old[key] for key in ("param_scheduler", "train_cfg", "env_cfg")
    }


def test_a_setting_that_the_config_lacks() -> None:
    with pytest.raises(PallavaError, match="other_name"):
        replace_settings("a = 1\n", {"other_name": 2})


@pytest.mark.slow
def test_what_is_written_passes_the_doctor(
    parts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["config", "new", "own.py", *words_of(parts)]) == 0
    assert capsys.readouterr().out == "own.py\n"
    few = ("--cfg-options", "optim_wrapper.accumulative_counts=1")  # rows
    assert main(["doctor", "own.py", "--deepspeed", sizes.RUNNER, "--card-gb", "80", "--json", *few]) == 0
    report = json.loads(capsys.readouterr().out)
    assert any("'tokenizer'" in each["text"] for each in report["findings"] if each["check"] == "tokens")
    planned = sizes.fit_card(make_config(parts), 80)[1]
    own = next(each for each in report["memory"] if each["runner"] == "ZeRO-1")
    assert planned.total >= own["total"]  # of rows that do not fill the context


def test_the_sizes_follow_the_card(parts: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    row = 10**9
    monkeypatch.setattr(sizes, "count_activations", lambda model, batch: row)
    config, memory = sizes.fit_card(make_config(parts), 80)
    assert (config.batch_size, config.in_4bit, config.lora_rank) == (6, False, 128)
    rest = memory.total - 6 * row
    config, memory = sizes.fit_card(make_config(parts), (rest + 5.5 * row) / 0.9e9)
    assert (config.batch_size, config.in_4bit) == (4, False)
    assert memory.total == rest + 4 * row
    config, _ = sizes.fit_card(make_config(parts), (rest + row - 100_000) / 0.9e9)
    assert (config.batch_size, config.in_4bit) == (1, True)
    for cards, batch_size in ((200, 2), (1000, 1)):  # no more rows a step than published
        assert sizes.fit_card(make_config(parts, cards=cards), 80)[0].batch_size == batch_size
    with pytest.raises(PallavaError, match=r"card must have 4 GB.*got 1\.5"):
        sizes.fit_card(make_config(parts), 1.5)


def test_the_batch_that_is_planned_fills_the_context(parts: dict[str, Path]) -> None:
    with sizes._open(make_config(parts), 80, None) as case:
        batch = case.longest_batch["data"]
        num_visual_tokens = case.model.network.config.num_visual_tokens
    assert batch["input_ids"].shape[1] - 1 + num_visual_tokens == 2048
    assert batch["pixel_values"].shape == (9, 3, 32, 32)


@pytest.mark.slow
@pytest.mark.parametrize(("card_gb", "in_4bit"), [(80, False), (24, True)])
def test_an_8b_model_is_in_4_bit_on_a_small_card(card_gb: float, in_4bit: bool, parts: dict[str, Path]) -> None:
    preset = PRESETS["llama-3-8b"]
    config, memory = sizes.fit_card(make_config(parts, llm=preset.hub, cards=8), card_gb, preset)
    assert (config.in_4bit, config.batch_size) == (in_4bit, 3 if in_4bit else 6)
    assert 5e9 < memory.total < 0.9e9 * card_gb


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({"llm": None}, "--llm"),
        ({"llm": "gpt-17"}, "llama-3-8b.*'gpt-17'"),
        ({"encoder": "nowhere"}, "--encoder.*'nowhere'"),
        ({"data": "nowhere"}, "--data.*'nowhere'"),
        ({"images": None}, "--images"),
        ({"cards": 0}, "cards"),
        ({"cards": None}, "--cards"),
        ({"card-gb": "nan"}, "--card-gb.*nan"),
        ({"card-gb": -3}, "--card-gb.*-3"),
        ({"stage": "instruction"}, "--stage1"),
        ({"stage": "instruction", "stage1": "nowhere"}, "--stage1.*'nowhere'"),
        ({"stage1": "work_dirs/run"}, "--stage instruction"),
        ({"images": "rows"}, "--images must be a folder"),
        ({"data": "captions"}, r"--data.*conversations.*caption"),
        ({"data": "images"}, r"--data.*without any \*\.json"),
        ({"card-gb": 0.5}, "0.5"),
        ({"prompt-template": "nonsense"}, "llama3_chat.*'nonsense'"),
    ],
)
def test_choices_that_will_not_do(
    changed: dict[str, Any],
    found: str,
    parts: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    monkeypatch.setattr(sizes, "count_activations", lambda model, batch: 0)
    changed = {flag: parts.get(str(value), value) for flag, value in changed.items()}
    assert main(["config", "new", str(tmp_path / "own.py"), *words_of(parts, **changed)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert re.search(found, error)
    assert not (tmp_path / "own.py").exists()


def fake_fit(config: NewConfig, card_gb: float, preset: Any) -> tuple[NewConfig, Memory]:
    return config, Memory("ZeRO-1", "all", 1, 1, 1, 1, 1)


def test_an_existing_config_stays(
    parts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sizes, "fit_card", fake_fit)
    target = tmp_path / "pallava_domain_alignment.py"
    target.write_text("mine")
    assert main(["config", "new", str(tmp_path), *words_of(parts)]) == 2
    assert str(target) in capsys.readouterr().err
    assert target.read_text() == "mine"
    assert main(["config", "new", str(tmp_path), *words_of(parts), "--overwrite"]) == 0
    assert str(parts["llm"]) in target.read_text()


def test_what_is_not_given_is_asked_for(
    parts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = ["smollm2-1.7b", parts["plip"], parts["rows"], parts["images"], "2", "24"]
    typed = io.StringIO("".join(f"{each}\n" for each in answers))
    typed.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr("sys.stdin", typed)
    monkeypatch.setattr(sizes, "fit_card", fake_fit)
    assert main(["config", "new", str(tmp_path / "own.py")]) == 0
    config = Config.fromfile(tmp_path / "own.py")
    assert config.llm_name_or_path == PRESETS["smollm2-1.7b"].hub
    assert config.prompt_template == "qwen_chat"
    assert config.sample_images == [str(parts["images"] / "0.png")]
    assert "medgemma-4b" in capsys.readouterr().err


def test_a_wrong_answer_is_asked_again(
    parts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = words_of(parts, cards=None, **{"card-gb": None})
    typed = io.StringIO("eight\n\n-1\n2\n80 GB\n24\n")
    typed.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr("sys.stdin", typed)
    monkeypatch.setattr(sizes, "fit_card", fake_fit)
    assert main(["config", "new", str(tmp_path / "own.py"), *flags]) == 0
    error = capsys.readouterr().err
    assert all(f"got {found}" in error for found in ("'eight'", "''", "-1", "'80 GB'"))
    assert "--nproc 2 --card-gb 24" in error
    assert main(["config", "new", str(tmp_path / "other.py"), *flags]) == 2  # the end of what is typed
    assert "--cards" in capsys.readouterr().err
    assert not (tmp_path / "other.py").exists()


def test_a_step_that_is_too_large_is_named(
    parts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sizes, "fit_card", fake_fit)
    for cards, is_named in ((8, False), (1000, True)):
        assert main(["config", "new", str(tmp_path / f"{cards}.py"), *words_of(parts, cards=cards)]) == 0
        assert ("fewer cards" in capsys.readouterr().err) == is_named


def test_medgemma_is_its_text_part(
    parts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(PRESETS, "medgemma-4b", dataclasses.replace(PRESETS["medgemma-4b"], transformers="4.0"))
    monkeypatch.setattr(sizes, "fit_card", fake_fit)
    assert main(["config", "new", str(tmp_path / "own.py"), *words_of(parts, llm="medgemma-4b")]) == 0
    assert "text part" in capsys.readouterr().err
