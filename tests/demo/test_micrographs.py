import dataclasses

import numpy as np
import pytest

from pallava.demo.micrographs import GRIDS, STAIN_SHARES, UNIT, Facts, draw, random_facts
from pallava.tiling import choose_canvas

PLAIN = Facts("H&E", "moderate", 1, necrosis=False, inflammation=False, mitosis=True)


def drawn(facts, seed=0):
    return draw(facts, np.random.default_rng(seed))


def test_same_seed_same_pixels_and_another_seed_others():
    assert np.array_equal(drawn(PLAIN).pixels, drawn(PLAIN).pixels)
    assert not np.array_equal(drawn(PLAIN).pixels[:100, :100], drawn(PLAIN, 1).pixels[:100, :100])


def test_regions_are_what_the_facts_say_and_do_not_overlap():
    for seed in range(40):
        rng = np.random.default_rng(seed)
        micrograph = draw(random_facts(rng), rng)
        kinds = [region.kind for region in micrograph.regions]
        facts = micrograph.facts
        assert kinds.count("gland") == facts.glands
        assert ("necrosis" in kinds, "inflammation" in kinds) == (facts.necrosis, facts.inflammation)
        assert kinds.count("figure") >= 4
        for i, one in enumerate(micrograph.regions):
            for other in micrograph.regions[i + 1 :]:
                assert np.hypot(one.x - other.x, one.y - other.y) > one.radius + other.radius


def test_denser_nuclei_are_darker_and_stains_differ_in_colour():
    means = [drawn(dataclasses.replace(PLAIN, density=d)).pixels.mean() for d in ("sparse", "moderate", "dense")]
    assert means[0] > means[1] > means[2]
    colours = [drawn(dataclasses.replace(PLAIN, stain=stain)).pixels.mean((0, 1)) for stain in STAIN_SHARES]
    gaps = [np.abs(a - b).max() for i, a in enumerate(colours) for b in colours[i + 1 :]]
    assert min(gaps) > 12


def test_the_fine_detail_leaves_the_amount_of_dye_as_it_is():
    """Only the figures' shape tells, so that no mean of an area can."""
    with_mitosis, without = (
        np.mean([drawn(dataclasses.replace(PLAIN, mitosis=m), seed).pixels.mean() for seed in range(30)])
        for m in (True, False)
    )
    assert with_mitosis == pytest.approx(without, abs=0.8)


def test_canvases_of_several_shapes_occur():
    sizes = {drawn(PLAIN, seed).pixels.shape[:2] for seed in range(40)}
    canvases = {choose_canvas((width, height), 64) for height, width in sizes}
    assert canvases == {(columns * 64, rows * 64) for columns, rows in GRIDS}
    assert all(max(size) < 4 * UNIT * 1.1 for size in sizes)
