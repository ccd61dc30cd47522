"""Canvas choice and tiles against the recorded ones, and against transformers' own LLaVA-NeXT code."""

import json
import random
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from pallava.tiling import PUBLISHED_CANVASES, TileSpec, choose_canvas, make_tiles

GOLDEN = Path(__file__).parents[1] / "golden"
TILE = 32


@pytest.fixture(scope="module")
def spec() -> TileSpec:
    meta = json.loads((GOLDEN / "meta.json").read_text())
    return TileSpec(meta["tile"], tuple(meta["image_mean"]), tuple(meta["image_std"]), meta["resample"])


def test_canvas_choice_is_the_recorded_one():
    golden = json.loads((GOLDEN / "tiling_best_resolution.json").read_text())
    rows = golden["rows_width_height_bestwidth_bestheight"]
    assert len(rows) == 50
    for width, height, *canvas in rows:
        assert choose_canvas((width, height), golden["tile"]) == tuple(canvas), (width, height)


@pytest.mark.parametrize("index", range(3))
def test_tiles_are_the_recorded_ones(index: int, spec: TileSpec):
    golden = load_file(GOLDEN / "tiling_io.safetensors")
    tiles = make_tiles(Image.fromarray(golden[f"image_{index}"].numpy()), spec)
    assert tiles.dtype == torch.float32
    assert tiles.is_contiguous()
    torch.testing.assert_close(tiles, golden[f"tiles_{index}"], atol=1e-5, rtol=0)


def test_canvas_choice_equals_transformers():
    from transformers.image_processing_utils import select_best_resolution

    resolutions = [(rows * TILE, columns * TILE) for columns, rows in PUBLISHED_CANVASES]
    draw = random.Random(0)
    for _ in range(2000):
        width, height = draw.randint(1, 3000), draw.randint(1, 3000)
        expected_height, expected_width = select_best_resolution((height, width), resolutions)
        assert choose_canvas((width, height), TILE) == (expected_width, expected_height), (width, height)
