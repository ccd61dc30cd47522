"""What the connector read in an image, as numbers that a page can draw."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from PIL import Image

from pallava.model import PALLaVAForConditionalGeneration, PALLaVAProcessor
from pallava.model.attention import read_tiles
from pallava.tiling import choose_canvas, join_tiles, make_tiles, place_on_canvas


@dataclass(frozen=True)
class Reading:
    """The attention to an image's tiles, averaged over layers, heads and tokens of the overview."""

    columns: int  # of tiles
    rows: int
    canvas: tuple[int, int]  # (width, height) in pixels
    place: tuple[int, int, int, int]  # (left, top, width, height) of the image on it
    tiles: list[list[float]]  # share of the attention that each tile has; all add up to 1
    tokens: list[list[float]]  # the same of each token, over the whole canvas

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        return asdict(self)


@torch.inference_mode()
def read_image(model: PALLaVAForConditionalGeneration, processor: PALLaVAProcessor, image: Image.Image) -> Reading:
    """Return what the connector reads in an image.

    Raises:
        PallavaError: The connector has no cross-attention to tiles.
    """
    spec = processor.tile_spec
    pixels = make_tiles(image, spec).to(model.device)
    attention = read_tiles(model, pixels).mean((0, 1)).cpu()  # (N, T)
    canvas = choose_canvas(image.size, spec.size)
    columns, rows = canvas[0] // spec.size, canvas[1] // spec.size
    side = round(attention.shape[1] ** 0.5)
    return Reading(
        columns=columns,
        rows=rows,
        canvas=canvas,
        place=place_on_canvas(image.size, canvas),
        tiles=attention.sum(-1).view(rows, columns).tolist(),
        tokens=join_tiles(attention.reshape(-1, side, side), columns).tolist(),
    )
