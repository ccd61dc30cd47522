"""`pallava look` from the command line: what is drawn, for which kinds of folders, and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from pallava.cli import main
from pallava.evaluation.encoders.look import _seen_panels, look
from pallava.model import PALLaVAForConditionalGeneration, PALLaVAProcessor, load_encoder, load_image_processor
from pallava.prompts import get_template
from pallava.report.look import Panel
from pallava.tiling import TileSpec, make_tiles
from tests.model.test_encoders import connector_for, save_encoder, with_adapter
from tests.tiny import golden
from tests.tiny.training import save_parts

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
    monkeypatch.setattr("pallava.evaluation.encoders.look.draw_panels", lambda given, *_, **__: panels.extend(given))
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


@pytest.mark.parametrize("source", ["clip", "clip/encoder", None])
def test_the_clip_that_the_encoder_is_part_of_is_found(
    folder: Path, source: str | None, tmp_path: Path, drawn: list[Panel], capsys: pytest.CaptureFixture[str]
) -> None:
    """Where conversion took the encoder from, or as plip beside the model."""
    shutil.copytree(folder / "merged", tmp_path / "model")
    clip = shutil.copytree(folder / "clip", tmp_path / ("clip" if source else "plip"))
    (clip / "encoder").mkdir()
    described = json.loads((tmp_path / "model" / "config.json").read_text())
    described["encoder_source"] = str(tmp_path / source) if source else "timm:gone"
    (tmp_path / "model" / "config.json").write_text(json.dumps(described))
    words = ["--image", str(folder / "picture.png"), "--text", "a gland", "--out", str(tmp_path / "look.png")]
    assert main(["look", str(tmp_path / "model"), *words]) == 0
    assert [panel.title for panel in drawn][3:] == ["Tokens that were read", '"a gland"']
    assert f"texts are compared by the CLIP in {clip}\n" in capsys.readouterr().out


def test_without_any_clip_the_rest_is_drawn(
    folder: Path, drawn: list[Panel], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folder, "merged", "--text", "a gland") == 0
    assert [panel.title for panel in drawn] == ["Overview", "Canvas", "Tiles that were read", "Tokens that were read"]
    said = capsys.readouterr()
    assert "--clip plip" in said.err
    assert said.out.splitlines() == [f"wrote {folder / 'look.png'}"]


def test_a_known_text_lights_up_its_place(folder: Path, tmp_path: Path, drawn: list[Panel]) -> None:
    """A CLIP that learnt two colours by name, on a blue picture with one red place."""
    clip = save_clip_of_colours(tmp_path / "colours", {"red": (200, 40, 60), "blue": (60, 40, 200)})
    pixels = np.full((64, 128, 3), (60, 40, 200), dtype=np.uint8)
    pixels[32:48, 80:96] = (200, 40, 60)  # of 4 x 2 tiles the third of the second row, there 2 x 2 of 4 x 4 patches
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    words = ["--image", str(tmp_path / "picture.png"), "--text", "red", "--text", "blue"]
    assert main(["look", str(clip), *words, "--out", str(tmp_path / "look.png")]) == 0
    overview, canvas, red, blue = drawn
    assert overview.image.shape == (32, 32, 3)
    assert canvas.grid == (4, 2)
    assert canvas.heat is None
    assert red.heat is not None
    assert blue.heat is not None
    is_red = np.zeros((8, 16), dtype=bool)
    is_red[4:6, 10:12] = True
    assert red.heat[is_red].min() > red.heat[~is_red].max()
    assert blue.heat[is_red].max() < blue.heat[~is_red].min()


def save_clip_of_colours(folder: Path, colours: dict[str, tuple[int, int, int]]) -> Path:
    """Trains a few steps on pictures of one colour each."""
    torch.manual_seed(0)
    clip = open_clip.CLIP(**CLIP)
    ids = open_clip.SimpleTokenizer(context_length=12)(list(colours))
    mean, std = (torch.tensor(values) for values in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    pictures = ((torch.tensor(list(colours.values())) / 255 - mean) / std)[..., None, None].expand(-1, -1, 32, 32)
    optimizer = torch.optim.Adam(clip.parameters(), lr=1e-3)
    for _ in range(40):
        seen, said, scale = clip(pictures + 0.1 * torch.randn(len(colours), 3, 32, 32), ids)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(scale * seen @ said.T, torch.arange(len(colours))).backward()
        optimizer.step()
    folder.mkdir()
    torch.save(clip.state_dict(), folder / "open_clip.pt")
    (folder / "open_clip.json").write_text(json.dumps(CLIP))
    return folder


def test_a_dollar_is_no_formula(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("matplotlib.mathtext.MathTextParser.parse", lambda *_: pytest.fail("read as a formula"))
    shutil.copy(folder / "picture.png", tmp_path / "a $\\frac{$ b.png")
    words = ["--image", str(tmp_path / "a $\\frac{$ b.png"), "--text", "cost $\\frac{$ and $5$"]
    assert main(["look", str(folder / "clip"), *words, "--out", str(tmp_path / "look.png")]) == 0


def test_a_clip_alone_writes_a_picture(folder: Path) -> None:
    for ending in ("png", "svg"):
        assert run(folder, "clip", "--text", "a gland", out=f"new/look.{ending}") == 0
    with Image.open(folder / "new" / "look.png") as picture:
        assert picture.width > 800
    assert (folder / "new" / "look.svg").read_text().count("<svg") == 1


@pytest.mark.parametrize(
    ("model", "words", "said"),
    [
        ("merged", ["--clip", "CLIP"], "needs --text"),
        ("merged", ["--clip", "ENCODER", "--text", "x"], "vision tower alone"),
        ("merged", ["--clip", "CLIP/open_clip.pt", "--text", "x"], "needs --model-name"),
        ("clip", [], "needs --text"),
        ("nowhere", [], "nowhere' does not exist"),
        ("nowhere", ["--text", "x"], "no encoder at"),
        ("merged", ["--out", "look.doc"], "must end in .png"),
        ("merged", ["--image", "nowhere.png"], "no such file"),
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
    spec = TileSpec(32, (0.5,) * 3, (0.5,) * 3)
    image = Image.new("RGB", (200, 50))
    _, canvas = _seen_panels(image, spec, make_tiles(image, spec), 16)
    assert canvas.grid == (4, 1)


def test_look_from_python(folder: Path, tmp_path: Path) -> None:
    clip = str(folder / "clip")
    assert look(folder / "merged", folder / "picture.png", tmp_path / "a.png", texts=["a gland"], clip=clip) == clip
    assert look(folder / "merged", folder / "picture.png", tmp_path / "b.svg") is None
    assert (tmp_path / "a.png").is_file()
    assert (tmp_path / "b.svg").is_file()
