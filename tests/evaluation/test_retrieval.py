"""Recall against the whole matrix at once, ties against every order of them, and equal things as one."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pallava.evaluation.answers.items import EvaluateOptions
from pallava.evaluation.answers.questions import read_pairs
from pallava.evaluation.encoders import retrieval
from pallava.evaluation.encoders.embeddings import EmbeddingCache
from pallava.evaluation.encoders.load import load_encoder
from pallava.evaluation.encoders.retrieval import RANKS, Standing, find_standing, recall
from tests.tiny.clips import write_open_clip


def unit(rng: np.random.Generator, *shape: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=shape)).float(), dim=-1)


def random_pairs(rng: np.random.Generator, queries: int, candidates: int) -> np.ndarray:
    """Each query with one to three right candidates."""
    rows = [(q, c) for q in range(queries) for c in rng.choice(candidates, rng.integers(1, 4), replace=False)]
    return np.array(rows)[rng.permutation(len(rows))]


def naive_recall(queries: torch.Tensor, candidates: torch.Tensor, pairs: np.ndarray, rank: int) -> float:
    order = (queries.double() @ candidates.double().T).argsort(dim=1, descending=True).numpy()
    right = set(map(tuple, pairs.tolist()))
    return float(np.mean([any((q, c) in right for c in row[:rank]) for q, row in enumerate(order)]))


@pytest.mark.parametrize(("block_rows", "block_columns"), [(1024, 8192), (7, 16), (1, 1)])
def test_recall_is_that_of_the_whole_matrix(monkeypatch: pytest.MonkeyPatch, block_rows: int, block_columns: int):
    monkeypatch.setattr(retrieval, "_QUERIES", block_rows)
    monkeypatch.setattr(retrieval, "_CANDIDATES", block_columns)
    rng = np.random.default_rng(0)
    candidates = unit(rng, 90, 8)
    pairs = random_pairs(rng, 60, 90)
    nearby = candidates[[column for _, column in sorted(dict(pairs.tolist()).items())]]
    queries = torch.nn.functional.normalize(unit(rng, 60, 8) + 0.8 * nearby, dim=-1)
    standing = find_standing(queries, candidates, pairs)
    found = [recall(standing, rank).mean() for rank in RANKS]
    assert found == pytest.approx([naive_recall(queries, candidates, pairs, rank) for rank in RANKS])
    assert 0 < found[0] < found[-1]


def test_ties_give_what_a_random_order_gives():
    above, tied, right = 1, 2, 2
    order = [*range(tied + right)]  # the right ones are the last two
    for rank in range(1, 6):
        hits = [
            any(candidate >= tied for candidate in shuffled[: max(rank - above, 0)])
            for shuffled in itertools.permutations(order)
        ]
        standing = Standing(np.array([above]), np.array([tied]), np.array([right]))
        assert recall(standing, rank)[0] == pytest.approx(np.mean(hits))


def test_a_model_that_maps_everything_to_one_point_is_at_chance():
    one = torch.ones(200, 4) / 2
    pairs = np.stack([np.arange(200)] * 2, axis=1)
    standing = find_standing(one, one, pairs)
    assert [recall(standing, rank).mean() for rank in RANKS] == pytest.approx([rank / 200 for rank in RANKS])


@pytest.mark.parametrize("sign", [1, -1])
def test_cosines_that_differ_in_the_last_bit_are_a_tie(sign: int):
    """The wrong candidate is nearer, or farther, by less than float32 can hold of two ways to compute a cosine."""
    query = torch.tensor([[1.0, 0.0]])
    candidates = torch.tensor([[0.6, 0.8], [0.6 + sign * 1e-7, 0.8]])
    assert candidates[0, 0] != candidates[1, 0]
    standing = find_standing(query, candidates, np.array([[0, 0]]))
    assert (standing.above.tolist(), standing.tied.tolist(), standing.right.tolist()) == ([0], [1], [1])
    both_right = find_standing(query, candidates, np.array([[0, 0], [0, 1]]))
    assert both_right.right.tolist() == [2]


def test_only_blocks_of_the_matrix_exist(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(retrieval, "_QUERIES", 5)
    monkeypatch.setattr(retrieval, "_CANDIDATES", 11)
    seen: list[tuple[int, ...]] = []
    real = torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: seen.append((len(a), b.shape[1])) or real(a, b))
    rng = np.random.default_rng(0)
    find_standing(unit(rng, 30, 4), unit(rng, 40, 4), random_pairs(rng, 30, 40))
    assert seen
    assert all(rows <= 5 and columns <= 11 for rows, columns in seen)


def test_damaged_pairs_are_left_out_with_the_place_of_the_first(tmp_path: Path):
    captions = ["Glands.", "nec \ud83d", "\0", float("nan"), "nan", "\ufeffStroma."]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(json.dumps({"image": "a.png", "caption": each}) for each in captions))
    data = read_pairs(path, "", EvaluateOptions())
    assert [item.reference for item in data.items] == ["Glands.", "Stroma."]
    damaged, missing = sorted(data.left_out.items(), key=lambda each: "line 2" not in each[0])
    assert ("line 2" in damaged[0], damaged[1], missing[1]) == (True, 2, 2)


def test_equal_images_and_equal_captions_are_one(tmp_path: Path):
    images = [Image.new("RGB", (20, 20), colour) for colour in ("red", "green", "blue")]
    for name, image in zip("abc", images, strict=True):
        image.save(tmp_path / f"{name}.png")
    images[0].save(tmp_path / "copy_of_a.png")
    (tmp_path / "broken.png").write_bytes(b"nothing")
    rows = [
        {"image": "a.png", "captions": ["Glands.", "Normal glands."]},
        {"image": "copy_of_a.png", "caption": "Glands."},
        {"image": "b.png", "caption": "Glands."},
        {"image": "c.png", "text": "Stroma."},
        {"image": "broken.png", "caption": "Nothing."},
        {"image": "missing.png", "caption": "Nothing."},
        {"image": "c.png"},
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    encoder = load_encoder(str(write_open_clip(tmp_path / "model")))
    cache = EmbeddingCache(tmp_path / "cache", encoder)
    data = read_pairs(tmp_path / "pairs.jsonl", "", EvaluateOptions())
    result = retrieval.evaluate(encoder, data, cache, num_resamples=10)
    assert (result["num_images"], result["num_captions"], result["num_pairs"]) == (3, 3, 4)
    assert sum(result["left_out"].values()) == 3
    assert result["image_to_text"]["recall_at_5"]["value"] == 1.0
    # By chance: a has two right captions of three, b and c one each.
    assert result["image_to_text"]["recall_at_1"]["chance"] == pytest.approx((2 / 3 + 1 / 3 + 1 / 3) / 3)
    estimate = result["text_to_image"]["recall_at_1"]
    assert estimate["low"] <= estimate["value"] <= estimate["high"]
