"""Retrieval: how often a caption of an image is among the k nearest captions, and the other way round.

Only blocks of the similarity matrix exist at a time. Ties are not decided in the model's favour: recall is what a
random order of the tied gives on average, so that a model that maps everything to one point is at chance. Letters
in shapes: Q queries, M candidates, P pairs, D width.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from pallava.evaluation.answers.items import Questions
from pallava.evaluation.encoders.embeddings import EmbeddingCache, count_reasons, embed_images, embed_texts
from pallava.evaluation.encoders.load import Encoder
from pallava.evaluation.statistics import bootstrap, describe_interval

RANKS = (1, 5, 10, 50)
_TIE = 1e-6  # of cosines in float32, whose last bit depends on the block
_QUERIES, _CANDIDATES = 1024, 8192  # 32 MiB a block


@dataclass(frozen=True)
class Standing:
    """Numbers of candidates for each query, (Q,), beside the best of its right ones."""

    above: NDArray[np.int64]  # wrong ones above it
    tied: NDArray[np.int64]  # wrong ones tied with it
    right: NDArray[np.int64]  # right ones tied with it, itself included


def find_standing(
    queries: Tensor, candidates: Tensor, pairs: NDArray[np.int64], *, device: torch.device | str = "cpu", name: str = ""
) -> Standing:
    """Compare queries (Q, D) with candidates (M, D), of unit length, block by block.

    `pairs` are (P, 2) numbers of a query and a right candidate, each pair once, every query in one at least.
    """
    pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
    starts = np.searchsorted(pairs[:, 0], np.arange(len(queries) + 1))
    parts = []
    for begin in tqdm(range(0, len(queries), _QUERIES), desc=name, disable=None, unit="block"):
        end = min(begin + _QUERIES, len(queries))
        own = torch.from_numpy(pairs[starts[begin] : starts[end]]).to(device) - torch.tensor([begin, 0], device=device)
        parts.append(_block(queries[begin:end].to(device), candidates, own))
    return Standing(*(torch.cat(columns).cpu().numpy() for columns in zip(*parts, strict=True)))


def recall(standing: Standing, rank: int) -> NDArray[np.float64]:
    """Return the probability, in a random order of ties, that a right candidate is among the first `rank`: (Q,)."""
    room = np.maximum(rank - standing.above, 0)  # places that the tied compete for
    missed = np.ones(len(room))
    for place in range(int(room.max(initial=0))):  # no right candidate at any of the places
        wrong_left = np.maximum(standing.tied - place, 0)
        taken = wrong_left / np.maximum(standing.tied + standing.right - place, 1)
        missed *= np.where(place < room, taken, 1.0)
    return 1 - missed


def evaluate(
    encoder: Encoder, data: Questions, cache: EmbeddingCache, *, batch_size: int = 64, **resampling: int
) -> dict[str, Any]:
    """Score both directions: recall with intervals by ``num_resamples`` and ``seed``, beside the recall by chance.

    Equal images are one candidate, and so are equal captions: nobody can know which of the same things is meant.
    """
    found = embed_images(encoder, [Path(item.image) for item in data.items], cache, batch_size=batch_size)
    captions = [data.items[number].reference for number in found.index]
    image_rows, image_of = _unique(found.contents)
    caption_rows, caption_of = _unique(captions)
    texts = embed_texts(encoder, [captions[row] for row in caption_rows], cache)
    images = found.vectors[image_rows]
    pairs = np.unique(np.stack([image_of, caption_of], axis=1), axis=0)

    def score(name: str, queries: Tensor, candidates: Tensor, pairs: NDArray[np.int64]) -> dict[str, Any]:
        standing = find_standing(queries, candidates, pairs, device=encoder.device, name=name)
        right = np.bincount(pairs[:, 0], minlength=len(queries))
        by_chance = Standing(np.zeros_like(right), len(candidates) - right, right)
        hits = np.stack([recall(standing, rank) for rank in RANKS], axis=1)  # (Q, ranks)
        estimates = bootstrap(lambda w: w @ hits / len(hits), len(hits), **resampling)
        return {
            f"recall_at_{rank}": {**asdict(estimate), "chance": float(recall(by_chance, rank).mean())}
            for rank, estimate in zip(RANKS, estimates, strict=True)
        }

    return {
        "num_images": len(image_rows),
        "num_captions": len(caption_rows),
        "num_pairs": len(pairs),
        "interval": describe_interval("queries", **resampling),
        "image_to_text": score("image to text", images, texts, pairs),
        "text_to_image": score("text to image", texts, images, pairs[:, ::-1].copy()),
        "left_out": dict(Counter(data.left_out) + Counter(count_reasons(found.unreadable))),
    }


def _block(queries: Tensor, candidates: Tensor, own: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Above, tied and right of some queries, whose pairs are given with numbers within the block."""
    row, column = own.unbind(1)
    own_candidates = candidates[column.to(candidates.device)].to(queries.device)
    similarity = (queries[row] * own_candidates).sum(1)  # (pairs of the block,)
    best = torch.full((len(queries),), -2.0, device=queries.device)
    best = best.scatter_reduce(0, row, similarity, "amax")
    zeros = torch.zeros(len(queries), dtype=torch.int64, device=queries.device)
    right = zeros.scatter_add(0, row, (similarity >= best[row] - _TIE).long())
    above, tied = zeros.clone(), zeros.clone()
    for begin in range(0, len(candidates), _CANDIDATES):
        part = queries @ candidates[begin : begin + _CANDIDATES].to(queries.device).T  # (queries, candidates) of blocks
        inside = (column >= begin) & (column < begin + part.shape[1])
        part[row[inside], column[inside] - begin] = -torch.inf  # the right ones are counted above
        above += (part > best[:, None] + _TIE).sum(1)
        tied += ((part - best[:, None]).abs() <= _TIE).sum(1)
    return above, tied, right


def _unique(values: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows in which a value is the first of its kind, and for each value the number of its row among them."""
    numbers: dict[str, int] = {}
    number_of = np.array([numbers.setdefault(value, len(numbers)) for value in values], dtype=np.int64)
    return np.unique(number_of, return_index=True)[1], number_of
