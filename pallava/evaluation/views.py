"""How a question's image is shown: as it is, exchanged for another one, or changed in a way that means nothing."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image

from pallava.evaluation.answers.items import Item
from pallava.transforms import change_stains

Change = Callable[[Image.Image], Image.Image]

AS_IS, SHUFFLED = "", "shuffled"
_STAIN_SCALE, _STAIN_SHIFT = (1.05, 0.95, 1.0), (0.05, -0.05, 0.0)


@dataclass(frozen=True)
class View:
    """A way to show images.

    Attributes:
        name: Of the files of its answers; empty for images as they are.
        change: What is done to the picture, or nothing.
    """

    name: str = AS_IS
    change: Change | None = None


def shift_stains(image: Image.Image) -> Image.Image:
    """More haematoxylin, less eosin: by as much as the encoder's training draws at most."""
    pixels = torch.from_numpy(np.array(image, dtype=np.float32)).permute(2, 0, 1) / 255  # (3, H, W)
    changed = change_stains(pixels, torch.tensor(_STAIN_SCALE), torch.tensor(_STAIN_SHIFT))
    return Image.fromarray(changed.mul(255).round().byte().permute(1, 2, 0).contiguous().numpy())


def _scale(factor: float) -> Change:
    def change(image: Image.Image) -> Image.Image:
        width, height = (max(1, round(side * factor)) for side in image.size)
        return image.resize((width, height), Image.Resampling.BICUBIC)

    return change


def _turn(method: Image.Transpose) -> Change:
    return lambda image: image.transpose(method)


UNCHANGED_MEANING: tuple[View, ...] = (
    View("half_size", _scale(0.5)),
    View("double_size", _scale(2)),
    View("rotated_90", _turn(Image.Transpose.ROTATE_90)),
    View("rotated_180", _turn(Image.Transpose.ROTATE_180)),
    View("rotated_270", _turn(Image.Transpose.ROTATE_270)),
    View("mirrored", _turn(Image.Transpose.FLIP_LEFT_RIGHT)),
    View("upside_down", _turn(Image.Transpose.FLIP_TOP_BOTTOM)),
    View("stain_shifted", shift_stains),
)
"""Changes after which a question about tissue has the same answer."""


def shuffle_images(items: Sequence[Item], seed: int = 0) -> list[Item]:
    """The same questions, each on the image of other ones; all images are shown as often as before.

    Args:
        items: Questions; those without an image are left out.
        seed: Of the order in which images take each other's place.

    Returns:
        The questions, or nothing where all are on the same image.
    """
    images = sorted({item.image for item in items if item.image})
    if len(images) < 2:
        return []
    random.Random(seed).shuffle(images)
    successor = dict(zip(images, [*images[1:], images[0]], strict=True))
    return [replace(item, image=successor[item.image]) for item in items if item.image]
