"""A small PA-LLaVA, trained on this computer from synthetic micrographs: its sizes, in one place."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from pallava.errors import PallavaError

TILE_SIZE, PATCH_SIZE = 64, 16
NUM_VISUAL_TOKENS = (TILE_SIZE // PATCH_SIZE) ** 2
PIXEL_MEAN, PIXEL_STD = (0.7, 0.6, 0.7), (0.25, 0.25, 0.25)

PLIP_MODEL: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {
        "layers": 4, "width": 192, "head_width": 48, "patch_size": PATCH_SIZE, "image_size": TILE_SIZE
    },
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 96, "heads": 2, "layers": 2},
}  # fmt: skip
"""The small PLIP, as open_clip describes a model."""


@dataclass(frozen=True)
class DemoSettings:
    """Sizes of everything; the defaults are those of ``make demo``.

    Attributes:
        test_pictures: Number of held-out synthetic micrographs, of other seeds.
        real_pictures: Number of pieces cut out of each of the two real pictures.
        plip_views: Number of views for the encoder: small whole pictures, and parts of pictures.
        plip_lr: Peak learning rate of the encoder.
        alignment_rows: Captions of stage 1, each seen once.
        instruction_rows: Conversations of stage 2, each seen once.
        turns: Questions in each conversation.
        closed_per_kind: About how often each closed question is asked on held-out pictures; `open_per_kind` alike.
        processes: Processes of each stage.
    """

    train_pictures: int = 2400
    test_pictures: int = 240
    real_pictures: int = 60
    plip_views: int = 16_000
    plip_epochs: int = 4
    plip_batch: int = 64
    plip_lr: float = 1e-3
    alignment_rows: int = 2520
    instruction_rows: int = 1080
    turns: int = 6
    closed_per_kind: int = 68
    open_per_kind: int = 72
    eval_batch: int = 32
    processes: int = 2
    seed: int = 1024

    def scaled(self, fraction: float) -> "DemoSettings":
        """Return the same demo at a fraction of its size, for a test of its steps; its answers are worth nothing.

        Raises:
            PallavaError: The fraction is not above 0 and at most 1.
        """
        if not 0 < fraction <= 1:
            raise PallavaError(f"the demo's scale must be above 0 and at most 1, got {fraction:g}")
        if fraction == 1:
            return self
        least = dict.fromkeys(("train_pictures", "test_pictures", "real_pictures"), 8)
        least |= {"plip_views": 16, "plip_batch": 8, "closed_per_kind": 8, "open_per_kind": 8}
        # Ten steps, with the batches of the demo's configs: below, the learning rate's warm-up would have none.
        least |= {"alignment_rows": 30, "instruction_rows": 20}
        sizes = {name: max(floor, round(getattr(self, name) * fraction)) for name, floor in least.items()}
        return dataclasses.replace(self, processes=1, **sizes)
