"""The order of rows: what of the time is useful, and that every row is seen once an epoch."""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest

from pallava.demo.micrographs import random_facts
from pallava.demo.questions import caption
from pallava.training import sampler as sampler_module
from pallava.training.sampler import LengthSampler

RANKS, BATCH, VISUAL = 16, 6, 196


def order(lengths, epoch=0, ranks=RANKS, batch_size=BATCH, seed=1):
    """Return the rows of each rank (ranks, rows) in an epoch."""
    dataset, rows = SimpleNamespace(modality_length=lengths), []
    with pytest.MonkeyPatch.context() as patch:
        for rank in range(ranks):
            patch.setattr(sampler_module, "get_dist_info", lambda rank=rank: (rank, ranks))
            sampler = LengthSampler(dataset, batch_size, seed=seed)
            sampler.set_epoch(epoch)
            rows.append(list(sampler))
            assert len(rows[-1]) == len(sampler)
    return np.array(rows)


def micro_steps(rows, batch_size=BATCH):
    """Return the rows of all ranks that are computed at a time: (ranks, batch) each."""
    return np.split(rows, range(batch_size, rows.shape[1], batch_size), axis=1)


def useful_share(lengths, rows):
    """Return the tokens of rows among those that all ranks could compute while they wait for the longest batch."""
    steps = [np.abs(lengths)[step] for step in micro_steps(rows)]
    return sum(step.sum() for step in steps) / sum(step.size * step.max() for step in steps)


def log_normal(sigma, count=20_000):
    texts = np.exp(np.random.default_rng(0).normal(np.log(100), sigma, count))
    return np.minimum(VISUAL + np.maximum(texts, 1).astype(int), 2048)


@pytest.mark.parametrize("sigma", [0.3, 0.45, 0.6, 0.8])
def test_useful_share_of_log_normal_captions(sigma):
    lengths = log_normal(sigma)
    assert useful_share(lengths, order(lengths)) >= 0.95
    shuffled = np.random.default_rng(0).permutation(len(lengths))[: len(lengths) // 96 * 96]
    assert useful_share(lengths, shuffled.reshape(RANKS, -1)) < 0.75  # so it is the order


def test_useful_share_of_the_demos_captions(smollm2_tokenizer):
    """Without the visual tokens, which would hide the padding of texts."""
    rng = np.random.default_rng(0)
    texts = [caption(random_facts(rng)) for _ in range(2520)]
    lengths = np.array([len(ids) for ids in smollm2_tokenizer(texts).input_ids])
    assert len(set(lengths)) > 2
    assert useful_share(lengths, order(lengths)) >= 0.95


@pytest.mark.parametrize(
    ("count", "ranks", "batch_size"), [(1000, 4, 3), (1001, 4, 3), (5, 4, 3), (1, 2, 2), (7, 1, 6)]
)
def test_every_row_once_an_epoch(count, ranks, batch_size):
    lengths = log_normal(0.6, count) * np.where(np.arange(count) % 3, 1, -1)
    found = [order(lengths, epoch, ranks, batch_size) for epoch in (0, 1)]
    for rows in found:
        seen, times = np.unique(rows, return_counts=True)
        assert seen.tolist() == [*range(count)]
        assert rows.size - count < ranks, "more rows come twice than it takes for even ranks"
        assert times.sum() - count == rows.size - count
    assert count < 10 or not np.array_equal(*found)
    assert np.array_equal(order(lengths, 1, ranks, batch_size), found[1]), "seed and epoch do not decide alone"
    assert count < 10 or not np.array_equal(order(lengths, 1, ranks, batch_size, seed=2), found[1])


def test_epochs_differ_in_what_meets_in_a_batch():
    lengths = log_normal(0.6)
    pairs = [
        {tuple(pair) for step in micro_steps(order(lengths, epoch)) for row in step for pair in pairwise(row)}
        for epoch in (0, 1)
    ]
    assert len(pairs[0] & pairs[1]) < 0.05 * len(pairs[0])


def test_order_of_lengths_is_random_but_for_the_longest():
    """Batches from long to short, as sorting makes them, would teach in waves."""
    lengths = log_normal(0.6)
    means = np.array([lengths[step].mean() for step in micro_steps(order(lengths))])
    assert lengths.max() in lengths[order(lengths)[:, :BATCH]]
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.15
    steps = lengths[order(lengths)].reshape(RANKS, -1)[:, : len(means) // 6 * 36].reshape(RANKS, -1, 36).sum(2)
    assert (steps.max(0) / steps.mean(0)).mean() < 1.02  # ranks have alike work in an accumulated step


def test_rows_with_and_without_image_are_apart():
    lengths = log_normal(0.6) * np.where(np.arange(20_000) % 4, 1, -1)
    steps = micro_steps(order(lengths))
    mixed = [step for step in steps if 0 < (lengths[step] < 0).sum() < step.size]
    assert len(mixed) <= 1 + len(steps) // 90  # where the two meet in a mega-batch
