"""A CLIP goes through every form on disk and comes back; what cannot is told in a sentence."""

import itertools
import json
from pathlib import Path

import open_clip
import pytest
import torch
from transformers import AutoTokenizer, CLIPModel

from pallava.cli import main
from pallava.cli.model import FORMS
from pallava.errors import PallavaError
from pallava.model import load_image_processor, load_plip
from pallava.model.clip import FORMS as ALL_FORMS
from pallava.model.clip import WEIGHTS, Form, _open_clip_description, _read_clip, convert_encoder
from pallava.model.weights import read_weights
from tests.model.test_clip import PIXELS, TEXT, assert_same, description, random_clip
from tests.tiny import golden


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    (folder / "tiny.json").write_text(json.dumps(description(True)))
    state = {f"module.{key}": value for key, value in random_clip(True).state_dict().items()}
    torch.save({"epoch": 3, "name": "tiny", "state_dict": state}, folder / "epoch_3.pt")
    return folder / "epoch_3.pt"


def test_from_a_training_checkpoint_to_hugging_face_and_back(checkpoint: Path, tmp_path: Path) -> None:
    model = str(checkpoint.with_name("tiny.json"))
    convert_encoder(checkpoint, tmp_path / "hf", "huggingface", model)
    clip = CLIPModel.from_pretrained(tmp_path / "hf").eval()
    convert_encoder(tmp_path / "hf", tmp_path / "back", "open_clip")
    described = json.loads((tmp_path / "back" / "open_clip.json").read_text())
    again = open_clip.CLIP(**described)
    again.load_state_dict(torch.load(tmp_path / "back" / "open_clip.pt", weights_only=True))
    assert_same(again.state_dict(), random_clip(True).state_dict())
    convert_encoder(tmp_path / "back", tmp_path / "published", "published")
    with torch.no_grad():
        expected = clip.vision_model(PIXELS).last_hidden_state
        torch.testing.assert_close(load_plip(tmp_path / "published")(PIXELS).last_hidden_state, expected)
    assert load_image_processor(tmp_path / "published").crop_size == {"height": 32, "width": 32}


def test_the_published_folder_to_hugging_face_and_back(tmp_path: Path) -> None:
    published = golden.published_plip_folder(tmp_path / "plip")
    for number, form in enumerate(["huggingface", "published", "open_clip"]):
        convert_encoder(published, tmp_path / str(number), form)
    back = tmp_path / "back"
    convert_encoder(tmp_path / "0", back, "published")
    assert_same(read_weights(back), read_weights(published))
    assert load_plip(back).config.hidden_act == load_plip(published).config.hidden_act == "quick_gelu"


@pytest.mark.parametrize(
    ("is_whole", "start", "through"),
    [
        *((False, *pair) for pair in itertools.product(ALL_FORMS, ALL_FORMS)),
        *((True, *pair) for pair in itertools.product(("open_clip", "huggingface"), repeat=2)),
    ],
)
def test_from_every_form_to_every_other_and_back(
    is_whole: bool, start: Form, through: Form, checkpoint: Path, tmp_path: Path
) -> None:
    folders = [tmp_path / name for name in ("start", "through", "back")]
    if is_whole:
        convert_encoder(checkpoint, folders[0], start, str(checkpoint.with_name("tiny.json")))
    else:
        convert_encoder(golden.published_plip_folder(tmp_path / "plip"), folders[0], start)
    convert_encoder(folders[0], folders[1], through)
    convert_encoder(folders[1], folders[2], start)
    first, last = (read_weights(folder / WEIGHTS if start == "open_clip" else folder) for folder in folders[::2])
    assert_same(last, first)
    first, last = (_open_clip_description(_read_clip(folder)[1]) for folder in folders[::2])
    assert last == first
    assert ("text_cfg" in first) == is_whole


def test_weights_of_siglips_loss(tmp_path: Path) -> None:
    described = {**description(True), "init_logit_bias": -10.0}
    torch.manual_seed(0)
    clip = open_clip.CLIP(**described).eval()
    (tmp_path / "plip").mkdir()
    (tmp_path / "plip" / "open_clip.json").write_text(json.dumps(described))
    torch.save(clip.state_dict(), tmp_path / "plip" / WEIGHTS)
    with pytest.raises(PallavaError, match="logit_bias.*published form"):
        convert_encoder(tmp_path / "plip", tmp_path / "hf", "huggingface")
    convert_encoder(tmp_path / "plip", tmp_path / "published", "published")
    clip.visual.proj = None
    with torch.no_grad():
        found = load_plip(tmp_path / "published")(PIXELS).pooler_output
        torch.testing.assert_close(found, clip.visual(PIXELS), atol=1e-5, rtol=0)
    convert_encoder(tmp_path / "plip", tmp_path / "again", "open_clip")
    again = open_clip.CLIP(**json.loads((tmp_path / "again" / "open_clip.json").read_text()))
    again.load_state_dict(torch.load(tmp_path / "again" / WEIGHTS, weights_only=True))
    assert again.logit_bias is not None
    assert_same(read_weights(tmp_path / "again" / WEIGHTS), read_weights(tmp_path / "plip" / WEIGHTS))


def test_the_preprocessing_goes_along(tmp_path: Path) -> None:
    published = golden.published_plip_folder(tmp_path / "plip")
    processor = load_image_processor(published)
    processor.image_mean = [0.7, 0.6, 0.7]
    processor.save_pretrained(published)
    convert_encoder(published, tmp_path / "hf", "huggingface")
    assert load_image_processor(tmp_path / "hf").image_mean == [0.7, 0.6, 0.7]


def test_the_tokenizer_comes_along(tmp_path: Path) -> None:
    described = {**description(True), "text_cfg": {**TEXT, "vocab_size": 49408}}
    (tmp_path / "tiny.json").write_text(json.dumps(described))
    torch.save(open_clip.CLIP(**described).state_dict(), tmp_path / "tiny.pt")
    convert_encoder(tmp_path / "tiny.pt", tmp_path / "hf", "huggingface", str(tmp_path / "tiny.json"))
    tokenizer, theirs = AutoTokenizer.from_pretrained(tmp_path / "hf"), open_clip.SimpleTokenizer()
    for text in ("H&E stain", "Ki-67 naïve 20x ...", "adenocarcinoma of the colon"):
        found = tokenizer(text)["input_ids"]
        assert found == theirs(text)[0, : len(found)].tolist()
        assert found[-1] == 49407
    (tmp_path / "hf" / "merges.txt").write_text("own")
    convert_encoder(tmp_path / "hf", tmp_path / "again", "huggingface")
    assert (tmp_path / "again" / "merges.txt").read_text() == "own"


def test_mistakes_are_told(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert FORMS == ALL_FORMS
    out = str(tmp_path / "out")
    assert main(["encoder", "convert", "none", out, "--to", "published"]) == 2
    assert "error: no encoder at 'none'" in capsys.readouterr().err
    with pytest.raises(PallavaError, match="--model-name"):
        convert_encoder(checkpoint, out, "huggingface")
    with pytest.raises(PallavaError, match="'ViT-X'"):
        convert_encoder(checkpoint, out, "huggingface", "ViT-X")
    with pytest.raises(PallavaError, match="do not fit"):  # weights of another size than their description's
        convert_encoder(checkpoint, out, "huggingface", "ViT-B-32")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(PallavaError, match="exists already"):
        convert_encoder(checkpoint, tmp_path, "huggingface")
