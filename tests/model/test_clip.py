"""A CLIP in each of its forms gives the same features; every way back, also through files, gives the same bits."""

import itertools
import json
from pathlib import Path
from typing import get_args

import open_clip
import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer, CLIPConfig, CLIPModel, CLIPVisionConfig, CLIPVisionModel

from pallava.cli import main
from pallava.cli.model import Form
from pallava.errors import PallavaError
from pallava.model import clip as conversion
from pallava.model import load_image_processor, load_plip
from pallava.model.clip import WEIGHTS
from pallava.model.weights import read_weights
from tests.tiny import golden

VISION = {"image_size": 32, "layers": 3, "width": 32, "head_width": 8, "patch_size": 16, "mlp_ratio": 2.0}
TEXT = {"context_length": 8, "vocab_size": 50, "width": 24, "heads": 4, "layers": 2}
PIXELS = torch.linspace(-2, 2, 2 * 3 * 32 * 32).view(2, 3, 32, 32)
TOKENS = torch.tensor([[3, 7, 9, 49, 0, 0, 0, 0], [3, 11, 5, 6, 8, 49, 0, 0]])


def description(quick_gelu: bool) -> dict:
    return {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": TEXT, "quick_gelu": quick_gelu}


def random_clip(quick_gelu: bool) -> open_clip.CLIP:
    torch.manual_seed(0)
    model = open_clip.CLIP(**description(quick_gelu)).eval()
    with torch.no_grad():  # biases start at zero, where a mistake would not show
        for value in model.parameters():
            value.add_(torch.randn_like(value) * 0.05)
    return model


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) and found[key].dtype == expected[key].dtype for key in expected)


@pytest.mark.parametrize("quick_gelu", [True, False])
def test_features_and_logits_agree(quick_gelu: bool) -> None:
    ours = random_clip(quick_gelu)
    theirs = CLIPModel(conversion._huggingface_config(description(quick_gelu))).eval()
    theirs.load_state_dict(conversion.open_clip_to_huggingface(ours.state_dict()), strict=True)
    with torch.no_grad():
        found = theirs(input_ids=TOKENS, pixel_values=PIXELS)
        torch.testing.assert_close(theirs.get_image_features(PIXELS), ours.encode_image(PIXELS), atol=1e-5, rtol=0)
        torch.testing.assert_close(found.logits_per_image, ours.get_logits(PIXELS, TOKENS)[0], atol=1e-5, rtol=0)
    other = CLIPModel(conversion._huggingface_config(description(not quick_gelu))).eval()
    other.load_state_dict(theirs.state_dict())
    with torch.no_grad():  # the activation matters at this size
        assert (other.get_image_features(PIXELS) - ours.encode_image(PIXELS)).abs().max() > 1e-4


@pytest.mark.parametrize("quick_gelu", [True, False])
def test_a_description_survives(quick_gelu: bool) -> None:
    config = conversion._huggingface_config(description(quick_gelu))
    back = conversion._open_clip_description(config)
    assert back == {**description(quick_gelu), "text_cfg": {**TEXT, "mlp_ratio": 4.0}}
    open_clip.CLIP(**back).load_state_dict(random_clip(quick_gelu).state_dict())
    assert "text_cfg" not in conversion._open_clip_description(config.vision_config)


def test_round_trips_give_back_every_bit() -> None:
    ours = random_clip(True).state_dict()
    theirs = conversion._convert_state(ours, "huggingface")
    assert_same(conversion._convert_state(theirs, "open_clip"), ours)
    assert_same(conversion._convert_state(conversion._convert_state(theirs, "open_clip"), "huggingface"), theirs)
    published = torch.load(golden.GOLDEN / "plip_vision.bin", weights_only=True)
    for form in conversion.FORMS:
        converted = conversion._convert_state(published, form)
        assert conversion._form_of(converted) == form
        assert_same(conversion._convert_state(converted, "published"), published)


def test_the_published_tower_in_open_clip(tmp_path) -> None:
    encoder = load_plip(golden.published_plip_folder(tmp_path))
    published = torch.load(golden.GOLDEN / "plip_vision.bin", weights_only=True)
    described = conversion._open_clip_description(encoder.config)
    tower = open_clip.CLIP(**described, text_cfg=TEXT).visual.eval()
    state = {k.removeprefix("visual."): v for k, v in conversion._convert_state(published, "open_clip").items()}
    assert tower.load_state_dict(state, strict=False).missing_keys == ["proj"]
    tower.proj = None
    with torch.no_grad():
        torch.testing.assert_close(tower(PIXELS), encoder(PIXELS).pooler_output, atol=1e-5, rtol=0)


def test_half_precision_stays_half() -> None:
    ours = {key: value.to(torch.bfloat16) for key, value in random_clip(False).state_dict().items()}
    assert_same(conversion._convert_state(conversion._convert_state(ours, "huggingface"), "open_clip"), ours)


def test_a_text_tower_in_a_module_of_its_own_is_read() -> None:
    ours = random_clip(True).state_dict()
    apart = {k if k.startswith(("visual.", "logit")) else f"text.{k}": v for k, v in ours.items()}
    assert_same(conversion._convert_state(apart, "huggingface"), conversion._convert_state(ours, "huggingface"))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"visual.attn_pool.probe": torch.ones(1)}, "visual.attn_pool.probe"),
        ({"logit_bias": torch.ones(1)}, "logit_bias"),
    ],
)
def test_weights_without_another_name_are_refused(change: dict[str, Tensor], reason: str) -> None:
    with pytest.raises(PallavaError, match=reason):
        conversion._convert_state({**random_clip(True).state_dict(), **change}, "huggingface")
    with pytest.raises(PallavaError, match="layer1.weight"):
        conversion._convert_state({"layer1.weight": torch.ones(1)}, "huggingface")


@pytest.mark.parametrize(
    ("vision", "reason"),
    [
        ({"pool_type": "avg"}, "pool_type=avg"),
        ({"layers": [2, 2, 2, 2]}, "layers="),
        ({"timm_model_name": "vit_base_patch16_224"}, "timm_model_name"),
    ],
)
def test_other_models_are_refused(vision: dict, reason: str) -> None:
    with pytest.raises(PallavaError, match=reason):
        conversion._huggingface_config({**description(False), "vision_cfg": {**VISION, **vision}})


def test_a_square_may_be_described_by_both_sides() -> None:
    sides = {"image_size": [32, 32], "patch_size": (16, 16)}
    config = conversion.huggingface_vision_config({**description(False), "vision_cfg": {**VISION, **sides}})
    assert (config.image_size, config.patch_size) == (32, 16)


@pytest.mark.parametrize("size", [[32, 48], [32, 32, 48], [], "32", 0, 32.0])
def test_what_is_no_square_is_refused(size: object) -> None:
    with pytest.raises(PallavaError, match=r"square, but image_size is "):
        conversion.huggingface_vision_config({**description(False), "vision_cfg": {**VISION, "image_size": size}})


def test_what_open_clip_cannot_build_is_refused() -> None:
    with pytest.raises(PallavaError, match="activation 'relu'"):
        conversion._open_clip_description(CLIPVisionConfig(hidden_act="relu"))
    mixed = CLIPConfig(vision_config={"hidden_act": "gelu"}, text_config={"hidden_act": "quick_gelu"})
    with pytest.raises(PallavaError, match="one hidden_act for both towers"):
        conversion._open_clip_description(mixed)
    with pytest.raises(PallavaError, match="layer_norm_eps"):
        conversion._open_clip_description(CLIPVisionConfig(layer_norm_eps=1e-6))


def test_a_vision_tower_alone() -> None:
    encoder = CLIPVisionModel(conversion.huggingface_vision_config(description(False)))
    state = conversion._convert_state(encoder.state_dict(), "open_clip")
    assert_same(conversion._convert_state(state, "huggingface"), encoder.state_dict())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    (folder / "tiny.json").write_text(json.dumps(description(True)))
    state = {f"module.{key}": value for key, value in random_clip(True).state_dict().items()}
    torch.save({"epoch": 3, "name": "tiny", "state_dict": state}, folder / "epoch_3.pt")
    return folder / "epoch_3.pt"


def test_from_a_training_checkpoint_to_hugging_face_and_back(checkpoint: Path, tmp_path: Path) -> None:
    model = str(checkpoint.with_name("tiny.json"))
    conversion.convert_encoder(checkpoint, tmp_path / "hf", "huggingface", model)
    clip = CLIPModel.from_pretrained(tmp_path / "hf").eval()
    conversion.convert_encoder(tmp_path / "hf", tmp_path / "back", "open_clip")
    described = json.loads((tmp_path / "back" / "open_clip.json").read_text())
    again = open_clip.CLIP(**described)
    again.load_state_dict(torch.load(tmp_path / "back" / "open_clip.pt", weights_only=True))
    assert_same(again.state_dict(), random_clip(True).state_dict())
    conversion.convert_encoder(tmp_path / "back", tmp_path / "published", "published")
    with torch.no_grad():
        expected = clip.vision_model(PIXELS).last_hidden_state
        torch.testing.assert_close(load_plip(tmp_path / "published")(PIXELS).last_hidden_state, expected)
    assert load_image_processor(tmp_path / "published").crop_size == {"height": 32, "width": 32}


def test_the_published_folder_to_hugging_face_and_back(tmp_path: Path) -> None:
    published = golden.published_plip_folder(tmp_path / "plip")
    for number, form in enumerate(["huggingface", "published", "open_clip"]):
        conversion.convert_encoder(published, tmp_path / str(number), form)
    back = tmp_path / "back"
    conversion.convert_encoder(tmp_path / "0", back, "published")
    assert_same(read_weights(back), read_weights(published))
    assert load_plip(back).config.hidden_act == load_plip(published).config.hidden_act == "quick_gelu"


@pytest.mark.parametrize(
    ("is_whole", "start", "through"),
    [
        *((False, *pair) for pair in itertools.product(conversion.FORMS, conversion.FORMS)),
        *((True, *pair) for pair in itertools.product(("open_clip", "huggingface"), repeat=2)),
    ],
)
def test_from_every_form_to_every_other_and_back(
    is_whole: bool, start: conversion.Form, through: conversion.Form, checkpoint: Path, tmp_path: Path
) -> None:
    folders = [tmp_path / name for name in ("start", "through", "back")]
    if is_whole:
        conversion.convert_encoder(checkpoint, folders[0], start, str(checkpoint.with_name("tiny.json")))
    else:
        conversion.convert_encoder(golden.published_plip_folder(tmp_path / "plip"), folders[0], start)
    conversion.convert_encoder(folders[0], folders[1], through)
    conversion.convert_encoder(folders[1], folders[2], start)
    first, last = (read_weights(folder / WEIGHTS if start == "open_clip" else folder) for folder in folders[::2])
    assert_same(last, first)
    first, last = (conversion._open_clip_description(conversion._read_clip(folder)[1]) for folder in folders[::2])
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
        conversion.convert_encoder(tmp_path / "plip", tmp_path / "hf", "huggingface")
    conversion.convert_encoder(tmp_path / "plip", tmp_path / "published", "published")
    clip.visual.proj = None
    with torch.no_grad():
        found = load_plip(tmp_path / "published")(PIXELS).pooler_output
        torch.testing.assert_close(found, clip.visual(PIXELS), atol=1e-5, rtol=0)
    conversion.convert_encoder(tmp_path / "plip", tmp_path / "again", "open_clip")
    again = open_clip.CLIP(**json.loads((tmp_path / "again" / "open_clip.json").read_text()))
    again.load_state_dict(torch.load(tmp_path / "again" / WEIGHTS, weights_only=True))
    assert again.logit_bias is not None
    assert_same(read_weights(tmp_path / "again" / WEIGHTS), read_weights(tmp_path / "plip" / WEIGHTS))


def test_the_preprocessing_goes_along(tmp_path: Path) -> None:
    published = golden.published_plip_folder(tmp_path / "plip")
    processor = load_image_processor(published)
    processor.image_mean = [0.7, 0.6, 0.7]
    processor.save_pretrained(published)
    conversion.convert_encoder(published, tmp_path / "hf", "huggingface")
    assert load_image_processor(tmp_path / "hf").image_mean == [0.7, 0.6, 0.7]


def test_the_tokenizer_comes_along(tmp_path: Path) -> None:
    described = {**description(True), "text_cfg": {**TEXT, "vocab_size": 49408}}
    (tmp_path / "tiny.json").write_text(json.dumps(described))
    torch.save(open_clip.CLIP(**described).state_dict(), tmp_path / "tiny.pt")
    conversion.convert_encoder(tmp_path / "tiny.pt", tmp_path / "hf", "huggingface", str(tmp_path / "tiny.json"))
    tokenizer, theirs = AutoTokenizer.from_pretrained(tmp_path / "hf"), open_clip.SimpleTokenizer()
    for text in ("H&E stain", "Ki-67 naïve 20x ...", "adenocarcinoma of the colon"):
        found = tokenizer(text)["input_ids"]
        assert found == theirs(text)[0, : len(found)].tolist()
        assert found[-1] == 49407
    (tmp_path / "hf" / "merges.txt").write_text("own")
    conversion.convert_encoder(tmp_path / "hf", tmp_path / "again", "huggingface")
    assert (tmp_path / "again" / "merges.txt").read_text() == "own"


def test_mistakes_are_told(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert get_args(Form) == conversion.FORMS
    out = str(tmp_path / "out")
    assert main(["encoder", "convert", "none", out, "--to", "published"]) == 2
    assert "error: no encoder at 'none'" in capsys.readouterr().err
    with pytest.raises(PallavaError, match="--model-name"):
        conversion.convert_encoder(checkpoint, out, "huggingface")
    with pytest.raises(PallavaError, match="'ViT-X'"):
        conversion.convert_encoder(checkpoint, out, "huggingface", "ViT-X")
    with pytest.raises(PallavaError, match="do not fit"):  # weights of another size than their description's
        conversion.convert_encoder(checkpoint, out, "huggingface", "ViT-B-32")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(PallavaError, match="exists already"):
        conversion.convert_encoder(checkpoint, tmp_path, "huggingface")
