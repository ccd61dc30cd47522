"""Rows to a batch."""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from xtuner.registry import MAP_FUNC

from pallava.prompts import IGNORE_INDEX


@MAP_FUNC.register_module()
def collate(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Pads rows of `PALLaVADataset` on the right and joins their tiles.

    Returns:
        ``{"data": ..., "data_samples": None}``; data holds `input_ids` (0 is padding), `attention_mask` and `labels`
        (-100 is padding), each (B, L), `pixel_values` (sum of 1+N, 3, P, P), not padded, and `tiles_per_image` (I,),
        both in the order of the images over the batch and empty where it has none.
    """
    ids = [torch.tensor(row["input_ids"]) for row in rows]
    labels = [torch.tensor(row["labels"]) for row in rows]
    counts = list(chain.from_iterable(row["tiles_per_image"] for row in rows))
    data = {
        "input_ids": pad_sequence(ids, batch_first=True),  # (B, L)
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORE_INDEX),
        "pixel_values": torch.cat([row["pixel_values"] for row in rows]),
        "tiles_per_image": torch.tensor(counts, dtype=torch.long),
    }
    return {"data": data, "data_samples": None}
