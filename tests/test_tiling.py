"""Canvas choice, cutting and normalization on pictures whose tiles can be told by hand."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessor

from pallava.errors import PallavaError
from pallava.tiling import PUBLISHED_CANVASES, TileSpec, choose_canvas, cut_tiles, make_tiles

SPEC = TileSpec(size=4, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def test_normalizing_is_the_arithmetic_of_the_image_processor():
    spec = TileSpec(size=8, mean=(0.48, 0.45, 0.4), std=(0.27, 0.26, 0.28))
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    found = make_tiles(Image.fromarray(pixels), spec)[0]
    expected = (pixels.astype(np.float64) / 255 - spec.mean) / spec.std
    np.testing.assert_allclose(found.numpy(), expected.transpose(2, 0, 1), atol=1e-6)
    overview = cut_tiles(Image.fromarray(pixels), dataclasses.replace(spec, overview_only=True))
    assert np.array_equal(overview[0].numpy(), pixels.transpose(2, 0, 1))


def test_fifteen_canvases_in_order_of_columns():
    assert len(PUBLISHED_CANVASES) == len(set(PUBLISHED_CANVASES)) == 15
    assert list(PUBLISHED_CANVASES) == sorted(PUBLISHED_CANVASES)
    assert {columns * rows for columns, rows in PUBLISHED_CANVASES} == {4, 5, 6, 7, 8}


def test_most_pixels_then_least_padding_then_first():
    assert choose_canvas((2048, 1536), 224) == (672, 448)
    assert choose_canvas((64, 64), 32, [(2, 3), (2, 2)]) == (64, 64)  # (2, 3) keeps as much and pads more
    assert choose_canvas((32, 32), 32) == (32, 128)  # (1, 4), (2, 2) and (4, 1) are equally good
    assert choose_canvas((32, 32), 32, [(4, 1), (1, 4)]) == (128, 32)
    with pytest.raises(PallavaError, match="empty"):
        choose_canvas((32, 32), 32, [])


def test_tiles_run_row_by_row_after_the_overview():
    shades = np.arange(6, dtype=np.uint8).reshape(2, 3) * 10  # one shade a tile of the (3, 2) canvas
    picture = np.repeat(np.repeat(shades, 4, axis=0), 4, axis=1)[..., None].repeat(3, axis=2)
    tiles = make_tiles(Image.fromarray(picture), SPEC)
    assert tiles.shape == (7, 3, 4, 4)
    for index, tile in enumerate(tiles[1:]):
        torch.testing.assert_close(tile, torch.full((3, 4, 4), index * 10 / 255))
    expected = np.asarray(Image.fromarray(picture).resize((4, 4), Image.Resampling.BICUBIC))
    torch.testing.assert_close(tiles[0], torch.from_numpy(expected.copy()).permute(2, 0, 1) / 255)


def test_padding_is_centred_and_black_before_normalization():
    spec = TileSpec(size=4, mean=(0.5, 0.25, 0.0), std=(0.5, 0.5, 0.25))
    tiles = make_tiles(Image.new("RGB", (8, 2), "white"), spec, canvases=[(2, 1)])[1:]  # (2, 3, 4, 4)
    black, white = torch.tensor([-1.0, -0.5, 0.0]), torch.tensor([1.0, 1.5, 4.0])
    for row, colour in enumerate((black, white, white, black)):
        torch.testing.assert_close(tiles[:, :, row], colour.view(1, 3, 1).expand(2, 3, 4))
    upright = make_tiles(Image.new("RGB", (2, 8), "white"), spec, canvases=[(1, 2)])[1:]
    torch.testing.assert_close(upright, tiles.transpose(2, 3))


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (7, 3)])
def test_extreme_shapes(size: tuple[int, int]):
    tiles = make_tiles(Image.new("RGB", size, "white"), SPEC)
    assert 5 <= len(tiles) <= 9
    assert tiles.isfinite().all()
    assert tiles[1:].max() == 1  # something of the image is left on the canvas


def test_picture_that_did_not_come_from_open_image():
    alpha = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    assert make_tiles(alpha, SPEC).min() == 1
    turned = Image.new("RGB", (16, 4), "white")
    turned.info["exif"] = Image.Exif().tobytes()
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.info["exif"] = exif.tobytes()
    torch.testing.assert_close(make_tiles(turned, SPEC), make_tiles(Image.new("RGB", (4, 16), "white"), SPEC))


def test_spec_of_an_image_processor():
    plain = TileSpec.from_image_processor(CLIPImageProcessor())
    assert plain.size == 224
    assert plain.resample == 3
    assert plain.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))
    assert plain.std == pytest.approx((0.26862954, 0.26130258, 0.27577711))
    raw = CLIPImageProcessor(size={"height": 96, "width": 96}, do_center_crop=False, do_normalize=False, resample=2)
    assert TileSpec.from_image_processor(raw) == TileSpec(96, (0, 0, 0), (1, 1, 1), 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop_size": {"height": 224, "width": 192}}, "square.*'width': 192"),
        ({"do_center_crop": False, "size": {"height": 10, "width": 20}}, "square.*'height': 10"),
        ({"rescale_factor": 1.0}, "1/255"),
        ({"do_rescale": False}, "1/255"),
        ({"image_mean": [0.5]}, "image_mean.*3 values"),
    ],
)
def test_processor_that_tiles_cannot_follow(settings: dict, message: str):
    with pytest.raises(PallavaError, match=message):
        TileSpec.from_image_processor(CLIPImageProcessor(**settings))
