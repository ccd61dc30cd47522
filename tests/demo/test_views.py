import itertools

import numpy as np
import pytest
from PIL import Image

from pallava.demo.micrographs import draw, random_facts
from pallava.demo.settings import PIXEL_MEAN, PIXEL_STD
from pallava.demo.views import Picture, view_batches
from pallava.tiling import TileSpec

SPEC = TileSpec(32, PIXEL_MEAN, PIXEL_STD)
FIGURES = {"mitotic bars", "pale smudge"}


def drawn(seed):
    rng = np.random.default_rng(seed)
    micrograph = draw(random_facts(rng), rng)
    return Picture(Image.fromarray(micrograph.pixels), micrograph.facts, micrograph.regions, micrograph.grid[0])


@pytest.fixture(scope="module")
def batches():
    pictures = [drawn(seed) for seed in range(60)]
    return list(itertools.islice(view_batches(pictures, SPEC, np.random.default_rng(0), batch_size=16), 12))


def test_batches_hold_normalized_pixels_and_a_caption_each(batches):
    for pixels, captions in batches:
        assert pixels.shape == (len(captions), 3, 32, 32)
        assert 8 <= len(captions) <= 16
    mean = np.mean([float(pixels.mean()) for pixels, _ in batches])
    assert abs(mean) < 1


def test_a_caption_comes_once_in_a_batch_unless_the_batch_is_on_figures(batches):
    on_figures = [captions for _, captions in batches if FIGURES & set(captions)]
    others = [captions for _, captions in batches if not FIGURES & set(captions)]
    assert on_figures
    assert others
    assert all(len(set(captions)) == len(captions) for captions in others)


def test_overviews_and_parts_are_both_there_and_no_overview_names_a_figure(batches):
    captions = [caption for _, batch in batches for caption in batch]
    overviews = [caption for caption in captions if caption.startswith("overview")]
    assert overviews
    assert any(caption.startswith("tile") for caption in captions)
    assert not any(figure in caption for figure in FIGURES for caption in overviews)
