"""Changes that leave what a pathology image shows as it is: its orientation, its scale, and how strong its stains are.

Training draws them at random (`PathologyAugmentation`); an evaluation of consistency makes each of them alone.
"""

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

ImageChange = Callable[[Image.Image], Image.Image]

_RGB_FROM_HED = torch.tensor([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
"""Optical density of haematoxylin, eosin and DAB in red, green and blue: Ruifrok and Johnston 2001."""
_HED_FROM_RGB = torch.linalg.inv(_RGB_FROM_HED)
_DARKEST = 1e-3  # below half a grey level; the density of black is infinite
_STRENGTH = 0.05
_STAIN_SCALE, _STAIN_SHIFT = (1 + _STRENGTH, 1 - _STRENGTH, 1.0), (_STRENGTH, -_STRENGTH, 0.0)


def change_stains(pixels: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Scale and shift, by (3,) each, the densities of haematoxylin, eosin and DAB in pixels (3, H, W) from 0 to 1.

    A shift is in units of natural optical density, -ln of the intensity (a unit of the decimal one is 2.303 of these):
    how much is added of the stain's row in the matrix, which is not normalized further.
    """
    density = pixels.clamp(min=_DARKEST).log().neg().flatten(1)  # (3, H*W)
    # Separation, change and mixing are linear, so they are one matrix.
    matrix = _HED_FROM_RGB @ torch.diag(scale) @ _RGB_FROM_HED
    changed = torch.addmm((shift @ _RGB_FROM_HED)[:, None], matrix.T, density)
    return changed.neg_().exp_().clamp_(0, 1).view_as(pixels)


def shift_stains(image: Image.Image) -> Image.Image:
    """Strengthen haematoxylin and weaken eosin, each by the most that `PathologyAugmentation` draws by default."""
    pixels = torch.from_numpy(np.array(image, dtype=np.float32)).permute(2, 0, 1) / 255  # (3, H, W)
    changed = change_stains(pixels, torch.tensor(_STAIN_SCALE), torch.tensor(_STAIN_SHIFT))
    return Image.fromarray(changed.mul(255).round().byte().permute(1, 2, 0).contiguous().numpy())


def resizing(factor: float) -> ImageChange:
    """Return the change that multiplies both sides of an image by a factor."""

    def resize(image: Image.Image) -> Image.Image:
        width, height = (max(1, round(side * factor)) for side in image.size)
        return image.resize((width, height), Image.Resampling.BICUBIC)

    return resize


def turning(method: Image.Transpose) -> ImageChange:
    """Return the change that turns or mirrors an image."""
    return lambda image: image.transpose(method)


class PathologyAugmentation:
    """A random one of the square's eight symmetries, and a random change of each stain.

    Each stain's density is scaled by up to 1 +- strength, and shifted by up to strength, in natural optical density (as
    `change_stains` has it): a shift of 0.05 of one stain changes intensities by 5 % at most. It is one number for both
    as in Tellez et al. 2019 (https://arxiv.org/abs/1902.06543), but not the strength of their "HED-light" of 0.05,
    since a shift there is in the unit of another separation of stains.
    """

    def __init__(self, strength: float = _STRENGTH) -> None:
        self.strength = strength

    def __call__(self, pixels: Tensor) -> Tensor:
        """Change one image of shape (3, P, P), of values between 0 and 1; the random numbers are torch's."""
        turns, is_flipped = torch.randint(4, ()).item(), torch.randint(2, ()).item()
        pixels = torch.rot90(pixels, int(turns), (1, 2))
        if is_flipped:
            pixels = pixels.flip(2)
        scale, shift = torch.empty(2, 3).uniform_(-self.strength, self.strength)
        return change_stains(pixels, 1 + scale, shift)

    def __repr__(self) -> str:
        """Return the text by which open_clip logs it."""
        return f"{type(self).__name__}(strength={self.strength})"
