"""How a question's image is shown: as it is, exchanged for another one, or changed in a way that means nothing."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from PIL import Image

from pallava.evaluation.answers.items import Item
from pallava.transforms import ImageChange, resizing, shift_stains, turning

AS_IS, SHUFFLED = "", "shuffled"


@dataclass(frozen=True)
class View:
    """A way to show images.

    Attributes:
        name: Of the files of its answers; empty for images as they are.
        change: What is done to the picture, or nothing.
    """

    name: str = AS_IS
    change: ImageChange | None = None


UNCHANGED_MEANING: tuple[View, ...] = (
    View("half_size", resizing(0.5)),
    View("double_size", resizing(2)),
    View("rotated_90", turning(Image.Transpose.ROTATE_90)),
    View("rotated_180", turning(Image.Transpose.ROTATE_180)),
    View("rotated_270", turning(Image.Transpose.ROTATE_270)),
    View("mirrored", turning(Image.Transpose.FLIP_LEFT_RIGHT)),
    View("upside_down", turning(Image.Transpose.FLIP_TOP_BOTTOM)),
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
