"""Weights made with quick-GELU are told, and open_clip still needs to be."""

import inspect
import json
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip import factory, pretrained
from torch import nn

from pallava.data.clean.judges import PathologyClip
from pallava.errors import PallavaError
from pallava.open_clip_weights import made_with_quick_gelu, read_wrapped_keys
from tests.tiny.pretraining import MODEL


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that has GELU, with weights of both kinds."""
    (tmp_path / "two-kinds.json").write_text(json.dumps(MODEL))
    open_clip.add_model_config(tmp_path / "two-kinds.json")
    torch.save(open_clip.CLIP(**MODEL).state_dict(), tmp_path / "weights.pt")
    monkeypatch.setitem(
        pretrained._PRETRAINED, "two-kinds", {"quick": {"url": "x", "quick_gelu": True}, "gelu": {"url": "x"}}
    )
    monkeypatch.setattr("open_clip.factory.download_pretrained", lambda *_, **__: str(tmp_path / "weights.pt"))


@pytest.mark.usefixtures("weights")
def test_what_weights_were_made_with() -> None:
    assert made_with_quick_gelu("two-kinds", "quick")
    assert not any(made_with_quick_gelu("two-kinds", tag) for tag in ("gelu", "a/file.pt", "", None))


@pytest.mark.usefixtures("weights")
def test_open_clip_only_warns() -> None:
    model = open_clip.create_model("two-kinds", "quick")
    activation = model.visual.transformer.resblocks[0].mlp.gelu
    assert type(activation) is nn.GELU, "open_clip heeds it now: drop made_with_quick_gelu"


@pytest.mark.usefixtures("weights")
@pytest.mark.parametrize(("tag", "is_quick"), [("quick", True), ("gelu", False)])
def test_the_judge_of_pathology_tells_it(tag: str, is_quick: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[bool] = []

    def build(*_: object, force_quick_gelu: bool, **__: object) -> None:
        told.append(force_quick_gelu)
        raise RuntimeError("built enough")

    monkeypatch.setattr(open_clip, "create_model_and_transforms", build)
    with pytest.raises(PallavaError, match="built enough"):
        PathologyClip("two-kinds", tag).score([])
    assert told == [is_quick]


@pytest.fixture
def own_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    """open_clip's own loader of weights, whatever ran before, which is put back afterwards."""
    monkeypatch.setattr(factory, "load_state_dict", inspect.unwrap(factory.load_state_dict))


@pytest.mark.usefixtures("weights", "own_loader")
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_open_clip_reads_wrapped_keys(prefix: str, tmp_path: Path) -> None:
    state = torch.load(tmp_path / "weights.pt")
    torch.save({prefix + key: value for key, value in state.items()}, tmp_path / "wrapped.pt")
    read_wrapped_keys()
    model = open_clip.create_model("two-kinds", str(tmp_path / "wrapped.pt"))
    torch.testing.assert_close(dict(model.state_dict()), state)


@pytest.mark.usefixtures("weights", "own_loader")
def test_open_clip_alone_does_not(tmp_path: Path) -> None:
    state = {f"_orig_mod.{key}": value for key, value in torch.load(tmp_path / "weights.pt").items()}
    torch.save(state, tmp_path / "wrapped.pt")
    with pytest.raises(RuntimeError, match="_orig_mod"):  # it does now: drop read_wrapped_keys
        open_clip.create_model("two-kinds", str(tmp_path / "wrapped.pt"))
