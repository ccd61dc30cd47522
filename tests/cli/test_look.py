"""`pallava look` from the command line: what is drawn, for which kinds of folders, and what is refused."""

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from pallava.cli import look, main
from pallava.model import PALLaVAForConditionalGeneration, PALLaVAProcessor, load_encoder, load_image_processor
from pallava.prompts import get_template
from pallava.report.look import Panel
from tests.model import golden
from tests.model.test_encoders import connector_for, save_encoder, with_adapter
from tests.smoke.tiny import save_parts

CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 24, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A merged model, one with an adapter whose language model is gone, a CLIP, a picture."""
    folder = tmp_path_factory.mktemp("look")
    parts = save_parts(folder)
    source, _ = save_encoder("clip", folder / "encoder")
    encoder = load_encoder(source)
    merged = PALLaVAForConditionalGeneration.from_parts(golden.llm(), encoder, connector_for(encoder))
    golden.llm().save_pretrained(folder / "base")
    adapted = with_adapter(merged, folder / "base")
    adapted.config.base_llm = "./gone"
    from transformers import AutoTokenizer

    processor = PALLaVAProcessor(
        load_image_processor(source), AutoTokenizer.from_pretrained(parts["llm"]), get_template("qwen_chat")
    )
    for name, model in {"merged": merged, "adapter": adapted}.items():
        model.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    torch.manual_seed(0)
    (folder / "clip").mkdir()
    torch.save(open_clip.CLIP(**CLIP).state_dict(), folder / "clip" / "open_clip.pt")
    (folder / "clip" / "open_clip.json").write_text(json.dumps(CLIP))
    pixels = np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "picture.png")
    return folder


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Panel]:
    """The panels of a run, instead of their picture."""
    panels: list[Panel] = []
    monkeypatch.setattr("pallava.report.look.draw_panels", lambda given, *_, **__: panels.extend(given))
    return panels


def run(folder: Path, model: str, *words: str, out: str = "look.png") -> int:
    command = ["look", str(folder / model), "--image", str(folder / "picture.png"), "--out", str(folder / out)]
    return main([*command, *words])


@pytest.mark.parametrize("name", ["merged", "adapter"])
def test_attention_of_a_model_folder(folder: Path, name: str, drawn: list[Panel]) -> None:
    assert run(folder, name) == 0
    assert [panel.title for panel in drawn] == ["Overview", "Canvas", "Tiles that were read", "Tokens that were read"]
    _, canvas, tiles, tokens = drawn
    columns, rows = canvas.grid
    assert canvas.image.shape == (32 * rows, 32 * columns, 3)
    assert tiles.heat is not None
    assert tokens.heat is not None
    assert tiles.heat.sum() == pytest.approx(100, abs=1e-3)
    # A tile's share is that of its tokens, in its place.
    of_tokens = tokens.heat.reshape(rows, 4, columns, 4).sum((1, 3))
    np.testing.assert_allclose(of_tokens, tiles.heat, rtol=1e-4)
    assert [text for row in tiles.written or () for text in row] == [f"{v:.0f}%" for v in tiles.heat.ravel()]


def test_where_a_text_is_true(folder: Path, drawn: list[Panel]) -> None:
    clip = ["--clip", str(folder / "clip")]
    assert run(folder, "merged", *clip, "--text", "a gland", "--text", "stroma") == 0
    gland, stroma = drawn[4:]
    assert (gland.title, stroma.title) == ('"a gland"', '"stroma"')
    assert gland.heat is not None
    assert stroma.heat is not None
    columns, rows = gland.grid
    assert gland.heat.shape == (4 * rows, 4 * columns)
    np.testing.assert_allclose(gland.heat, -stroma.heat, atol=1e-6)  # of two texts, what tells them apart
    assert gland.heat.std() > 0


def test_a_clip_trained_by_siglips_loss_shows_the_same(folder: Path, drawn: list[Panel]) -> None:
    state = torch.load(folder / "clip" / "open_clip.pt")
    (folder / "siglip").mkdir()
    torch.save({**state, "logit_bias": torch.tensor(-10.0)}, folder / "siglip" / "open_clip.pt")
    (folder / "siglip" / "open_clip.json").write_text(json.dumps({**CLIP, "init_logit_bias": -10}))
    for name in ("siglip", "clip"):
        assert run(folder, "merged", "--clip", str(folder / name), "--text", "a gland") == 0
    np.testing.assert_array_equal(drawn[4].heat, drawn[9].heat)


def test_a_clip_alone_writes_a_picture(folder: Path) -> None:
    for ending in ("png", "svg"):
        assert run(folder, "clip", "--text", "a gland", out=f"new/look.{ending}") == 0
    with Image.open(folder / "new" / "look.png") as picture:
        assert picture.width > 800
    assert (folder / "new" / "look.svg").read_text().count("<svg") == 1


@pytest.mark.parametrize(
    ("model", "words", "said"),
    [
        ("merged", ["--text", "a gland"], "--text needs a CLIP with its text tower"),
        ("merged", ["--clip", "CLIP"], "Nothing to look for"),
        ("merged", ["--clip", "ENCODER", "--text", "x"], "vision tower alone"),
        ("merged", ["--clip", "CLIP/open_clip.pt", "--text", "x"], "name it by --model-name"),
        ("clip", [], "Nothing to look for"),
        ("nowhere", [], "No model at"),
        ("nowhere", ["--text", "x"], "No encoder at"),
        ("merged", ["--out", "look.doc"], "must end in .png"),
        ("merged", ["--image", "nowhere.png"], "there is no such file"),
    ],
)
def test_what_is_refused(
    folder: Path, model: str, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"CLIP": str(folder / "clip"), "ENCODER": str(folder / "encoder")}
    for short, path in places.items():
        words = [word.replace(short, path) if word.isupper() or "/" in word else word for word in words]
    assert run(folder, model, *words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert "Traceback" not in error


def test_the_grid_is_that_of_the_canvas() -> None:
    from pallava.tiling import TileSpec

    spec = TileSpec(32, (0.5,) * 3, (0.5,) * 3)
    assert look._grid(Image.new("RGB", (200, 50)), spec) == (4, 1)
