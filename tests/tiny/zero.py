"""Checkpoints by DeepSpeed in bf16, without xtuner: ``torchrun ... zero.py FOLDER`` writes one for each settings."""

import sys
from pathlib import Path

import deepspeed
import torch
from torch import nn

from pallava.training import compat
from pallava.training.zero import read_settings

SIZES = ((5, 3), (3, 7), (7, 1))  # of odd numbers of weights: every vector is padded
SETTINGS = {
    **{f"stage{stage}": {"zero_optimization": {"stage": stage}} for stage in (1, 2)},
    "pallava_zero1": {key: read_settings("pallava_zero1")[key] for key in ("zero_optimization", "data_types")},
}


def train(tag: str, folder: Path) -> None:
    """Two steps; two groups of parameters, and a frozen layer."""
    torch.manual_seed(1)
    layers = [nn.Linear(*sizes) for sizes in SIZES]
    layers[1].requires_grad_(False)
    groups = [{"params": list(layers[index].parameters()), "lr": rate} for index, rate in ((0, 1e-2), (2, 1e-3))]
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": True},
        **SETTINGS[tag],
    }
    engine, *_ = deepspeed.initialize(
        model=nn.Sequential(*layers), optimizer=torch.optim.AdamW(groups), config=settings
    )
    for _ in range(2):
        engine.backward(engine(torch.ones(1, SIZES[0][0], dtype=torch.bfloat16)).sum())
        engine.step()
    engine.save_checkpoint(str(folder), tag, save_latest=False, exclude_frozen_parameters=True)


if __name__ == "__main__":
    compat.apply()
    deepspeed.init_distributed("gloo")
    for tag in SETTINGS:
        train(tag, Path(sys.argv[1]))
