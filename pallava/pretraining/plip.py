"""Training of a CLIP from scratch with open_clip: image and caption pairs, one contrastive loss."""

import json
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pallava.model import load_plip


@dataclass(frozen=True)
class PretrainingSettings:
    """How an encoder is trained.

    Attributes:
        name: What open_clip calls the model.
        model: open_clip's description of it: ``embed_dim``, ``vision_cfg``, ``text_cfg``.
        steps: Batches to take.
        lr: Peak learning rate, after a warm-up of a tenth of the steps; it ends at zero.
        weight_decay: Of AdamW.
        lock_text: Leaves the text tower as it is. One that starts from random weights would map captions that the
            encoder cannot tell apart yet to one point, where neither side learns to tell them apart any more.
        seed: Of the first weights.
    """

    name: str
    model: dict[str, Any] = field(default_factory=dict)
    steps: int = 1000
    lr: float = 1e-3
    weight_decay: float = 0.05
    lock_text: bool = False
    seed: int = 0


def train_plip(
    batches: Iterable[tuple[torch.Tensor, list[str]]],
    settings: PretrainingSettings,
    folder: Path,
    *,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> list[float]:
    """Trains an open_clip model and saves its vision tower as a Hugging Face folder.

    Args:
        batches: Pixels (B, 3, P, P), normalized, and B captions each.
        settings: Model and schedule.
        folder: Gets ``open_clip.json`` and ``open_clip.pt`` (the whole model), and in ``encoder/`` what
            `load_plip` opens.
        on_step: Called with each step's number and loss.

    Returns:
        The loss of each step.
    """
    import open_clip  # takes seconds to import

    folder.mkdir(parents=True, exist_ok=True)
    description = folder / f"{settings.name}.json"
    description.write_text(json.dumps(settings.model, indent=2))
    open_clip.add_model_config(description)
    torch.manual_seed(settings.seed)
    model = open_clip.create_model(settings.name)
    tokenize = open_clip.get_tokenizer(settings.name)
    losses = _optimize(model, tokenize, batches, settings, on_step)
    torch.save(model.state_dict(), folder / "open_clip.pt")
    load_plip(folder / "open_clip.pt", model_name=settings.name).save_pretrained(folder / "encoder")
    return losses


def _optimize(
    model: Any,
    tokenize: Callable[[list[str]], torch.Tensor],
    batches: Iterable[tuple[torch.Tensor, list[str]]],
    settings: PretrainingSettings,
    on_step: Callable[[int, float], None],
) -> list[float]:
    from open_clip import ClipLoss

    contrast, losses = ClipLoss(), []
    if settings.lock_text:
        model.lock_text_tower()
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad],
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        betas=(0.9, 0.98),
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, settings.steps))
    model.train()
    pace = _Pace()
    for step, (pixels, captions) in zip(range(settings.steps), batches, strict=False):
        pace.next_step()
        image, text, scale = model(pixels, tokenize(captions))[:3]
        loss = contrast(image, text, scale)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))  # as CLIP does
        losses.append(loss.item())
        on_step(step + 1, losses[-1])
    pace.restore()
    return losses


def _rate(step: int, steps: int) -> float:
    """Factor of the learning rate: a linear warm-up, then a cosine to zero."""
    warm = max(1, steps // 10)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


class _Pace:
    """Finds out how many threads are fastest: on a shared computer a small model is slower with all of them.

    The first steps of each try warm up and are not counted; then the faster number stays.
    """

    _steps = 6

    def __init__(self) -> None:
        self._before = torch.get_num_threads()
        self._tries = sorted({self._before, 1}, reverse=True)
        self._times: list[list[float]] = [[] for _ in self._tries]
        self._count = 0

    def next_step(self) -> None:
        """Is called before each step."""
        number, self._count = self._count // self._steps, self._count + 1
        if number < len(self._tries):
            torch.set_num_threads(self._tries[number])
            self._times[number].append(time.perf_counter())
        elif number == len(self._tries) and (self._count - 1) % self._steps == 0:
            spans = [times[-1] - times[2] for times in self._times]
            torch.set_num_threads(self._tries[spans.index(min(spans))])

    def restore(self) -> None:
        """Puts the number of threads back."""
        torch.set_num_threads(self._before)
