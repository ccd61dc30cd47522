"""Make the overview and tiles of a picture: one function for training, chat, evaluation and serving.

The canvas is chosen as in LLaVA-NeXT (https://llava-vl.github.io/blog/2024-01-30-llava-next/), from the 15 grids that
PA-LLaVA uses. Letters in shapes: N tiles, P side of a tile in pixels, R rows and C columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pallava.errors import PallavaError
from pallava.images import open_image

if TYPE_CHECKING:
    from transformers import CLIPImageProcessor

PUBLISHED_CANVASES: tuple[tuple[int, int], ...] = tuple(
    (columns, rows) for columns in range(1, 9) for rows in range(1, 9) if 4 <= columns * rows <= 8
)
"""The 15 grids (columns, rows) of 4 to 8 tiles; of equally good ones the earlier is chosen."""

MAX_TILES = max(columns * rows for columns, rows in PUBLISHED_CANVASES)
"""Largest number of tiles of an image, its overview not counted."""


@dataclass(frozen=True)
class TileSpec:
    """Size, normalization and filter of the encoder's tiles.

    Attributes:
        size: Side of the square tile in pixels.
        mean: Mean of each channel, for values between 0 and 1.
        std: Standard deviation of each channel, likewise.
        resample: Pillow's number of the filter (3 is bicubic).
        overview_only: Whether no tiles are cut, because the model does not read them.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resample: int = int(Image.Resampling.BICUBIC)
    overview_only: bool = False

    @classmethod
    def from_image_processor(cls, processor: CLIPImageProcessor) -> TileSpec:
        """Read size, normalization and filter from an image processor of transformers.

        Raises:
            PallavaError: The processor's size is not a square, or it scales pixels other than by 1/255.
        """
        factor = processor.rescale_factor if processor.do_rescale else 1.0
        if not math.isclose(factor, 1 / 255, rel_tol=1e-6):
            raise PallavaError(f"the image processor must scale pixels by 1/255, got {factor}")
        size: Any = processor.crop_size if processor.do_center_crop else processor.size
        values = {"height": size} if isinstance(size, int) else dict(size)  # newer transformers have a class of it
        sides = {int(value) for key, value in values.items() if key in ("height", "width", "shortest_edge")}
        if len(sides) != 1 or min(sides) < 1:
            raise PallavaError(f"the image processor's size must be square, got {values}")
        mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else ((0,) * 3, (1,) * 3)
        for name, numbers in (("image_mean", mean), ("image_std", std)):
            if len(numbers) != 3:
                raise PallavaError(f"the image processor's {name} must have 3 values, got {len(numbers)}")
        return cls(sides.pop(), (*map(float, mean),), (*map(float, std),), processor.resample)  # type: ignore[arg-type]

    @property
    def normalization(self) -> torch.Tensor:
        """Return mean and standard deviation as `normalize` takes them, float32 of shape (2, 3)."""
        return torch.tensor([self.mean, self.std])


def choose_canvas(
    image_size: tuple[int, int], tile_size: int, canvases: Sequence[tuple[int, int]] = PUBLISHED_CANVASES
) -> tuple[int, int]:
    """Return the (width, height) of the canvas that keeps most of the image, and of those needs the least padding.

    All sizes are in pixels; of equally good `canvases` (columns, rows) the earlier is chosen.

    Raises:
        PallavaError: The list of canvases is empty.
    """
    width, height = image_size
    if not canvases:
        raise PallavaError("the list of canvases must not be empty")

    def rank(canvas: tuple[int, int]) -> tuple[int, int]:
        scale = min(canvas[0] / width, canvas[1] / height)
        effective = min(int(width * scale) * int(height * scale), width * height)
        return effective, effective - canvas[0] * canvas[1]  # most pixels kept, then least padded

    return max(((columns * tile_size, rows * tile_size) for columns, rows in canvases), key=rank)


def make_tiles(
    image: Image.Image, spec: TileSpec, canvases: Sequence[tuple[int, int]] = PUBLISHED_CANVASES
) -> torch.Tensor:
    """Make the overview and the tiles of one image, normalized for the encoder: `cut_tiles` and `normalize` in one.

    Returns:
        float32 of shape (1+N, 3, P, P): the overview, then the tiles row by row; N is 0 with `overview_only`.
    """
    return normalize(cut_tiles(image, spec, canvases), spec.normalization)


def cut_tiles(
    image: Image.Image, spec: TileSpec, canvases: Sequence[tuple[int, int]] = PUBLISHED_CANVASES
) -> torch.Tensor:
    """Cut the overview and the tiles of one image, in bytes.

    Args:
        image: A picture; `open_image` makes it RGB and upright if it has not done so before.
        spec: Size, normalization and filter of a tile.
        canvases: Grids (columns, rows) to choose from.

    Returns:
        uint8 of shape (1+N, 3, P, P): the overview, then the tiles row by row; N is 0 with `overview_only`.
    """
    image = open_image(image)
    size = spec.size
    overview = np.asarray(image.resize((size, size), spec.resample))  # (P, P, 3)
    if spec.overview_only:
        return _channels_first(overview[None])
    canvas = np.asarray(_fit(image, choose_canvas(image.size, size, canvases), spec.resample))  # (R*P, C*P, 3)
    rows, columns = canvas.shape[0] // size, canvas.shape[1] // size
    tiles = canvas.reshape(rows, size, columns, size, 3).transpose(0, 2, 1, 3, 4)  # (R, C, P, P, 3)
    stack = np.concatenate([overview[None], tiles.reshape(-1, size, size, 3)])  # (1+N, P, P, 3)
    return _channels_first(stack)


def normalize(tiles: torch.Tensor, normalization: torch.Tensor) -> torch.Tensor:
    """Turn bytes (N, 3, P, P) into the float32 that the encoder reads, by `TileSpec.normalization` (2, 3)."""
    mean, std = normalization.to(torch.float32).view(2, 3, 1, 1)
    return tiles.to(torch.float32).div_(255).sub_(mean).div_(std)


def place_on_canvas(image_size: tuple[int, int], canvas_size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return (left, top, width, height) of an image on its canvas: it fills one direction, centred in the other."""
    (width, height), (canvas_width, canvas_height) = image_size, canvas_size
    scale_width, scale_height = canvas_width / width, canvas_height / height
    if scale_width < scale_height:
        new_width, new_height = canvas_width, min(math.ceil(height * scale_width), canvas_height)
    else:
        new_width, new_height = min(math.ceil(width * scale_height), canvas_width), canvas_height
    return (canvas_width - new_width) // 2, (canvas_height - new_height) // 2, new_width, new_height


def denormalize(tiles: torch.Tensor, spec: TileSpec) -> torch.Tensor:
    """Turn tiles (N, 3, P, P) as the encoder reads them back into bytes of the same shape."""
    mean, std = spec.normalization.view(2, 3, 1, 1)
    return tiles.mul(std).add(mean).mul(255).round().clamp(0, 255).to(torch.uint8)


def join_tiles(tiles: torch.Tensor, columns: int) -> torch.Tensor:
    """Join tiles (N, ..., H, W), row by row, to (..., R*H, C*W) with C `columns`."""
    rows = [torch.cat(list(row), dim=-1) for row in tiles.split(columns)]
    return torch.cat(rows, dim=-2)


def _fit(image: Image.Image, canvas_size: tuple[int, int], resample: int) -> Image.Image:
    left, top, width, height = place_on_canvas(image.size, canvas_size)
    resized = image.resize((width, height), resample)
    canvas = Image.new("RGB", canvas_size)
    canvas.paste(resized, (left, top))
    return canvas


def _channels_first(stack: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(stack.transpose(0, 3, 1, 2)))
