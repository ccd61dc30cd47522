"""Foreign weights: nothing is executed, nothing goes unaccounted for."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pallava.errors import PallavaError
from pallava.model import ScaleInvariantConnector, load_image_processor, load_plip
from pallava.model.weights import build_with_weights, load_strictly, read_weights
from tests.tiny import golden


class Malicious:
    """Makes a file when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.proof}",)


def save_malicious(path: Path, proof: Path, *, legacy: bool = False) -> Path:
    content = {"state_dict": {"projector.model.norm.weight": torch.ones(2)}, "meta": Malicious(proof)}
    if legacy:
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    return path


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("reader", [read_weights, ScaleInvariantConnector.from_published])
def test_a_malicious_pickle_executes_nothing(tmp_path: Path, reader: Any, legacy: bool) -> None:
    proof = tmp_path / "executed"
    with pytest.raises(PallavaError, match="nothing in it was executed|not a readable"):
        reader(save_malicious(tmp_path / "weights.pth", proof, legacy=legacy))
    assert not proof.exists()


def test_a_malicious_plip_folder_executes_nothing(tmp_path: Path) -> None:
    folder = golden.published_plip_folder(tmp_path / "plip")
    proof = tmp_path / "executed"
    save_malicious(folder / "plip_80w_196token.bin", proof)
    with pytest.raises(PallavaError, match="nothing in it was executed"):
        load_plip(folder)
    assert not proof.exists()


def test_getattr_in_a_pickle_is_not_getattr(tmp_path: Path) -> None:
    """`builtins.getattr` is on the list of names, for mmengine's logs: it must not reach anything."""

    class Reaches:
        def __reduce__(self) -> tuple[Any, ...]:
            return getattr, (torch.Tensor, "__class__")

    torch.save({"state_dict": {"a": torch.ones(1)}, "log": Reaches()}, tmp_path / "a.pth")
    assert list(read_weights(tmp_path / "a.pth")) == ["a"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "empty"), (b"not weights at all", "not a readable"), (b"PK\x03\x04cut", "not a readable")],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_broken_file_is_one_sentence(tmp_path: Path, content: bytes, reason: str, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(PallavaError, match=reason):
        read_weights(path)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(PallavaError, match="does not exist"):
        read_weights(tmp_path / "none.pth")
    with pytest.raises(PallavaError, match=f"no weights in the folder '{tmp_path}'"):
        read_weights(tmp_path)
    with pytest.raises(PallavaError, match="does not exist"):
        load_plip(tmp_path / "none")
    with pytest.raises(PallavaError, match="folder with a config.json"):
        load_image_processor(tmp_path)


def test_every_wrong_key_is_named(tmp_path: Path) -> None:
    state = load_file(golden.GOLDEN / "connector_cross_true.safetensors")
    state["model.norm.gamma"] = state.pop("model.norm.weight")
    state["model.norm.bias"] = torch.zeros(3)
    with pytest.raises(PallavaError) as error:
        ScaleInvariantConnector.from_published(state, num_attention_heads=4)
    for part in ("1 missing: norm.weight", "1 unexpected: norm.gamma", "norm.bias: (3,) where (24,)"):
        assert part in str(error.value)


def test_a_file_that_is_no_connector(tmp_path: Path) -> None:
    with pytest.raises(PallavaError, match="must hold a connector"):
        ScaleInvariantConnector.from_published(golden.GOLDEN / "llm.safetensors")


@pytest.mark.parametrize("prefix", ["", "projector."])
@pytest.mark.parametrize("kind", ["folder", "file", "pickle"])
def test_a_published_connector_opens_from_anywhere(tmp_path: Path, prefix: str, kind: str) -> None:
    published = load_file(golden.GOLDEN / "connector_cross_true.safetensors")
    state = {prefix + key: value for key, value in published.items()}
    if kind == "pickle":
        torch.save(state, tmp_path / "connector.bin")
    else:
        save_file(state, tmp_path / "model.safetensors")
    source = {"folder": tmp_path, "file": tmp_path / "model.safetensors", "pickle": tmp_path / "connector.bin"}[kind]
    connector = ScaleInvariantConnector.from_published(source, num_attention_heads=4)
    torch.testing.assert_close(connector.state_dict(), golden.connector().state_dict())


def test_a_saved_connector_opens_again(tmp_path: Path) -> None:
    for cross in (True, False):
        connector = golden.connector(cross)
        connector.save_pretrained(tmp_path / str(cross))
        opened = ScaleInvariantConnector.from_pretrained(tmp_path / str(cross))
        assert opened.config.add_cross_attention is cross
        torch.testing.assert_close(opened.state_dict(), connector.state_dict())


def test_some_layers_alone_may_cross_attend() -> None:
    state = load_file(golden.GOLDEN / "connector_cross_true.safetensors")
    state = {key: value for key, value in state.items() if "layer.0.crossattention" not in key}
    connector = ScaleInvariantConnector.from_published(state, num_attention_heads=4)
    assert connector.config.cross_attention_layers == [1]
    assert connector.config.add_cross_attention


def test_a_deeper_last_mlp_is_read_off_the_keys() -> None:
    state = load_file(golden.GOLDEN / "connector_cross_true.safetensors")
    state |= {"model.mlp.model.2.weight": torch.eye(16), "model.mlp.model.2.bias": torch.zeros(16)}
    connector = ScaleInvariantConnector.from_published(state, num_attention_heads=4)
    assert connector.config.projection_depth == 2


def test_loading_in_place_keeps_dtype() -> None:
    layer = torch.nn.Linear(2, 2).to(torch.bfloat16)
    load_strictly(layer, {"weight": torch.eye(2), "bias": torch.zeros(2)}, source="test")
    assert layer.weight.dtype == torch.bfloat16


WRAPPED = {
    "module._orig_mod.visual.proj": "visual.proj",
    "_orig_mod.module.visual.proj": "visual.proj",
    "_orig_mod._orig_mod.a": "a",
    "visual_encoder._orig_mod.layers.0.weight": "visual_encoder.layers.0.weight",
    "connector.module.a": "connector.module.a",  # a name that a part may have
    "modules.a": "modules.a",
}


@pytest.mark.parametrize("kind", ["bare.pth", "checkpoint.pth", "weights.safetensors"])
@pytest.mark.parametrize("key", WRAPPED)
def test_keys_lose_what_trainers_wrap_models_in(key: str, kind: str, tmp_path: Path) -> None:
    state = {key: torch.ones(1)}
    if kind.endswith("safetensors"):
        save_file(state, tmp_path / kind)
    else:
        torch.save(state if kind == "bare.pth" else {"state_dict": state}, tmp_path / kind)
    assert list(read_weights(tmp_path / kind)) == [WRAPPED[key]]
    assert list(read_weights(tmp_path / kind, prefixes=(WRAPPED[key][:3],))) == [WRAPPED[key]]


@pytest.mark.parametrize("kind", ["a.pth", "a.safetensors"])
def test_two_names_of_one_weight_are_refused(kind: str, tmp_path: Path) -> None:
    state = {"module.a": torch.ones(1), "_orig_mod.a": torch.zeros(1)}
    (torch.save if kind.endswith("pth") else save_file)(state, tmp_path / kind)
    with pytest.raises(PallavaError, match="a under two names"):
        read_weights(tmp_path / kind)


def test_a_work_directory_stands_for_its_newest_checkpoint(tmp_path: Path) -> None:
    for step in (1, 2):
        torch.save({"state_dict": {"step": torch.tensor(step)}}, tmp_path / f"iter_{step}.pth")
    (tmp_path / "last_checkpoint").write_text("/where/it/was/trained/iter_2.pth")
    assert read_weights(tmp_path)["step"] == 2
    (tmp_path / "iter_2.pth").unlink()
    with pytest.raises(PallavaError, match="iter_2.pth.*gone"):
        read_weights(tmp_path)


def test_the_newest_tag_of_deepspeed_is_that_of_the_largest_number(tmp_path: Path) -> None:
    for step in (900, 1000):
        (tmp_path / f"global_step{step}").mkdir()
        torch.save({"module": {"step": torch.tensor(step)}}, tmp_path / f"global_step{step}/mp_rank_00_model_states.pt")
    assert read_weights(tmp_path)["step"] == 1000
    (tmp_path / "latest").write_text("global_step900")
    assert read_weights(tmp_path)["step"] == 900


def test_two_files_are_not_guessed_between(tmp_path: Path) -> None:
    for name in ("a.pth", "b.pth"):
        torch.save({"a": torch.ones(1)}, tmp_path / name)
    with pytest.raises(PallavaError, match="several weight files \\(a.pth, b.pth\\)"):
        read_weights(tmp_path)


def test_buffers_stay_buffers(tmp_path: Path) -> None:
    """A batch norm's means, as in an encoder of one's own, are no parameters."""
    normed = torch.nn.BatchNorm1d(3)
    state = {**normed.state_dict(), "running_mean": torch.tensor([1.0, 2.0, 3.0])}
    opened = build_with_weights(lambda config: torch.nn.BatchNorm1d(config), 3, state, tmp_path)
    assert [name for name, _ in opened.named_parameters()] == ["weight", "bias"]
    torch.testing.assert_close(opened(torch.tensor([[1.0, 2.0, 3.0]])), torch.zeros(1, 3))
