"""What may change in a pathology image without changing what it shows: its orientation, and how it is stained."""

import torch
from torch import Tensor

_RGB_FROM_HED = torch.tensor([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
"""Optical density of haematoxylin, eosin and DAB in red, green and blue: Ruifrok and Johnston 2001."""
_HED_FROM_RGB = torch.linalg.inv(_RGB_FROM_HED)
_DARKEST = 1e-3  # below half a grey level; the density of black is infinite


class PathologyAugmentation:
    """A random one of the square's eight symmetries, and a random change of each stain.

    Args:
        strength: Each stain's density is scaled by up to 1 +- strength, and shifted by up to strength: "HED-light" of
            Tellez et al. 2019 (https://arxiv.org/abs/1902.06543).
    """

    def __init__(self, strength: float = 0.05) -> None:
        self.strength = strength

    def __call__(self, pixels: Tensor) -> Tensor:
        """Changes one image of shape (3, P, P), of values between 0 and 1; random numbers are torch's."""
        turns, is_flipped = torch.randint(4, ()).item(), torch.randint(2, ()).item()
        pixels = torch.rot90(pixels, int(turns), (1, 2))
        if is_flipped:
            pixels = pixels.flip(2)
        scale, shift = torch.empty(2, 3).uniform_(-self.strength, self.strength)
        return change_stains(pixels, 1 + scale, shift)

    def __repr__(self) -> str:
        """As open_clip logs its transforms."""
        return f"{type(self).__name__}(strength={self.strength})"


def change_stains(pixels: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Scales and shifts the densities of haematoxylin, eosin and DAB.

    Args:
        pixels: (3, P, P), values between 0 and 1.
        scale: (3,), of each stain.
        shift: (3,), in units of natural optical density.

    Returns:
        (3, P, P), between 0 and 1.
    """
    density = pixels.clamp(min=_DARKEST).log().neg().flatten(1)  # (3, P*P)
    # Separation, change and mixing are linear, so they are one matrix.
    matrix = _HED_FROM_RGB @ torch.diag(scale) @ _RGB_FROM_HED
    changed = torch.addmm((shift @ _RGB_FROM_HED)[:, None], matrix.T, density)
    return changed.neg_().exp_().clamp_(0, 1).view_as(pixels)
