"""Each form of a CLIP opens, embeds as its own library does, and has an identity; the rest is refused in a sentence."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pallava.errors import PallavaError
from pallava.evaluation.encoders import load
from pallava.evaluation.encoders.load import load_encoder, model_kind
from tests.tiny.clips import DESCRIPTION, write_hugging_face, write_open_clip

TEXTS = ["an H&E image of mucus.", "smooth muscle"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {"open_clip": write_open_clip(root / "plip"), "hugging_face": write_hugging_face(root / "clip")}


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8))


@torch.inference_mode()
def test_open_clip_gives_what_open_clip_gives(folders: dict[str, Path], picture: Image.Image):
    import open_clip
    from open_clip.transform import PreprocessCfg, image_transform_v2

    encoder = load_encoder(str(folders["open_clip"]))
    model = open_clip.CLIP(**DESCRIPTION).eval()
    model.load_state_dict(torch.load(folders["open_clip"] / "open_clip.pt"))
    pixels = image_transform_v2(PreprocessCfg(size=16), is_train=False)(picture)[None]
    tokens = open_clip.SimpleTokenizer(context_length=24)(TEXTS)
    torch.testing.assert_close(encoder.encode_image(encoder.preprocess(picture)[None]), model.encode_image(pixels))
    torch.testing.assert_close(encoder.encode_text(TEXTS), model.encode_text(tokens))
    assert encoder.logit_scale == pytest.approx(1 / 0.07, rel=1e-4)


@torch.inference_mode()
def test_hugging_face_gives_what_transformers_gives(folders: dict[str, Path], picture: Image.Image):
    from transformers import CLIPModel, CLIPProcessor

    encoder = load_encoder(str(folders["hugging_face"]))
    model = CLIPModel.from_pretrained(folders["hugging_face"]).eval()
    processor = CLIPProcessor.from_pretrained(folders["hugging_face"])
    inputs = processor(text=TEXTS, images=picture, padding=True, truncation=True, return_tensors="pt")
    expected = model(**inputs)
    image = torch.nn.functional.normalize(encoder.encode_image(encoder.preprocess(picture)[None]), dim=-1)
    text = torch.nn.functional.normalize(encoder.encode_text(TEXTS), dim=-1)
    torch.testing.assert_close(image, expected.image_embeds)
    torch.testing.assert_close(text, expected.text_embeds)
    torch.testing.assert_close(encoder.logit_scale * image @ text.T, expected.logits_per_image)


def test_the_preprocessing_beside_the_weights_counts(folders: dict[str, Path], picture: Image.Image, tmp_path: Path):
    folder = Path(shutil.copytree(folders["open_clip"], tmp_path / "model"))
    plain = load_encoder(str(folder))
    (folder / "encoder").mkdir()
    for name in ("preprocessor_config.json",):
        shutil.copy(folders["hugging_face"] / name, folder / "encoder" / name)
    own = load_encoder(str(folder))
    assert own.identity != plain.identity
    expected = load_encoder(str(folders["hugging_face"])).preprocess(picture)
    torch.testing.assert_close(own.preprocess(picture), expected, atol=0.02, rtol=0)


def test_a_checkpoint_needs_its_model(folders: dict[str, Path], tmp_path: Path):
    state = torch.load(folders["open_clip"] / "open_clip.pt")
    checkpoint = tmp_path / "epoch_1.pt"
    torch.save({"epoch": 1, "state_dict": {f"module.{key}": value for key, value in state.items()}}, checkpoint)
    description = folders["open_clip"] / "open_clip.json"
    found = load_encoder(str(checkpoint), model_name=str(description))
    assert found.identity == load_encoder(str(folders["open_clip"])).identity
    with pytest.raises(PallavaError, match="--model-name"):
        load_encoder(str(checkpoint))
    with pytest.raises(PallavaError, match="no model named 'ViT-B-17'"):
        load_encoder(str(checkpoint), model_name="ViT-B-17")
    with pytest.raises(PallavaError, match="264 missing"):
        load_encoder(str(checkpoint), model_name="ViT-B-16")


def test_siglip_weights_open(folders: dict[str, Path], tmp_path: Path):
    folder = Path(shutil.copytree(folders["open_clip"], tmp_path / "siglip"))
    state = torch.load(folder / "open_clip.pt")
    torch.save({**state, "logit_bias": torch.tensor(-10.0)}, folder / "open_clip.pt")
    assert load_encoder(str(folder)).logit_scale == pytest.approx(1 / 0.07, rel=1e-4)


@torch.inference_mode()
def test_a_name_computes_as_its_weights_were_made(
    folders: dict[str, Path], picture: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import open_clip
    from open_clip import pretrained

    (tmp_path / "plain.json").write_text(json.dumps(DESCRIPTION))
    open_clip.add_model_config(tmp_path / "plain.json")
    weights = str(folders["open_clip"] / "open_clip.pt")
    tags = {"quick": {"url": "none", "quick_gelu": True}, "gelu": {"url": "none"}}
    monkeypatch.setitem(pretrained._PRETRAINED, "plain", tags)
    monkeypatch.setattr("open_clip.factory.download_pretrained", lambda *_, **__: weights)
    found = {tag: load_encoder("plain", pretrained=tag) for tag in tags}
    pixels, tokenize = found["gelu"].preprocess(picture)[None], open_clip.get_tokenizer("plain")
    for tag, encoder in found.items():
        model, tokens = open_clip.CLIP(**DESCRIPTION, quick_gelu=tag == "quick").eval(), tokenize(TEXTS)
        model.load_state_dict(torch.load(weights))
        torch.testing.assert_close(encoder.encode_image(pixels), model.encode_image(pixels))
        torch.testing.assert_close(encoder.encode_text(TEXTS), model.encode_text(tokens))
    assert (found["quick"].encode_image(pixels) - found["gelu"].encode_image(pixels)).abs().max() > 1e-4


def test_identity_is_of_content_and_of_what_weights_do_not_show(folders: dict[str, Path], tmp_path: Path):
    def changed(name: str, **values: object) -> str:
        folder = Path(shutil.copytree(folders["open_clip"], tmp_path / name))
        described = {**DESCRIPTION, **values}
        (folder / "open_clip.json").write_text(json.dumps(described))
        return load_encoder(str(folder)).identity

    heads = {**DESCRIPTION["vision_cfg"], "head_width": 8}
    found = [
        load_encoder(str(folders["open_clip"])).identity,
        changed("quick", quick_gelu=True),
        changed("heads", vision_cfg=heads),
        load_encoder(str(write_open_clip(tmp_path / "other", seed=1))).identity,
    ]
    assert len(set(found)) == len(found)
    assert changed("copy") == found[0]


def test_what_is_no_encoder_is_refused(folders: dict[str, Path], tmp_path: Path):
    (tmp_path / "pallava").mkdir()
    (tmp_path / "pallava" / "config.json").write_text('{"model_type": "pallava"}')
    (tmp_path / "tower").mkdir()
    (tmp_path / "tower" / "config.json").write_text('{"model_type": "clip_vision_model"}')
    (tmp_path / "own_tower").mkdir()
    described = {key: value for key, value in DESCRIPTION.items() if key != "text_cfg"}
    (tmp_path / "own_tower" / "open_clip.json").write_text(json.dumps(described))
    (tmp_path / "empty").mkdir()
    assert model_kind(str(tmp_path / "pallava")) == "pallava"
    assert model_kind(str(folders["hugging_face"])) == model_kind("ViT-B-16") == "encoder"
    for source, reason in {
        str(tmp_path / "tower"): "vision tower alone",
        str(tmp_path / "own_tower"): "vision tower alone",
        str(tmp_path / "empty"): "neither config.json nor an open_clip description",
        "nowhere": "nor an open_clip model name",
        "ViT-B-16": "--pretrained, got none; choose openai",
    }.items():
        with pytest.raises(PallavaError, match=reason):
            load_encoder(source)


def test_a_long_strip_is_cut_to_its_middle_before_it_is_resized():
    """Resized whole to a height of 16, 1 x 100,000 would be an image of 1,600,000 pixels in a row."""
    pixels = np.zeros((1, 100_000, 3), dtype=np.uint8)
    pixels[:, 50_000] = 255
    strip = Image.fromarray(pixels)
    wide, tall = load._trim(strip), load._trim(strip.transpose(Image.Transpose.ROTATE_90))
    assert (wide.size, tall.size) == ((64, 1), (1, 64))
    assert wide.getpixel((32, 0)) == (255, 255, 255)
    assert load._trim(Image.new("RGB", (640, 10))).size == (640, 10)


@pytest.mark.parametrize("form", ["open_clip", "hugging_face"])
def test_both_forms_trim_strips(folders: dict[str, Path], form: str, monkeypatch: pytest.MonkeyPatch):
    seen: list[tuple[int, int]] = []
    trim = load._trim
    monkeypatch.setattr(load, "_trim", lambda image: seen.append(image.size) or trim(image))
    encoder = load_encoder(str(folders[form]))
    assert encoder.preprocess(Image.new("RGB", (100_000, 1))).shape == (3, 16, 16)
    assert seen == [(100_000, 1)]
