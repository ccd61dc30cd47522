"""Each family of language models trains, converts, opens again and answers under the newer stack: `make test-newer`.

The Makefile names the default stack's commands by PALLAVA_DEFAULT_BIN, for what must be equal under both.
"""

import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    Blip2QFormerConfig,
    Blip2QFormerModel,
    GenerationMixin,
    LlamaConfig,
    LlavaConfig,
    PreTrainedModel,
)

from pallava.io.stacks import installed_stack
from pallava.model import PALLaVAForConditionalGeneration, ask, load
from pallava.model.convert import convert
from tests.smoke import folder_answers, part_answers
from tests.smoke.test_four_bit import assert_equal_to_dequantized, compute, convert_both, install_bitsandbytes
from tests.smoke.test_newest_transformers import install_newest, run_beside
from tests.smoke.test_training import ROOT, STEPS, ZERO2, environment, losses, read, train
from tests.tiny import folders as tiny_folders
from tests.tiny.families import FAMILIES, NEEDS_NEWER, build_llm, save_parts
from tests.tiny.training import save_data, write_config

pytestmark = [pytest.mark.smoke, pytest.mark.newer]
QUESTION = "what is shown here ?"


@pytest.fixture(scope="module", autouse=True)
def _stack() -> None:
    if installed_stack().name != "newer":
        end = pytest.fail if "PALLAVA_DEFAULT_BIN" in os.environ else pytest.skip
        end("these tests need the newer stack; run `make test-newer`")


def write_family(folder: Path, family: str) -> Path:
    parts, data = save_parts(folder, family), save_data(folder, num_rows=24, num_without_image=8)
    return write_config("pallava_instruction_tuning", parts, data, folder / "tiny.py", num_steps=STEPS)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_trains_converts_and_answers(family: str, tmp_path: Path) -> None:
    config, run = write_family(tmp_path, family), tmp_path / "run"
    launch = {"NPROC_PER_NODE": "2"} if family == "qwen3" else {}
    # A random Gemma 3 has small embeddings, and learns at a high rate alone.
    words = ("--cfg-options", "optim_wrapper.optimizer.lr=3e-3") if family.startswith("gemma3") else ()
    train(config, run, *(ZERO2 if launch else ()), "--seed", "1024", *words, **launch)
    assert list(losses(run)) == [*range(1, STEPS + 1)]
    start, end = read(run, "start")[0], read(run, "end")[0]
    assert start["connector"] != end["connector"]
    assert start["frozen"] == end["frozen"]
    folders = {merge: tmp_path / f"merge_{merge}" for merge in (False, True)}
    for merge, folder in folders.items():
        convert(run, folder, merge=merge)
    answers = [ask_of(folder, tmp_path) for folder in folders.values()]
    torch.testing.assert_close(answers[0][1], answers[1][1], atol=1e-4, rtol=0)
    assert answers[0][0] == answers[1][0]
    if family not in NEEDS_NEWER:
        assert_equal_to_default(config, run, tmp_path)


def test_qwen3_trains_in_4_bit(tmp_path: Path) -> None:
    four_bit, config = install_bitsandbytes(tmp_path / "packages"), write_family(tmp_path, "qwen3")
    options = ("model.llm.load_in_4bit=True", "model.llm_lora.init_lora_weights=gaussian")
    rate = "optim_wrapper.optimizer.lr=0.02"  # or eight steps would hardly move the answers
    train(config, tmp_path / "run", "--seed", "1024", "--cfg-options", *options, rate, **four_bit)
    assert_equal_to_dequantized(compute(config, convert_both(tmp_path / "run", tmp_path, four_bit), four_bit))


KNOWN_TO_ALL = ("clip", "siglip", *FAMILIES)
INSIDE = ("clip", "siglip", "llama")  # what the default stack knows of them


@pytest.fixture(scope="module")
def stacks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Folders and parts that the stacks wrote, and what each stack reads in them."""
    work = tmp_path_factory.mktemp("stacks")
    install_newest(work / "packages")
    default, newest, here = (default_bin() / "python", sys.executable, work / "here")
    subprocess.run(
        [default, "-m", "tests.tiny.folders", work / "folders"], cwd=ROOT, env=environment(), check=True, timeout=300
    )
    tiny_folders.save_kinds(here)
    folders = [work / where / kind.replace(" ", "_") for where in ("folders", "here") for kind in tiny_folders.KINDS]
    part_answers.write(work / "ours", KNOWN_TO_ALL)
    part_answers.write(work / "ours_old", INSIDE)
    read_there = {}
    for name, python, packages, ours, parts in (
        ("default", default, ROOT, work / "ours_old", INSIDE),
        ("newest", newest, work / "packages", work / "ours", KNOWN_TO_ALL),
    ):
        words = [work / f"{name}.pt", work / name, ours, ",".join(parts), *folders]
        run_beside(packages, "tests.smoke.folder_answers", *words, python=python)
        read_there[name] = torch.load(work / f"{name}.pt")
    return {"folders": folders, "work": work, **read_there}


def test_folders_of_each_stack_answer_the_same_under_all(stacks: dict[str, Any]) -> None:
    for folder in stacks["folders"]:
        here = folder_answers.ask(folder)
        for name in ("default", "newest"):
            there = stacks[name][str(folder)]
            for key, value in here.items():
                if key == "logits":
                    torch.testing.assert_close(there[key], value, atol=1e-4, rtol=0)
                else:
                    same = torch.equal(there[key], value) if isinstance(value, torch.Tensor) else there[key] == value
                    assert same, (folder, name, key)


def test_parts_of_each_stack_are_read_the_same_by_all(stacks: dict[str, Any]) -> None:
    for name, ours in (("default", "ours_old"), ("newest", "ours")):
        for writer, folder in (("theirs", name), ("ours", ours)):
            here, there = part_answers.read(stacks["work"] / folder), stacks[name][f"parts {writer}"]
            assert here.keys() == there.keys()
            for part, found in here.items():
                torch.testing.assert_close(
                    found, there[part], atol=1e-4, rtol=0, msg=lambda text, at=(name, writer, part): f"{at}: {text}"
                )


def test_the_bridges_to_this_stack_are_needed() -> None:
    """Each of these in `pallava.model.versions` can go once its line here fails."""
    norm = torch.nn.LayerNorm(4, elementwise_affine=False)
    qformer = Blip2QFormerModel(Blip2QFormerConfig(hidden_size=4, num_attention_heads=1, intermediate_size=4))
    with pytest.raises(AttributeError):  # _QFormer
        qformer._init_weights(norm)
    assert PreTrainedModel._fix_state_dict_key_on_load("key") == ("key", False)  # keep_name
    parameters = inspect.signature(GenerationMixin.generate).parameters  # own_settings
    assert parameters["use_model_defaults"].default is None
    gemma = build_llm("gemma3_text", 64)
    assert gemma.base_model is gemma  # decoder_of
    config = LlavaConfig(vision_config={"model_type": "clip_vision_model"}, text_config={"model_type": "llama"})
    config.text_config._attn_implementation_internal = "sdpa"
    config._attn_implementation = None
    assert config.text_config._attn_implementation_internal is None  # keep_attention
    config._attn_implementation = "eager"
    assert config.vision_config._attn_implementation_internal == "eager"  # choose_attention
    assert isinstance(inspect.getattr_static(LlamaConfig, "torch_dtype"), property)  # the filter of its warning
    rope = LlamaConfig(rope_parameters={"rope_type": "default", "rope_theta": 5.0})
    assert rope.rope_theta != 5.0  # read_rope


def ask_of(folder: Path, data: Path) -> tuple[str, torch.Tensor]:
    model, processor = load(folder, "cpu")
    assert isinstance(model, PALLaVAForConditionalGeneration)
    image = data / "images" / "0.png"
    inputs = processor(QUESTION, images=str(image))
    with torch.no_grad():
        return ask(model, processor, image, QUESTION, max_new_tokens=6), model(**inputs).logits


def assert_equal_to_default(config: Path, run: Path, work: Path) -> None:
    """The default stack, beside this one, has the same losses."""
    commands = default_bin()
    words = [str(commands / "xtuner"), "train", str(config), "--work-dir", str(work / "default"), "--seed", "1024"]
    variables = {**environment(), "PATH": f"{commands}:{os.environ['PATH']}"}
    done = subprocess.run(words, env=variables, cwd=config.parent, capture_output=True, text=True, timeout=300)
    expected = losses(work / "default") if (work / "default" / "probe_0.jsonl").is_file() else {}
    assert len(expected) == STEPS, done.stdout[-2000:] + done.stderr[-2000:]
    assert losses(run) == pytest.approx(expected, abs=1e-5)


def default_bin() -> Path:
    return Path(os.environ.get("PALLAVA_DEFAULT_BIN", ROOT / ".venv" / "bin"))
