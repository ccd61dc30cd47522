from pathlib import Path

import numpy as np
import pytest
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from pallava.evaluation.encoders.load import load_encoder
from pallava.pretraining.export import image_processor
from tests.tiny.clips import write_open_clip


@pytest.mark.parametrize("resize_mode", ["shortest", "squash"])
def test_the_preprocessing_beside_the_weights_is_that_of_the_training(tmp_path: Path, resize_mode: str) -> None:
    folder = write_open_clip(tmp_path / "plip")
    values = {"size": 16, "mean": (0.7, 0.6, 0.5), "std": (0.2, 0.3, 0.4), "resize_mode": resize_mode}
    image_processor({**values, "interpolation": "bicubic"}).save_pretrained(folder / "encoder")
    pixels = np.random.default_rng(0).integers(0, 256, (24, 48, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    expected = image_transform_v2(PreprocessCfg(**values), is_train=False)(image)
    np.testing.assert_array_equal(load_encoder(str(folder)).preprocess(image), expected)
