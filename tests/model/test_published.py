"""Published weights, without a config: every form of them gives the recorded logits and the same answers."""

import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from pallava.errors import PallavaError
from pallava.model import PALLaVAForConditionalGeneration, PALLaVAProcessor
from pallava.model.convert import convert
from pallava.model.published import describe_weights
from pallava.model.weights import read_weights
from tests.tiny import golden
from tests.tiny import training as tiny

CHECKPOINT = golden.GOLDEN / "stage_checkpoint.pth"
RECORDED = load_file(golden.GOLDEN / "stage_checkpoint_io.safetensors")
UNTOLD = {"connector_heads": 4, "prompt_template": "qwen_chat"}


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What is given beside published weights."""
    folder = tmp_path_factory.mktemp("parts")
    golden.llm().save_pretrained(folder / "llm")
    tiny.save_tokenizer(folder / "llm")
    golden.published_plip_folder(folder / "plip")
    return {"llm": str(folder / "llm"), "visual_encoder": str(folder / "plip")}


def save_layout(folder: Path, *, is_pickled: bool = False) -> Path:
    """The published checkpoint as folders of its parts."""
    state = read_weights(CHECKPOINT)
    projector = {key.removeprefix("projector."): value for key, value in state.items() if key.startswith("projector.")}
    adapter = {
        key.removeprefix("llm.").replace(".default.weight", ".weight"): value
        for key, value in state.items()
        if key.startswith("llm.")
    }
    for name, weights, file in (("projector", projector, "model"), ("llm_adapter", adapter, "adapter_model")):
        (folder / name).mkdir(parents=True)
        if is_pickled:
            torch.save(weights, folder / name / f"{'pytorch_model' if file == 'model' else file}.bin")
        else:
            save_file(weights, folder / name / f"{file}.safetensors")
    (folder / "projector" / "config.json").write_text(json.dumps({"num_attention_heads": 4}))
    described = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", "lora_dropout": 0.05}
    (folder / "llm_adapter" / "adapter_config.json").write_text(json.dumps(described))
    golden.published_plip_folder(folder / "plip")
    return folder


def save_deepspeed(folder: Path) -> Path:
    """The published checkpoint as DeepSpeed lays it out, with a log and a stale file of another rank's optimizer."""
    folder.mkdir(parents=True)
    torch.save({"module": read_weights(CHECKPOINT), "ds_version": "0.19"}, folder / "mp_rank_00_model_states.pt")
    torch.save({"optimizer_state_dict": {}}, folder / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    return folder


def pack(source: Path, archive: Path) -> Path:
    with tarfile.open(archive, "w:gz") as file:
        file.add(source, source.name)
    return archive


def save_as(kind: str, folder: Path) -> Path:
    folder.mkdir()
    if kind == "archive":
        return golden.GOLDEN / "stage_checkpoint.pth.tar.gz"
    if kind.startswith("folders"):
        saved = save_layout(folder / "weights", is_pickled="pickled" in kind)
    elif kind.startswith("deepspeed"):
        saved = save_deepspeed(folder / "iter_10.pth")
    else:
        saved = Path(shutil.copy(CHECKPOINT, folder))
    return pack(saved, folder / "weights.tar.gz") if "archive" in kind else saved


def logits_of(folder: Path) -> list[torch.Tensor]:
    model = PALLaVAForConditionalGeneration.from_pretrained(folder)
    with torch.no_grad():
        return [model(row["input_ids"][None], pixel_values=[row["tiles"]]).logits for row in golden.samples()]


def answers_of(folder: Path) -> list[list[int]]:
    model = PALLaVAForConditionalGeneration.from_pretrained(folder)
    answers = []
    for row in golden.samples():
        ids = model.generate(row["input_ids"][None], pixel_values=[row["tiles"]], max_new_tokens=12)[0]
        answers.append(ids[len(row["input_ids"]) :].tolist())
    return answers


def assert_recorded(folder: Path) -> None:
    for index, logits in enumerate(logits_of(folder)):
        torch.testing.assert_close(logits, RECORDED[f"logits_{index}"], atol=1e-5, rtol=0)


KINDS = ["archive", "file", "deepspeed", "deepspeed archive", "folders", "folders pickled", "folders archive"]


@pytest.mark.parametrize(
    ("kind", "merge"), [("file", True), *((kind, index % 2 == 0) for index, kind in enumerate(KINDS))]
)
def test_every_form_gives_the_recorded_logits(kind: str, merge: bool, parts: dict[str, Any], tmp_path: Path) -> None:
    source = save_as(kind, tmp_path / "source")
    before = sorted(tmp_path.rglob("*"))
    given = {"llm": parts["llm"]} if kind.startswith("folders") else {**parts, "connector_heads": 4}
    out = convert(source, tmp_path / "out", merge=merge, prompt_template="qwen_chat", **given)
    assert_recorded(out)
    assert (out / "adapter").is_dir() is not merge
    assert sorted(path for path in tmp_path.rglob("*") if out not in (path, *path.parents)) == before
    assert not list(out.rglob("*.bin"))
    assert {path.stat().st_mode for path in out.rglob("*.*")} == {(out / "config.json").stat().st_mode}


def test_answers_stay_through_conversion_merging_and_saving(parts: dict[str, Any], tmp_path: Path) -> None:
    kept = convert(CHECKPOINT, tmp_path / "kept", **parts, **UNTOLD)
    merged = convert(CHECKPOINT, tmp_path / "merged", merge=True, max_shard_size="100KB", **parts, **UNTOLD)
    assert len(list(merged.glob("model-*.safetensors"))) > 1
    PALLaVAForConditionalGeneration.from_pretrained(merged).save_pretrained(tmp_path / "again")
    PALLaVAForConditionalGeneration.from_pretrained(kept).save_pretrained(tmp_path / "kept again")
    expected = [logits.argmax(-1)[0, -1].item() for logits in (RECORDED[f"logits_{i}"] for i in range(3))]
    answers = answers_of(kept)
    assert [answer[0] for answer in answers] == expected
    assert len({tuple(answer) for answer in answers}) > 1
    for folder in ("merged", "again", "kept again"):
        assert answers_of(tmp_path / folder) == answers
    assert_recorded(tmp_path / "again")


def test_what_was_found_is_told(parts: dict[str, Any], tmp_path: Path) -> None:
    lines: list[str] = []
    convert(CHECKPOINT, tmp_path / "out", **parts, **UNTOLD, log=lines.append)
    text = "\n".join(lines)
    for part in (
        "keys: 85, 28 of LoRA, 56 of the connector, left out: projector.model.bert.embeddings.position_ids",
        "rank 4 on 14 layers (down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj)",
        "cross-attention: present in 2 of 2 layers",
        "LoRA alpha: 8 (twice the rank",
    ):
        assert part in text


def test_weights_that_ignore_the_tiles_are_said_to(parts: dict[str, Any], tmp_path: Path) -> None:
    connector = load_file(golden.GOLDEN / "connector_cross_false.safetensors")
    torch.save({f"projector.{key}": value for key, value in connector.items()}, tmp_path / "a.pth")
    lines: list[str] = []
    out = convert(tmp_path / "a.pth", tmp_path / "out", **parts, **UNTOLD, log=lines.append)
    assert any("this model ignores the tiles" in line for line in lines)
    assert "LoRA: none" in lines
    model = PALLaVAForConditionalGeneration.from_pretrained(out)
    tiles = golden.samples()[0]["tiles"]
    other = torch.cat([tiles[:1], torch.zeros_like(tiles[1:])])
    assert torch.equal(model.encode_images([tiles]), model.encode_images([other]))


@pytest.mark.parametrize("cross", [True, False])
def test_all_published_keys_are_known(cross: bool) -> None:
    shapes = json.loads((golden.GOLDEN / "published_keys_full_size.json").read_text())
    keys = shapes[f"connector_cross_{str(cross).lower()}"]
    state = {f"projector.{key}": torch.empty(shape, device="meta") for key, shape in keys.items()}
    known, _, tiles = describe_weights(state)
    assert known.startswith(f"keys: {len(keys)}, {len(keys) - 1} of the connector, left out: ")
    assert ("present in 6 of 6 layers" in tiles) is cross


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda s: s.update({"llm.lm_head.weight": torch.ones(2)}), "1 keys .*llm.lm_head.weight"),
        (lambda s: s.update({"projector.model.norm.gamma": torch.ones(2)}), "1 unexpected: norm.gamma"),
        (lambda s: s.pop("projector.model.norm.bias"), "1 missing: norm.bias"),
        (lambda s: s.pop(next(k for k in s if "layers.1.mlp.up_proj.lora_B" in k)), "1 missing: .*up_proj.lora_B"),
        (lambda s: s.update({"connector.norm.bias": torch.ones(24)}), "under two names"),
        (lambda s: [s.pop(k) for k in list(s) if k.startswith("projector.")], "must hold a connector"),
    ],
)
def test_every_key_is_accounted_for(change: Any, reason: str, parts: dict[str, Any], tmp_path: Path) -> None:
    state = read_weights(CHECKPOINT)
    change(state)
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(PallavaError, match=reason):
        convert(tmp_path / "a.pth", tmp_path / "out", **parts, **UNTOLD)
    assert not (tmp_path / "out").exists()


def test_what_weights_do_not_tell_must_be_given(parts: dict[str, Any], tmp_path: Path) -> None:
    for given, reason in (
        ({}, "--llm"),
        ({"llm": parts["llm"]}, "--visual-encoder"),
        (parts, "24 wide.*--connector-heads"),
        ({**parts, "connector_heads": 4}, "does not know <|eot_id|>.*prompt_template: .*qwen_chat".replace("|", r"\|")),
    ):
        with pytest.raises(PallavaError, match=reason):
            convert(CHECKPOINT, tmp_path / "out", **given)


def test_the_base_must_be_whole_to_be_merged(parts: dict[str, Any], tmp_path: Path) -> None:
    shutil.copytree(parts["llm"], tmp_path / "llm")
    state = load_file(tmp_path / "llm" / "model.safetensors")
    state.pop("model.layers.1.mlp.up_proj.weight")
    save_file(state, tmp_path / "llm" / "model.safetensors", {"format": "pt"})
    with pytest.raises(PallavaError, match=r"1 missing: model\.layers\.1\.mlp\.up_proj"):
        convert(CHECKPOINT, tmp_path / "out", merge=True, **{**parts, "llm": str(tmp_path / "llm")}, **UNTOLD)


def test_dtype_and_end_tokens(parts: dict[str, Any], tmp_path: Path) -> None:
    for merge in (True, False):
        out = convert(CHECKPOINT, tmp_path / f"{merge}", merge=merge, dtype=torch.bfloat16, **parts, **UNTOLD)
        assert {value.dtype for value in read_weights(out).values()} == {torch.bfloat16}
        model, processor = PALLaVAForConditionalGeneration.from_pretrained(out), PALLaVAProcessor.from_pretrained(out)
        assert set(processor.end_token_ids) <= set(model.generation_config.eos_token_id)
        assert processor.template.name == "qwen_chat"


_MEASURE = """
import pathlib, re, sys
from pallava.model.convert import convert

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1]) << 10

checkpoint, out, small, llm, encoder = sys.argv[1:]
for number, (base, merge) in enumerate([(small, True), (llm, False), (llm, True)]):  # the first loads the libraries
    convert(checkpoint, f"{out}{number}", llm=base, visual_encoder=encoder, merge=merge, connector_heads=4,
            prompt_template="qwen_chat", max_shard_size="40MB")
    print(peak())
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the peak of memory is Linux's")
def test_the_language_model_is_never_twice_in_memory(parts: dict[str, Any], tmp_path: Path) -> None:
    """The peak of a process, in sizes of the language model: with the adapter kept, its weights are not even read."""
    sizes = {**json.loads((golden.GOLDEN / "llm_config.json").read_text()), "vocab_size": 1_000_000}
    with torch.device("meta"):
        llm = LlamaForCausalLM(LlamaConfig(**sizes))
    llm = llm.to_empty(device="cpu")
    for parameter in llm.parameters():
        parameter.data.zero_()
    num_bytes = sum(parameter.nbytes for parameter in llm.parameters())  # 128 MB
    shutil.copytree(parts["llm"], tmp_path / "llm")
    llm.save_pretrained(tmp_path / "llm")
    words = [CHECKPOINT, tmp_path / "out", parts["llm"], tmp_path / "llm", parts["visual_encoder"]]
    process = subprocess.run(
        [sys.executable, "-c", _MEASURE, *map(str, words)], capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr[-2000:]
    warm, kept, merged = map(int, process.stdout.split()[-3:])
    assert kept - warm < 0.3 * num_bytes
    assert 0.7 * num_bytes < merged - warm < 1.4 * num_bytes
