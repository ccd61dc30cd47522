"""Batch, LoRA's rank and 4 bit of a new config by the memory of a card, as `pallava doctor` estimates it."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from pallava.errors import PallavaError
from pallava.io.files import write_json, write_text
from pallava.model.loading import load_tokenizer
from pallava.new_configs import NewConfig, Preset
from pallava.prompts import IMAGE_TOKEN_INDEX, OWN_TEMPLATE, choose_template
from pallava.tiling import MAX_TILES, TileSpec
from pallava.training.dataset import collate
from pallava.training.doctor.auto import SHARE, plan_step
from pallava.training.doctor.case import Case, DoctorSettings
from pallava.training.doctor.memory import Memory
from pallava.training.doctor.step import count_activations
from pallava.training.model import build

RUNNER = "pallava_zero1"
"""DeepSpeed's settings that a new config is planned for."""
_WAYS = ((False, 128), (True, 128), (True, 16))  # 4 bit, LoRA's rank: the published one first
_BATCH_SIZES = (6, 4, 3, 2, 1)
_ACTIVATIONS = "activations all longest_batch"


class _PlannedCase(Case):
    """A training whose data are not read: a batch is a row that fills the context, with the most tiles."""

    @property
    def longest_batch(self) -> Any:
        """Return one row, as `collate` does."""
        network = self.model.network.config
        num_words = self.config.context_length - network.num_visual_tokens
        ids = [IMAGE_TOKEN_INDEX] + [0] * num_words
        size = TileSpec.from_image_processor(build(self.config.image_processor)).size
        tiles = torch.zeros(1 + MAX_TILES, 3, size, size)
        row = {"input_ids": ids, "labels": ids, "pixel_values": tiles, "tiles_per_image": [len(tiles)]}
        return collate([{**row, "id": "", "replaced": []}])


def fit_card(config: NewConfig, card_gb: float, preset: Preset | None = None) -> tuple[NewConfig, Memory]:
    """Return a config with the sizes that fit a card, and the memory that it takes there with all recomputed.

    A row that fills the context is assumed. The published sizes come first; then the batch becomes smaller, then the
    language model is in 4 bit, then LoRA's rank is 16. A preset need not be on this machine.

    Raises:
        PallavaError: Nothing fits the card, or a part cannot be opened.
    """
    activations = None
    for in_4bit, rank in _WAYS:
        with _open(dataclasses.replace(config, in_4bit=in_4bit, lora_rank=rank, batch_size=1), card_gb, preset) as case:
            if activations is None:
                activations = count_activations(case.outline("all"), case.longest_batch)
            for batch_size in _BATCH_SIZES:
                if batch_size > 1 and batch_size * config.cards > config.published_rows:
                    continue  # an optimizer step would be larger than the published one
                case.opened[_ACTIVATIONS] = batch_size * activations  # they grow with the rows
                plan = plan_step(case, case.runner_name, "all")
                if case.fits(plan, SHARE):
                    return dataclasses.replace(config, in_4bit=in_4bit, lora_rank=rank, batch_size=batch_size), plan
    raise PallavaError(
        f"a card must have {ceil(plan.total / SHARE / 1e9)} GB for this language model, even in 4 bit with rank 16 and "
        f"one row at a time, got {card_gb:g}; choose a smaller one"
    )


def find_template(llm: str) -> str | None:
    """Return the prompt template for a language model on this machine: its own chat template, or None: its family's.

    Raises:
        PallavaError: The tokenizer is not on this machine, or neither is certain.
    """
    tokenizer = load_tokenizer(llm, local_files_only=True)
    name = OWN_TEMPLATE if tokenizer.chat_template else None
    choose_template(name, tokenizer)
    return name


@contextmanager
def _open(config: NewConfig, card_gb: float, preset: Preset | None) -> Iterator[_PlannedCase]:
    with TemporaryDirectory() as folder:
        path = Path(folder, "planned.py")
        if preset is not None:  # as if it were on this machine
            write_json(Path(folder, "config.json"), preset.config)
            write_text(Path(folder, "model.safetensors"), "")
            config = dataclasses.replace(config, llm=folder)
        write_text(path, config.write(path.name))
        settings = DoctorSettings(str(path), deepspeed=RUNNER, num_processes=config.cards, card_gb=card_gb)
        yield _PlannedCase(settings)
