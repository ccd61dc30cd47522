"""Duplicates: the first is kept, rows of one file are none, and empty pictures do not fall into one."""

import io
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pallava.data.clean import images
from pallava.data.clean.filters import Candidate, Decision
from pallava.data.clean.images import DuplicateFilter
from pallava.data.image_hashes import HammingIndex, has_structure, perceptual_hash
from pallava.data.sources.base import Pair, Question
from pallava.errors import PallavaError

HASH = "f2b92c156a951397"
NEAR = "f2b92c156a951384"  # 3 bits away
FAR = "f2b92c156a9513e8"  # 7 bits away


def pair(source: str, name: str, image: str, text: str = "Glands.", sha256: str = "", phash: str = HASH) -> Candidate:
    shared = {"sha256": sha256 or image, "perceptual_hash": phash}
    return Candidate(Pair(source, name, image, text), Path("/root") / image, shared)


def question(name: str, image: str, text: str, answer: str, sha256: str = "", phash: str = HASH) -> Candidate:
    shared = {"sha256": sha256 or image, "perceptual_hash": phash}
    return Candidate(Question("vqa", name, image, text, answer), Path("/root") / image, shared)


def decide(*items: Candidate) -> list[Decision]:
    chosen = DuplicateFilter()
    assert chosen.is_ordered
    chosen.begin()
    return [chosen.decide(item, score) for item, score in zip(items, chosen.score(items), strict=True)]


def picture(seed: int, size: tuple[int, int] = (160, 120)) -> Image.Image:
    """Soft blobs, as tissue from afar."""
    values = np.random.default_rng(seed).integers(0, 255, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(values).resize(size, Image.Resampling.BICUBIC)


def bits_apart(first: str, second: str) -> int:
    return (int(first, 16) ^ int(second, 16)).bit_count()


def test_hash_stays_with_size_and_compression_and_differs_between_pictures() -> None:
    first = perceptual_hash(picture(0))
    assert len(first) == 16
    compressed = io.BytesIO()
    picture(0, (400, 300)).save(compressed, "JPEG", quality=60)
    assert bits_apart(first, perceptual_hash(Image.open(compressed))) <= 4
    assert min(bits_apart(first, perceptual_hash(picture(seed))) for seed in range(1, 30)) > 10


def test_exact_and_near_duplicates_name_the_first() -> None:
    verdicts = decide(
        pair("quilt-1m", "1", "a.jpg"),
        pair("pmc-oa", "2", "b.jpg", sha256="a.jpg", phash=FAR),
        pair("pmc-oa", "3", "c.jpg", phash=NEAR),
        pair("pmc-oa", "4", "d.jpg", phash=FAR),
    )
    assert verdicts == [
        Decision(),
        Decision("exact duplicate of quilt-1m:1", 0.0),
        Decision("near duplicate of quilt-1m:1 (distance 3)", 3.0),
        Decision(),
    ]


@pytest.mark.parametrize(("distance", "kept"), [(2, [True, True, True]), (7, [True, False, False])])
def test_distance_is_a_threshold(distance: int, kept: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "NEAR_DISTANCE", distance)
    items = pair("a", "1", "a.jpg"), pair("a", "2", "b.jpg", phash=NEAR), pair("a", "3", "c.jpg", phash=FAR)
    assert [v.keep for v in decide(*items)] == kept


def test_a_distance_that_cannot_be_searched() -> None:
    with pytest.raises(PallavaError, match="0 to 10"):
        HammingIndex(11)


def test_a_dropped_image_drops_no_further_one() -> None:
    bridge = f"{int(HASH, 16) ^ 0b1111:016x}"
    beyond = f"{int(HASH, 16) ^ 0b11111111:016x}"
    items = (
        pair("a", "1", "a.jpg"),
        pair("a", "2", "b.jpg", phash=bridge),
        pair("a", "3", "c.jpg", phash=beyond),
    )
    assert [verdict.keep for verdict in decide(*items)] == [True, False, True]


def test_captions_of_one_file_are_kept_unless_they_repeat() -> None:
    verdicts = decide(
        pair("a", "1", "a.jpg", "Glands."),
        pair("a", "2", "a.jpg", "Stroma."),
        pair("a", "3", "a.jpg", " Stroma. "),
        pair("b", "4", "a.jpg", "Nuclei."),  # another source's file of that name, with the same content
        pair("b", "5", "a.jpg", "Mitoses."),
    )
    assert [verdict.reason for verdict in verdicts] == [
        "",
        "",
        "repetition of a:2",
        "exact duplicate of a:1",
        "exact duplicate of a:1",
    ]


def test_questions_are_dropped_with_equal_text_and_answer_alone() -> None:
    verdicts = decide(
        pair("a", "1", "a.jpg"),
        question("2", "a.jpg", "Is it tumour?", "yes"),
        question("3", "a.jpg", "What is it?", "a gland"),
        question("4", "b.jpg", "Is it  tumour?", "yes ", phash=NEAR),
        question("5", "b.jpg", "Is it tumour?", "no", phash=NEAR),
        question("6", "c.jpg", "Is it tumour?", "yes", phash=FAR),
    )
    assert [verdict.reason for verdict in verdicts] == ["", "", "", "repetition of vqa:2", "", ""]


def test_options_tell_questions_apart() -> None:
    first, second = (question(str(n), "a.jpg", "Which stain?", "A") for n in range(2))
    other = replace(second, record=replace(second.record, options=("PAS", "Congo red")))
    assert [verdict.keep for verdict in decide(first, other)] == [True, True]


def noisy_ground(seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).integers(-2, 3, (200, 200, 3))
    return Image.fromarray((235 + noise).astype(np.uint8))


def even_grounds() -> list[Image.Image]:
    ramp = np.linspace(200, 240, 200)
    return [
        Image.new("RGB", (300, 200), "white"),
        Image.new("RGB", (200, 200), (228, 215, 225)),
        Image.fromarray(np.tile(ramp, (200, 1)).astype(np.uint8)),
        Image.fromarray(np.tile(ramp[:, None], (1, 200)).astype(np.uint8)),
    ]


def test_even_grounds_do_not_collapse() -> None:
    hashes = [perceptual_hash(image) for image in even_grounds()]
    assert len(set(hashes)) < len(hashes)
    assert not any(has_structure(int(value, 16)) for value in hashes)
    assert all(has_structure(int(perceptual_hash(picture(seed)), 16)) for seed in range(30))
    hashes += [perceptual_hash(noisy_ground(seed)) for seed in range(20)]
    items = [pair("a", str(n), f"{n}.jpg", phash=value) for n, value in enumerate(hashes)]
    assert all(verdict.keep for verdict in decide(*items))
    copy = pair("a", "copy", "copy.jpg", sha256="0.jpg", phash=hashes[0])
    assert decide(*items, copy)[-1].reason == "exact duplicate of a:0"


def test_a_picture_without_structure_repeats_no_picture_with_some() -> None:
    some, none = f"{0xFFFF:016x}", f"{0x7FFF:016x}"
    assert [v.keep for v in decide(pair("a", "1", "a.jpg", phash=some), pair("a", "2", "b.jpg", phash=none))] == [
        True
    ] * 2


def test_begin_forgets() -> None:
    chosen = pickle.loads(pickle.dumps(DuplicateFilter()))
    item = pair("a", "1", "a.jpg")
    for _ in range(2):
        chosen.begin()
        assert chosen.decide(item, {}).keep


def test_without_hashes_it_says_what_is_missing() -> None:
    chosen = DuplicateFilter()
    chosen.begin()
    with pytest.raises(PallavaError, match="needs the hashes of the filter 'image'"):
        chosen.decide(Candidate(Pair("a", "1", "a.jpg", "Glands."), Path("/root/a.jpg")), {})
