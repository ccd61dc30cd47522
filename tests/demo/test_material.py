from itertools import islice

import numpy as np
import pytest
from PIL import Image

from pallava.demo.material import Picture, crops, measured_caption, views
from pallava.demo.micrographs import draw, random_facts

FIGURES = {"mitotic bars", "pale smudge"}


def drawn(seed):
    rng = np.random.default_rng(seed)
    micrograph = draw(random_facts(rng), rng)
    return Picture(Image.fromarray(micrograph.pixels), micrograph.facts, micrograph.regions, micrograph.grid[0])


@pytest.fixture(scope="module")
def some():
    pictures = [drawn(seed) for seed in range(30)]
    return list(islice(views(pictures, 32, np.random.default_rng(0)), 300))


def test_a_view_is_a_square_of_bytes(some):
    assert all(view.shape == (32, 32, 3) and view.dtype == np.uint8 for view, _ in some)
    assert np.std([view.mean() for view, _ in some]) > 1


def test_a_third_may_be_on_figures_alone_and_a_third_of_the_rest_are_overviews(some):
    captions = [caption for _, caption in some]
    assert 0.1 < np.mean([caption in FIGURES for caption in captions]) < 0.34
    assert 0.15 < np.mean([caption.startswith("overview") for caption in captions]) < 0.3
    assert any(caption.startswith("tile") for caption in captions)


def test_no_overview_names_a_figure(some):
    overviews = [caption for _, caption in some if caption.startswith("overview")]
    assert not any(figure in caption for figure in FIGURES for caption in overviews)


def test_the_same_seed_gives_the_same_views(some):
    again = islice(views([drawn(seed) for seed in range(30)], 32, np.random.default_rng(0)), 20)
    assert all(np.array_equal(one, other) and a == b for (one, a), (other, b) in zip(again, some, strict=False))


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
