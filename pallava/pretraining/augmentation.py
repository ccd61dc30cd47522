"""What may change in a pathology image without changing what it shows: its orientation, and how it is stained."""

import torch
from torch import Tensor

from pallava.transforms import change_stains


class PathologyAugmentation:
    """A random one of the square's eight symmetries, and a random change of each stain.

    Args:
        strength: Each stain's density is scaled by up to 1 +- strength, and shifted by up to strength, in natural
            optical density (as `change_stains` has it): a shift of 0.05 of one stain changes intensities by 5 % at
            most. It is one number for both as in Tellez et al. 2019 (https://arxiv.org/abs/1902.06543), but not the
            strength of their "HED-light" of 0.05, since a shift there is in the unit of another separation of stains.
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
