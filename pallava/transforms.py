"""Stains of histology, and what an image looks like where they are stronger or weaker."""

import torch
from torch import Tensor

_RGB_FROM_HED = torch.tensor([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
"""Optical density of haematoxylin, eosin and DAB in red, green and blue: Ruifrok and Johnston 2001."""
_HED_FROM_RGB = torch.linalg.inv(_RGB_FROM_HED)
_DARKEST = 1e-3  # below half a grey level; the density of black is infinite


def change_stains(pixels: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Scales and shifts the densities of haematoxylin, eosin and DAB.

    Args:
        pixels: (3, P, P), values between 0 and 1.
        scale: (3,), of each stain.
        shift: (3,), in units of natural optical density, -ln of the intensity; a unit of the decimal one is 2.303 of
            these. That of a stain is how much there is of its row in the matrix, which is not normalized further.

    Returns:
        (3, P, P), between 0 and 1.
    """
    density = pixels.clamp(min=_DARKEST).log().neg().flatten(1)  # (3, P*P)
    # Separation, change and mixing are linear, so they are one matrix.
    matrix = _HED_FROM_RGB @ torch.diag(scale) @ _RGB_FROM_HED
    changed = torch.addmm((shift @ _RGB_FROM_HED)[:, None], matrix.T, density)
    return changed.neg_().exp_().clamp_(0, 1).view_as(pixels)
