import numpy as np
from PIL import Image

from pallava.demo.real import crops, measured_caption


def test_the_caption_measures_tissue_and_colour():
    pixels = np.full((10, 10, 3), 245, np.uint8)
    pixels[:4] = (150, 95, 150)
    assert measured_caption("H&E", pixels) == "H&E stain, tissue fills 40 percent, its colour is purple"


def test_bare_glass_is_left_out():
    rng = np.random.default_rng(0)
    assert list(crops(Image.new("RGB", (600, 600), "white"), 5, rng)) == []
    pieces = list(crops(Image.new("RGB", (600, 600), (150, 95, 150)), 5, rng))
    assert len(pieces) == 5
    assert all(160 <= side <= 402 for piece in pieces for side in piece.size)
