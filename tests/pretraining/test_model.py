"""The model follows from its name, weights and options; its preprocessing is that of the training."""

import json
from pathlib import Path

import numpy as np
import open_clip_train.main as training
import pytest
from open_clip import pretrained
from open_clip.transform import PreprocessCfg, image_transform_v2
from open_clip_train.params import parse_args
from PIL import Image

from pallava.evaluation.encoders.load import load_encoder
from pallava.pretraining import trainer
from pallava.pretraining.run import describe
from pallava.pretraining.trainer import image_processor, train
from tests.tiny.clips import write_open_clip
from tests.tiny.pretraining import MODEL


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model without quick-GELU, that has weights of both kinds."""
    path = tmp_path / "two-kinds.json"
    path.write_text(json.dumps(MODEL))
    tags = {"quick": {"url": "none", "quick_gelu": True}, "gelu": {"url": "none"}}
    monkeypatch.setitem(pretrained._PRETRAINED, "two-kinds", tags)
    return path


@pytest.mark.parametrize(("weights", "is_quick"), [("quick", True), ("gelu", False), ("", False)])
def test_the_activation_is_that_of_the_weights(
    model: Path, weights: str, is_quick: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bool(describe(str(model), weights, parse_args([])).get("quick_gelu")) == is_quick
    told: list[list[str]] = []
    monkeypatch.setattr(trainer, "install_hooks", lambda **_: None)
    monkeypatch.setattr(training, "main", lambda words: told.append(words) or 1)
    train(tmp_path, ["--model", "two-kinds", "--pretrained", weights], model, augment=False)
    assert parse_args(told[0]).force_quick_gelu == is_quick


def test_options_change_it(model: Path) -> None:
    options = ["--force-image-size", "48", "--force-context-length", "9", "--force-quick-gelu", "--siglip"]
    described = describe(str(model), "", parse_args(options))
    assert described["vision_cfg"]["image_size"] == 48
    assert described["text_cfg"]["context_length"] == 9
    assert described["quick_gelu"]
    assert described["init_logit_bias"] == -10
    described = describe(str(model), "", parse_args(["--force-image-size", "48", "48"]))
    assert described["vision_cfg"]["image_size"] == [48, 48]


@pytest.mark.parametrize("resize_mode", ["shortest", "squash"])
def test_the_preprocessing_beside_the_weights_is_that_of_the_training(tmp_path: Path, resize_mode: str) -> None:
    folder = write_open_clip(tmp_path / "plip")
    values = {"size": 16, "mean": (0.7, 0.6, 0.5), "std": (0.2, 0.3, 0.4), "resize_mode": resize_mode}
    image_processor({**values, "interpolation": "bicubic"}).save_pretrained(folder / "encoder")
    pixels = np.random.default_rng(0).integers(0, 256, (24, 48, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    expected = image_transform_v2(PreprocessCfg(**values), is_train=False)(image)
    np.testing.assert_array_equal(load_encoder(str(folder)).preprocess(image), expected)
