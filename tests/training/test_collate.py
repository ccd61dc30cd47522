import torch
from xtuner.registry import MAP_FUNC

from pallava.training.collate import collate


def row(length, tiles_per_image):
    tiles = sum(tiles_per_image)
    return {
        "input_ids": list(range(1, length + 1)),
        "labels": [-100, *range(2, length + 1)],
        "pixel_values": torch.full((tiles, 3, 2, 2), float(length)),
        "tiles_per_image": tiles_per_image,
    }


def test_batch_is_padded_on_the_right_and_keeps_the_order_of_images():
    batch = collate([row(2, [3]), row(4, []), row(3, [2, 4])])
    assert set(batch) == {"data", "data_samples"}
    assert batch["data_samples"] is None
    data = batch["data"]
    assert data["input_ids"].tolist() == [[1, 2, 0, 0], [1, 2, 3, 4], [1, 2, 3, 0]]
    assert data["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 0]]
    assert data["labels"].tolist() == [[-100, 2, -100, -100], [-100, 2, 3, 4], [-100, 2, 3, -100]]
    assert data["tiles_per_image"].tolist() == [3, 2, 4]
    assert data["pixel_values"][:, 0, 0, 0].tolist() == [2.0] * 3 + [3.0] * 6


def test_batch_without_images_has_empty_ones():
    data = collate([row(2, []), row(1, [])])["data"]
    assert data["pixel_values"].shape == (0, 3, 2, 2)
    assert data["tiles_per_image"].shape == (0,)
    assert data["tiles_per_image"].dtype == data["input_ids"].dtype == torch.long


def test_it_is_registered():
    assert MAP_FUNC.get("collate") is collate
