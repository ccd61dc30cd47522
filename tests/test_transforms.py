"""The augmentation turns and stains, and leaves the rest alone."""

import numpy as np
import pytest
import torch

from pallava.transforms import PathologyAugmentation, change_stains

# Ruifrok and Johnston 2001: rows are haematoxylin, eosin, DAB.
RGB_FROM_HED = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
PIXELS = torch.rand(3, 6, 6, generator=torch.Generator().manual_seed(0)) * 0.7 + 0.1


def stains(pixels: torch.Tensor) -> np.ndarray:
    """(P*P, 3) densities, as separated pixel by pixel."""
    density = -np.log(pixels.double().numpy()).reshape(3, -1).T
    return np.linalg.solve(RGB_FROM_HED.T, density.T).T


def test_each_stain_is_scaled_and_shifted() -> None:
    scale, shift = torch.tensor([1.1, 0.95, 1.02]), torch.tensor([0.02, 0.03, 0.01])
    changed = change_stains(PIXELS, scale, shift)
    np.testing.assert_allclose(stains(changed), stains(PIXELS) * scale.numpy() + shift.numpy(), atol=1e-4)


def test_no_change_is_no_change_and_white_stays_in_range() -> None:
    same = change_stains(PIXELS, torch.ones(3), torch.zeros(3))
    torch.testing.assert_close(same, PIXELS, atol=1e-5, rtol=0)
    extremes = torch.tensor([0.0, 1.0]).expand(3, 2, 2).contiguous()
    changed = change_stains(extremes, torch.full((3,), 0.9), torch.full((3,), -0.1))
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert changed.isfinite().all()


def test_all_eight_orientations_come() -> None:
    torch.manual_seed(0)
    turn = PathologyAugmentation(strength=0.0)
    marked = torch.zeros(3, 4, 4)
    marked[:, 0, 1] = 1.0  # where it lands tells the orientation
    places = {tuple(torch.nonzero(turn(marked)[0] > 0.5)[0].tolist()) for _ in range(200)}
    assert places == {(0, 1), (0, 2), (3, 1), (3, 2), (1, 0), (2, 0), (1, 3), (2, 3)}


def test_it_is_random_and_follows_the_seed() -> None:
    augment = PathologyAugmentation()
    torch.manual_seed(3)
    first, second = augment(PIXELS), augment(PIXELS)
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    assert torch.equal(augment(PIXELS), first)
    with pytest.raises(AssertionError):  # it changes more than the orientation
        torch.testing.assert_close(first.sort().values, PIXELS.sort().values)
