"""Weights and archives that mean harm, or are broken: refused with the reason, and nothing is left behind."""

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pallava.cli import main
from pallava.errors import PallavaError
from pallava.model import PALLaVAForConditionalGeneration, load_encoder
from pallava.model.clip import convert_encoder
from pallava.model.convert import convert, write_training_config
from pallava.model.loading import load_llm, load_tokenizer
from pallava.model.weights import read_weights
from tests.model.test_convert import run_config
from tests.model.test_published import CHECKPOINT, UNTOLD, pack, parts, save_deepspeed, save_layout
from tests.model.test_weights import Malicious
from tests.tiny import golden

__all__ = ["parts"]


def poison(path: Path, proof: Path) -> None:
    """Puts an object that runs a command into a pickle of tensors, beside them."""
    content = torch.load(path, weights_only=True)
    torch.save({**content, "evil": Malicious(proof)}, path)


def refuse(source: Path, folder: Path, parts: dict[str, Any], **options: Any) -> str:
    """Converts; checks that the one folder was not begun, and gives the reason."""
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(PallavaError) as error:
        convert(source, folder / "out", **{**parts, **UNTOLD, **options})
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    return str(error.value)


PLACES: dict[str, tuple[str, bool]] = {
    "projector/pytorch_model.bin": ("layout", False),
    "llm_adapter/adapter_model.bin": ("layout", False),
    "plip/plip_80w_196token.bin": ("layout", False),
    "mp_rank_00_model_states.pt": ("deepspeed", False),
    "a.pth": ("file", False),
}


def save_source(kind: str, folder: Path) -> Path:
    if kind == "layout":
        return save_layout(folder, is_pickled=True)
    if kind == "deepspeed":
        return save_deepspeed(folder)
    folder.mkdir()
    return Path(shutil.copy(CHECKPOINT, folder / "a.pth"))


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "archive"])
@pytest.mark.parametrize("place", PLACES)
def test_a_malicious_pickle_in_every_place(place: str, packed: bool, parts: dict[str, Any], tmp_path: Path) -> None:
    source, proof = save_source(PLACES[place][0], tmp_path / "source"), tmp_path / "executed"
    poison(tmp_path / "source" / place, proof)
    source = pack(tmp_path / "source", tmp_path / "a.tar.gz") if packed else source
    given = {"llm": parts["llm"], "visual_encoder": None if place.startswith("plip") else parts["visual_encoder"]}
    assert "nothing in it was executed" in refuse(source, tmp_path, given)
    assert not proof.exists()


def test_a_malicious_pickle_in_the_encoders_archive(parts: dict[str, Any], tmp_path: Path) -> None:
    folder, proof = golden.published_plip_folder(tmp_path / "plip"), tmp_path / "executed"
    poison(folder / "plip_80w_196token.bin", proof)
    archive = pack(folder, tmp_path / "plip.tar.gz")
    reason = refuse(CHECKPOINT, tmp_path, {**parts, "visual_encoder": str(archive)})
    assert "nothing in it was executed" in reason
    assert not proof.exists()


def test_a_malicious_pickle_in_the_base_language_model(parts: dict[str, Any], tmp_path: Path) -> None:
    llm, proof = tmp_path / "llm", tmp_path / "executed"
    shutil.copytree(parts["llm"], llm)
    state = load_file(llm / "model.safetensors")
    (llm / "model.safetensors").unlink()
    torch.save({**state, "evil": Malicious(proof)}, llm / "pytorch_model.bin")
    assert str(llm) in refuse(CHECKPOINT, tmp_path, {**parts, "llm": str(llm)}, merge=True)
    assert not proof.exists()


@pytest.mark.parametrize("place", ["adapter/adapter_model.bin", "pytorch_model.bin"])
def test_a_malicious_pickle_in_a_model_folder(place: str, parts: dict[str, Any], tmp_path: Path) -> None:
    out, proof = convert(CHECKPOINT, tmp_path / "out", **parts, **UNTOLD), tmp_path / "executed"
    safe = (out / place).with_name("adapter_model.safetensors" if "/" in place else "model.safetensors")
    torch.save({**load_file(safe), "evil": Malicious(proof)}, out / place)
    safe.unlink()
    with pytest.raises(PallavaError, match="nothing in it was executed|cannot be read"):
        PALLaVAForConditionalGeneration.from_pretrained(out)
    assert not proof.exists()


def test_code_beside_the_weights_is_not_run(parts: dict[str, Any], tmp_path: Path) -> None:
    """A config is a program; so are the files that a published `projector/` carries."""
    source, proof = save_layout(tmp_path / "source"), tmp_path / "executed"
    program = f"open({str(proof)!r}, 'w')\nmodel = dict()\ntrain_dataloader = dict()\n"
    for name in ("config.py", "projector/configuration_projector.py", "projector/modeling_projector.py"):
        (source / name).write_text(program)
    described = {"auto_map": {"AutoModel": "modeling_projector.ProjectorModel"}, "num_attention_heads": 4}
    (source / "projector" / "config.json").write_text(json.dumps(described))
    convert(source, tmp_path / "out", **parts, prompt_template="qwen_chat")
    shutil.copy(CHECKPOINT, tmp_path / "a.pth")
    (tmp_path / "config.py").write_text(program)
    with pytest.raises(PallavaError, match=r"config in Python \(config.py\)"):
        convert(tmp_path / "a.pth", tmp_path / "out2", **parts, **UNTOLD)
    assert not proof.exists()


def _member(name: str, **values: Any) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    for key, value in values.items():
        setattr(member, key, value)
    return member


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        (_member("../evil.pth", size=3), "outside of the folder"),
        (_member("/tmp/evil.pth", size=3), "outside of the folder"),
        (_member("weights/../../evil.pth", size=3), "outside of the folder"),
        (_member("a.pth", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "is a link"),
        (_member("a.pth", type=tarfile.LNKTYPE, linkname="../a.pth"), "is a link"),
        (_member("a.pth", type=tarfile.FIFOTYPE), "a device"),
    ],
)
@pytest.mark.parametrize("first", [False, True])
def test_members_that_leave_the_folder(
    member: tarfile.TarInfo, reason: str, first: bool, parts: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "deep" / "folder"
    folder.mkdir(parents=True)
    with tarfile.open(folder / "a.tar.gz", "w:gz") as file:
        if first:
            file.addfile(member, io.BytesIO(b"bad"))
        file.add(CHECKPOINT, "a.pth")
        if not first:
            file.addfile(member, io.BytesIO(b"bad"))
    assert reason in refuse(folder / "a.tar.gz", folder, parts)
    assert [path.name for path in tmp_path.rglob("*")] == ["deep", "folder", "a.tar.gz"]


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9999])
@pytest.mark.parametrize("kind", ["stage_checkpoint.pth", "stage_checkpoint.pth.tar.gz"])
def test_truncated_files(kind: str, share: float, parts: dict[str, Any], tmp_path: Path) -> None:
    content = (golden.GOLDEN / kind).read_bytes()
    (tmp_path / kind).write_bytes(content[: int(len(content) * share)])
    reason = refuse(tmp_path / kind, tmp_path, parts)
    assert kind in reason
    assert any(words in reason for words in ("is not a readable", "is empty", "must be a zip", "is damaged"))


@pytest.mark.parametrize("file", ["projector/model.safetensors", "llm_adapter/adapter_model.safetensors"])
def test_truncated_parts(file: str, parts: dict[str, Any], tmp_path: Path) -> None:
    source = save_layout(tmp_path / "source")
    content = (source / file).read_bytes()
    (source / file).write_bytes(content[: len(content) // 2])
    assert "is not a readable safetensors file" in refuse(source, tmp_path, parts)


def test_a_truncated_base(parts: dict[str, Any], tmp_path: Path) -> None:
    llm = tmp_path / "llm"
    shutil.copytree(parts["llm"], llm)
    content = (llm / "model.safetensors").read_bytes()
    (llm / "model.safetensors").write_bytes(content[: len(content) // 2])
    assert str(llm) in refuse(CHECKPOINT, tmp_path, {**parts, "llm": str(llm)}, merge=True)
    (llm / "config.json").write_text("{")
    assert str(llm) in refuse(CHECKPOINT, tmp_path, {**parts, "llm": str(llm)})


A = "llm.base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"
NORM = "projector.model.norm.weight"
BERT = "projector.model.bert.encoder.layer."


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({A: torch.ones(4, 15)}, "1 reshaped: .*q_proj.lora_A"),
        ({A: torch.ones(5, 16)}, "reshaped"),
        ({A: torch.ones(())}, "reshaped"),
        ({A: torch.ones(10**6, 1).expand(10**6, 10**6)}, "holds fewer numbers"),
        ({A: torch.ones(10**5, 1)}, "rank 100000"),
        ({A: torch.ones(4, 16).to_sparse()}, "a form that weights do not have"),
        ({NORM: torch.ones(23)}, "reshaped: norm.weight"),
        ({NORM: torch.ones(())}, "reshaped: norm.weight"),
        ({f"{BERT}0.intermediate_query.dense.weight": torch.ones(3)}, "must hold a connector"),
        ({"projector.model.mlp.model.0.weight": torch.ones(16)}, "must hold a connector"),
        ({"projector.model.mlp.model.0.weight": torch.ones(17, 24)}, "language model must be 17 wide|reshaped"),
        ({f"{BERT}99999999.attention.self.key.bias": torch.ones(24)}, "not a numbered layer"),
        ({f"{BERT}999.attention.self.key.bias": torch.ones(24)}, "without a gap"),
        ({f"{BERT}x.attention.self.key.bias": torch.ones(24)}, "not a numbered layer"),
        ({A: torch.full((4, 16), torch.nan)}, "1 hold NaN or infinity .*q_proj.lora_A"),
        ({A: torch.full((4, 16), torch.inf, dtype=torch.bfloat16)}, "1 hold NaN or infinity"),
        ({NORM: torch.tensor([1.0] * 23 + [torch.nan])}, "1 hold NaN or infinity .*norm.weight"),
        ({NORM: "text"}, "missing: norm.weight"),
    ],
)
def test_wrong_shapes_and_numbers(changes: dict[str, Any], reason: str, parts: dict[str, Any], tmp_path: Path) -> None:
    torch.save({"state_dict": {**read_weights(CHECKPOINT), **changes}}, tmp_path / "a.pth")
    with pytest.raises(PallavaError, match=reason):
        raise PallavaError(refuse(tmp_path / "a.pth", tmp_path, parts))


def _break_base(folder: Path, how: str) -> str:
    """Damages a language model; gives what is to be said of it."""
    file = folder / "model.safetensors"
    if how == "truncated":
        file.write_bytes(file.read_bytes()[:1000])
        return "cannot be opened"
    state = load_file(file)
    name = "model.layers.1.mlp.up_proj.weight"
    if how == "missing":
        state.pop(name)
    elif how == "reshaped":
        state[name] = torch.ones(3, 3)
    elif how == "left over":
        state["model.extra.weight"] = torch.ones(1)
    else:
        state[name][0, 0] = torch.nan
    save_file(state, file, {"format": "pt"})
    reasons = {"missing": "1 missing", "left over": "1 unexpected", "NaN": "NaN or infinity"}
    return reasons.get(how, "cannot be opened")


@pytest.mark.parametrize("how", ["truncated", "missing", "reshaped", "left over", "NaN"])
def test_a_broken_base_wherever_it_is_opened(how: str, parts: dict[str, Any], tmp_path: Path) -> None:
    """Where a training begins, where its checkpoint is converted by its config, and beside an adapter."""
    llm, work_dir = tmp_path / "parts" / "llm", tmp_path / "work_dir"
    shutil.copytree(parts["llm"], llm)
    shutil.copytree(parts["visual_encoder"], tmp_path / "parts" / "plip")
    work_dir.mkdir()
    write_training_config(work_dir, run_config(llm.parent))
    checkpoint = Path(shutil.copy(CHECKPOINT, work_dir / "iter_10.pth"))
    out = convert(checkpoint, tmp_path / "adapted")
    reason = _break_base(llm, how)
    openers: list[Callable[[], Any]] = [
        lambda: load_llm(str(llm)),
        lambda: convert(checkpoint, tmp_path / "out", merge=True),
        lambda: PALLaVAForConditionalGeneration.from_pretrained(out),
    ]
    for opener in openers:
        with pytest.raises(PallavaError, match=f"{llm}.*{reason}"):
            opener()
    assert not (tmp_path / "out").exists()


def test_code_of_a_base_is_not_run(parts: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers would ask on the terminal, and take the `y` of a script that says yes to all."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    llm, proof = tmp_path / "llm", tmp_path / "executed"
    shutil.copytree(parts["llm"], llm)
    program = f"open({str(proof)!r}, 'w')\n"
    for file, kinds in (
        ("config.json", {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["evil.Tokenizer", None]}),
    ):
        described = json.loads((llm / file).read_text())
        described.pop("tokenizer_class", None)
        (llm / file).write_text(json.dumps({**described, "model_type": "evil", "auto_map": kinds}))
    (llm / "evil.py").write_text(program)
    for merge in (False, True):
        assert str(llm) in refuse(CHECKPOINT, tmp_path, {**parts, "llm": str(llm)}, merge=merge)
    with pytest.raises(PallavaError):
        load_llm(str(llm))
    with pytest.raises(PallavaError):
        load_tokenizer(str(llm))
    assert not proof.exists()


@pytest.mark.parametrize("place", ["encoder", "base"])
def test_broken_numbers_in_the_other_parts(place: str, parts: dict[str, Any], tmp_path: Path) -> None:
    if place == "encoder":
        folder = golden.published_plip_folder(tmp_path / "plip")
        state = torch.load(folder / "plip_80w_196token.bin", weights_only=True)
        state["vision_model.post_layrnorm.weight"][3] = torch.nan
        torch.save(state, folder / "plip_80w_196token.bin")
        given = {**parts, "visual_encoder": str(folder)}
        with pytest.raises(PallavaError, match="1 hold NaN or infinity"):
            load_encoder(folder)
    else:
        folder = tmp_path / "llm"
        shutil.copytree(parts["llm"], folder)
        state = load_file(folder / "model.safetensors")
        state["model.norm.weight"][3] = -torch.inf
        save_file(state, folder / "model.safetensors", {"format": "pt"})
        given = {**parts, "llm": str(folder)}
    assert "1 hold NaN or infinity" in refuse(CHECKPOINT, tmp_path, given, merge=True)


@pytest.mark.parametrize(
    ("file", "values", "reason"),
    [
        (
            "llm_adapter/adapter_config.json",
            {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "use_dora": True},
            "use_dora",
        ),
        ("llm_adapter/adapter_config.json", {"peft_type": "IA3"}, "type IA3"),
        ("llm_adapter/adapter_config.json", {"peft_type": "LORA", "r": 4, "lora_alpha": "8"}, "lora_alpha = '8'"),
        ("llm_adapter/adapter_config.json", {"peft_type": "LORA"}, "r and lora_alpha"),
        ("llm_adapter/adapter_config.json", [], "type None"),
        ("projector/config.json", {"num_attention_heads": -1}, "num_attention_heads = -1"),
    ],
)
def test_descriptions_that_ask_for_something_else(
    file: str, values: Any, reason: str, parts: dict[str, Any], tmp_path: Path
) -> None:
    source = save_layout(tmp_path / "source")
    (source / file).write_text(json.dumps(values))
    assert reason in refuse(source, tmp_path, parts, connector_heads=None)
    (source / file).write_bytes(b"\xff{")
    assert "is not JSON" in refuse(source, tmp_path, parts, connector_heads=None)


@pytest.mark.parametrize(
    "values", [{"hidden_size": 25}, {"hidden_size": "a"}, {"image_size": -1}, {"vision_config": 3}, [], "text"]
)
def test_an_encoder_of_impossible_sizes(values: Any, parts: dict[str, Any], tmp_path: Path) -> None:
    folder = golden.published_plip_folder(tmp_path / "plip")
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**described, **values} if isinstance(values, dict) else values))
    assert refuse(CHECKPOINT, tmp_path, {**parts, "visual_encoder": str(folder)})


def test_a_part_that_would_be_left_unread(parts: dict[str, Any], tmp_path: Path) -> None:
    source = save_layout(tmp_path / "source")
    (source / "visual_encoder_adapter").mkdir()
    assert "visual_encoder_adapter, which is not read" in refuse(source, tmp_path, parts)


def test_names_of_checkpoints_that_lead_elsewhere(tmp_path: Path) -> None:
    shutil.copy(CHECKPOINT, tmp_path / "a.pth")
    (tmp_path / "work").mkdir()
    for name in ("..", "", ".", "/"):
        (tmp_path / "work" / "last_checkpoint").write_text(name)
        with pytest.raises(PallavaError, match="names no checkpoint"):
            read_weights(tmp_path / "work")


def test_nothing_half_written_where_saving_fails(
    parts: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> Callable[..., Any]:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pallava.model.PALLaVAProcessor.save_pretrained", fail)  # the weights are written before
    assert "No space left on device" in refuse(CHECKPOINT, tmp_path, parts)


def test_the_command_says_one_sentence(parts: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    archive = tmp_path / "a.tar.gz"
    archive.write_bytes((golden.GOLDEN / "stage_checkpoint.pth.tar.gz").read_bytes()[:30_000])
    words = ["--llm", parts["llm"], "--visual-encoder", parts["visual_encoder"]]
    assert main(["convert", str(archive), str(tmp_path / "out"), *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")


@pytest.mark.parametrize("reader", ["load_llm", "encoder convert", "timm", "load_encoder"])
def test_the_other_readers_execute_nothing(reader: str, parts: dict[str, Any], tmp_path: Path) -> None:
    proof, folder = tmp_path / "executed", tmp_path / "folder"
    shutil.copytree(parts["llm"], folder)
    (folder / "model.safetensors").unlink()
    file = folder / "pytorch_model.bin"
    torch.save({"visual.proj": torch.ones(2), "evil": Malicious(proof)}, file)
    if reader == "load_encoder":
        (folder / "config.json").write_text(json.dumps({"model_type": "dinov2", "hidden_size": 12}))
    readers: dict[str, Callable[[], Any]] = {
        "load_llm": lambda: load_llm(str(folder)),
        "encoder convert": lambda: convert_encoder(file, tmp_path / "out", "huggingface", "ViT-B-16"),
        "timm": lambda: load_encoder("timm:vit_tiny_patch16_224", checkpoint=file, depth=1),
        "load_encoder": lambda: load_encoder(folder),
    }
    with pytest.raises(PallavaError, match="nothing in it was executed|Unable to load weights"):
        readers[reader]()
    assert not proof.exists()


def test_pickles_of_weights_are_opened_in_two_places_and_safely() -> None:
    """Here, and where xtuner resumes a run's own checkpoints; Ray's workers read what the process that asks wrote."""
    package = Path(convert.__globals__["__file__"]).parents[1]
    lines = {
        (path.relative_to(package).as_posix(), line.strip())
        for path in package.rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if "torch.load(" in line or "pickle.load" in line or "Unpickler(" in line
    }
    others = {"io/pickles.py", "data/clean/ray_engine.py"}
    assert {name for name, _ in lines} == {"model/weights.py", "training/compat.py", *others}
    assert all("weights_only=True" in line for name, line in lines if name not in others)
