"""open_clip's trainer as `pallava pretrain` starts it, that also writes down the first step's loss and gradient.

Usage: probe.py RECORD OUT ... -- ...
"""

import sys
from pathlib import Path

import open_clip_train.main as training
import open_clip_train.train as loop
import torch

from pallava.pretraining import trainer

record = Path(sys.argv[1])
backward, create = loop.backward, training.create_loss
models: list[torch.nn.Module] = []


def recorded_backward(loss: torch.Tensor, scaler: object) -> None:
    backward(loss, scaler)
    mean = loss.detach().clone()
    if torch.distributed.is_initialized():  # a process's loss is that of its own rows
        torch.distributed.all_reduce(mean)
        mean /= torch.distributed.get_world_size()
    grads = {n.removeprefix("module."): p.grad for n, p in models[0].named_parameters() if p.grad is not None}
    if not record.exists() and (not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0):
        torch.save({"loss": mean, **grads}, record)


def remembered_epoch(model: torch.nn.Module, *arguments: object, **options: object) -> None:
    models.append(model)
    train_one_epoch(model, *arguments, **options)


train_one_epoch = training.train_one_epoch
loop.backward, training.train_one_epoch = recorded_backward, remembered_epoch
sys.exit(trainer.main(sys.argv[2:]))
