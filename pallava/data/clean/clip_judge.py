"""A CLIP-style model as judge: is an image nearer to captions of pathology or to captions of anything else?"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pallava.data.clean.filters import APPLIES_TO, Item, Score, Verdict
from pallava.data.clean.item_keys import image_key
from pallava.errors import PallavaError
from pallava.images import ImageError, open_image
from pallava.io.hashing import hash_file
from pallava.judging.prompts import CLIP_VERSION, OTHER_CAPTIONS, PATHOLOGY_CAPTIONS
from pallava.open_clip_weights import made_with_quick_gelu

CLIP_THRESHOLD = 0.5
"""Images of which the pathology captions get less than half of the probability are dropped."""

_WEIGHTS_IN_NAME = ("hf-hub:", "local-dir:")
_MAX_READERS = 8  # threads; Pillow decodes outside of Python's lock


class PathologyClip:
    """Filter "pathology": the share of a softmax over `judge_prompts`' captions that those of pathology get.

    The score is ``{"pathology": share}``, from 0 to 1, or None for an image that cannot be opened. The threshold is
    applied to the stored score, so that another one judges nothing again.
    """

    name = "pathology"
    kinds = APPLIES_TO["pathology"]

    def __init__(
        self,
        model_name: str,
        pretrained: str | Path | None = None,
        *,
        threshold: float = CLIP_THRESHOLD,
        batch_size: int = 32,
        device: str | None = None,
    ) -> None:
        """Notes the settings; the model is loaded with the first image.

        Args:
            model_name: open_clip's name, such as "ViT-B-16", or "hf-hub:ORGANIZATION/NAME".
            pretrained: open_clip's tag of weights, such as "laion2b_s34b_b88k", or the path of a checkpoint. Only where
                the name says where the weights are ("hf-hub:", "local-dir:") there is none.
            threshold: Smallest score that is kept.
            batch_size: Images that go through the model at a time.
            device: Such as "cuda"; default: the first GPU if there is one.

        Raises:
            PallavaError: No weights are named, or the threshold is not between 0 and 1.
        """
        if not pretrained and not model_name.startswith(_WEIGHTS_IN_NAME):
            raise PallavaError(
                f"the CLIP model '{model_name}' has no weights: give one of its tags "
                "(see `open_clip.list_pretrained()`) or a checkpoint"
            )
        if not 0 <= threshold <= 1:
            raise PallavaError(f"the threshold of the CLIP judge is {threshold}; expected 0 to 1")
        self._model_name, self._pretrained = model_name, str(pretrained or "")
        self._threshold, self._batch_size, self._device = threshold, batch_size, device
        checkpoint = Path(self._pretrained)
        weights = hash_file(checkpoint) if checkpoint.is_file() else self._pretrained  # a file may be replaced
        self.key = f"pathology-clip-2/{model_name}/{weights}/captions-{CLIP_VERSION}"

    def item_key(self, item: Item) -> str:
        """Names the image's bytes."""
        return image_key(item)

    def score(self, items: Sequence[Item]) -> list[Score]:
        """Looks at the images, batch by batch.

        Raises:
            PallavaError: The model cannot be loaded.
        """
        model = self._model
        scores: list[Score] = []
        with ThreadPoolExecutor(min(_MAX_READERS, os.cpu_count() or 1)) as pool:
            for start in range(0, len(items), self._batch_size):
                pixels = list(pool.map(model.read, (item.path for item in items[start : start + self._batch_size])))
                shares = iter(model.shares([each for each in pixels if each is not None]))
                scores += [{"pathology": None if each is None else round(next(shares), 6)} for each in pixels]
        return scores

    def decide(self, item: Item, score: Score) -> Verdict:
        """Drops what is below the threshold."""
        share = score["pathology"]
        if share is None:
            return Verdict(False, "unreadable_image")
        is_pathology = share >= self._threshold
        return Verdict(is_pathology, "" if is_pathology else "not_pathology", share)

    @cached_property
    def _model(self) -> _Model:
        return _load(self._model_name, self._pretrained or None, self._device)


@dataclass(frozen=True)
class _Model:
    """An open_clip model, its preprocessing and the embedded captions (C, D), those of pathology first."""

    network: Any
    preprocess: Any
    captions: Any
    device: str

    def read(self, path: Path) -> Any:
        """Pixels (3, P, P) of an image; None if it cannot be opened."""
        try:
            return self.preprocess(open_image(path))
        except ImageError:
            return None

    def shares(self, pixels: list[Any]) -> list[float]:
        """The share of each of B images, (3, P, P) each, that the pathology captions get."""
        import torch

        if not pixels:
            return []
        with torch.inference_mode():
            images = self.network.encode_image(torch.stack(pixels).to(self.device), normalize=True)  # (B, D)
            logits = self.network.logit_scale.exp() * images @ self.captions.T  # (B, C)
            return logits.float().softmax(-1)[:, : len(PATHOLOGY_CAPTIONS)].sum(-1).tolist()


def _load(model_name: str, pretrained: str | None, device: str | None) -> _Model:
    import open_clip  # seconds
    import torch

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        # open_clip reads checkpoints with weights_only, which runs no code of theirs.
        network, _, preprocess = open_clip.create_model_and_transforms(
            model_name, pretrained, device=device, force_quick_gelu=made_with_quick_gelu(model_name, pretrained)
        )
        tokenize = open_clip.get_tokenizer(model_name)
    except Exception as error:  # open_clip raises RuntimeError, FileNotFoundError, UnpicklingError, KeyError and others
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise PallavaError(
            f"cannot load the CLIP model '{model_name}' with the weights '{pretrained or ''}': {reason}. "
            "open_clip.list_pretrained() names models and their weights."
        ) from None
    network.eval()
    with torch.inference_mode():
        captions = network.encode_text(tokenize([*PATHOLOGY_CAPTIONS, *OTHER_CAPTIONS]).to(device), normalize=True)
    return _Model(network, preprocess, captions, device)
