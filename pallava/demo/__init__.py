"""A small PA-LLaVA, trained on this computer from synthetic micrographs: its sizes, in one place."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from pallava.errors import PallavaError
from pallava.io.files import read_package_data

Progress = Callable[[str], None]
"""Receiver of a line on how far a step is."""

PLIP_MODEL: dict[str, Any] = read_package_data(__file__)
"""The small PLIP, as open_clip describes a model."""
TILE_SIZE: int = PLIP_MODEL["vision_cfg"]["image_size"]
PIXEL_MEAN, PIXEL_STD = (0.7, 0.6, 0.7), (0.25, 0.25, 0.25)


@dataclass(frozen=True)
class DemoSettings:
    """Sizes of everything; the defaults are those of ``make demo``."""

    train_pictures: int = 2400
    test_pictures: int = 240
    real_pictures: int = 60  # pieces cut out of each of the two real pictures
    plip_views: int = 16_000  # for the encoder: small whole pictures, and parts of pictures
    plip_epochs: int = 4
    plip_batch: int = 64
    plip_lr: float = 1e-3
    alignment_rows: int = 2520  # captions of word alignment, and of stage 1 once
    instruction_rows: int = 2400  # conversations of stage 2, each seen once
    turns: int = 6  # questions in each conversation
    closed_per_kind: int = 68  # about how often each closed question is asked on held-out pictures
    open_per_kind: int = 72  # and each open one
    eval_batch: int = 32
    processes: int = 2
    training_options: tuple[str, ...] = ()  # where the stages differ from the demo's configs, as --cfg-options has it
    seed: int = 7

    def scaled(self, fraction: float) -> "DemoSettings":
        """Return the same demo at a fraction of its size, for a test of its steps; its answers are worth nothing.

        Raises:
            PallavaError: The fraction is not above 0 and at most 1.
        """
        if not 0 < fraction <= 1:
            raise PallavaError(f"the demo's scale must be above 0 and at most 1, got {fraction:g}")
        least = {"train_pictures": 8, "test_pictures": 8, "real_pictures": 2, "plip_views": 16, "plip_batch": 8}
        least |= {"alignment_rows": 12, "instruction_rows": 8, "closed_per_kind": 4, "open_per_kind": 4}
        sizes = {name: max(floor, round(getattr(self, name) * fraction)) for name, floor in least.items()}
        small = replace(self, **sizes)
        if fraction >= 0.1:
            return small
        # A warm-up of a tenth of so few steps would have none, and parts so small have no work for two processes.
        warm_up = ("param_scheduler.0.end=0.5", "param_scheduler.1.begin=0.5")
        options = (*warm_up, "default_hooks.sample_chat.max_new_tokens=2")
        return replace(small, processes=1, training_options=options)
