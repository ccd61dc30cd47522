"""What training material and an evaluation set share: nearly the same images, and the same questions.

Public sets of pathology draw on the same articles and textbooks, so that a test image may have been trained on under
another name.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from tqdm import tqdm

from pallava.data.audit_rows import AuditRow
from pallava.data.clean.duplicates import NEAR_DISTANCE, TURNS, has_structure
from pallava.data.hamming import HammingIndex
from pallava.data.image_hashes import HashCache, ImageHashes

_TURN_NAMES = tuple(TURNS)


@dataclass(frozen=True)
class ImageMatch:
    """The training image that is nearest to a test image.

    Attributes:
        train_id: The first row that shows it.
        distance: Bits in which the perceptual hashes differ.
        turn: How the test image must be turned, one of `TURNS`; nothing if not at all.
    """

    train_id: str
    distance: int
    turn: str = ""


@dataclass(frozen=True)
class Leak:
    """A test row that training material gives away.

    Attributes:
        id: The test row's.
        image: Path of its image that was found, or nothing.
        match: What it was found to be, or nothing.
        question_train_id: The first training row with its question, or nothing.
    """

    id: str
    image: str = ""
    match: ImageMatch | None = None
    question_train_id: str | None = None


@dataclass
class LeakReport:
    """What two sets share.

    Attributes:
        num_train_rows: Rows of the training material.
        num_train_images: Its images.
        num_test_rows: Rows of the evaluation set.
        num_test_images: Its images.
        problems: Count of images that could not be compared, by side and reason: "test: missing".
        distances: Count of test images found, by distance.
        leaks: The test rows that share an image or a question.
    """

    num_train_rows: int = 0
    num_train_images: int = 0
    num_test_rows: int = 0
    num_test_images: int = 0
    problems: Counter[str] = field(default_factory=Counter)
    distances: Counter[int] = field(default_factory=Counter)
    leaks: list[Leak] = field(default_factory=list)

    def shared(self, what: str) -> list[str]:
        """Ids of the test rows that share an image ("images"), a question ("questions"), "both" or "either"."""
        chosen = {
            "images": lambda leak: leak.match is not None,
            "questions": lambda leak: leak.question_train_id is not None,
            "both": lambda leak: leak.match is not None and leak.question_train_id is not None,
            "either": lambda leak: True,
        }[what]
        return [leak.id for leak in self.leaks if chosen(leak)]

    def to_dict(self) -> dict[str, Any]:
        """Gives the report as JSON holds it."""
        return {
            "num_shared": {what: len(self.shared(what)) for what in ("images", "questions", "both", "either")},
            **asdict(self),
            "distances": dict(sorted(self.distances.items())),
        }


def audit(
    train: Iterable[AuditRow],
    test: Iterable[AuditRow],
    cache: HashCache,
    *,
    distance: int = NEAR_DISTANCE,
    with_turns: bool = False,
    num_workers: int = 1,
) -> LeakReport:
    """Looks for every test image and question in the training material.

    Args:
        train: The training material; is streamed.
        test: The evaluation set; is held in memory.
        cache: Where hashes are kept.
        distance: Bits in which two images' perceptual hashes may differ.
        with_turns: Also finds test images that are mirrored or turned by right angles.
        num_workers: Processes that decode images.

    Raises:
        PallavaError: A file cannot be read, or the distance is out of range.
    """
    report, known = LeakReport(), _Known(distance)
    images = known.images_of(_shown(train, "training rows"))
    for path, hashes in _shown(cache.hash_images(images, num_workers=num_workers), "training images"):
        known.add(path, hashes)
        if hashes.problem:
            report.problems[f"train: {hashes.problem}"] += 1
    report.num_train_rows, report.num_train_images = known.num_rows, known.num_images
    rows = list(_shown(test, "test rows"))
    paths = list(dict.fromkeys(path for row in rows for path in row.images))
    report.num_test_rows, report.num_test_images = len(rows), len(paths)
    matches = {}
    found = cache.hash_images(paths, with_turns=with_turns, num_workers=num_workers)
    for path, hashes in _shown(found, "test images", len(paths)):
        if hashes.problem:
            report.problems[f"test: {hashes.problem}"] += 1
        elif match := known.find(hashes):
            matches[path] = match
            report.distances[match.distance] += 1
    report.leaks = [leak for row in rows if (leak := _leak(row, matches, known))]
    return report


def _shown(values: Iterable[Any], what: str, total: int | None = None) -> Iterator[Any]:
    return iter(tqdm(values, desc=what, total=total, unit="", mininterval=1, disable=None))


def _leak(row: AuditRow, matches: dict[str, ImageMatch], known: _Known) -> Leak | None:
    image = min((path for path in row.images if path in matches), key=lambda path: matches[path].distance, default="")
    question = next((train_id for text in row.questions if (train_id := known.find_question(text)) is not None), None)
    if not image and question is None:
        return None
    return Leak(row.id, image, matches.get(image), question)


class _Known:
    """The images and questions of the training material, each with the first row that has it."""

    def __init__(self, distance: int) -> None:
        self._index = HammingIndex(distance)
        self._ids: list[str] = []  # of the hashes in the index
        self._contents: dict[bytes, str] = {}  # of images that have no hash to tell them by
        self._questions: dict[bytes, str] = {}
        self._paths: set[bytes] = set()
        self._waiting: dict[str, str] = {}  # ids of images that are being hashed
        self.num_rows = self.num_images = 0

    def images_of(self, rows: Iterable[AuditRow]) -> Iterator[str]:
        """Takes note of the questions, and yields each image once."""
        for row in rows:
            self.num_rows += 1
            for question in row.questions:
                self._questions.setdefault(_key(question), row.id)
            for path in row.images:
                key = _key(path)
                if key not in self._paths:
                    self._paths.add(key)
                    self._waiting[path] = row.id
                    self.num_images += 1
                    yield path

    def add(self, path: str, hashes: ImageHashes) -> None:
        """Enters an image, unless one with the same hash is there."""
        row_id = self._waiting.pop(path)
        if hashes.problem:
            return
        value = int(hashes.hashes[0], 16)
        if not has_structure(value):
            self._contents.setdefault(_key(hashes.sha256), row_id)
            return
        found = self._index.find(value)
        if found is None or found[1]:
            self._index.add(value)
            self._ids.append(row_id)

    def find(self, hashes: ImageHashes) -> ImageMatch | None:
        """Finds the nearest training image; of equally near ones that of the simplest turn."""
        if not has_structure(int(hashes.hashes[0], 16)):
            row_id = self._contents.get(_key(hashes.sha256))
            return None if row_id is None else ImageMatch(row_id, 0)
        found = [
            (self._index.find(int(value, 16)), name) for value, name in zip(hashes.hashes, _TURN_NAMES, strict=False)
        ]
        matches = [ImageMatch(self._ids[near[0]], near[1], name) for near, name in found if near]
        return min(matches, key=lambda match: match.distance, default=None)

    def find_question(self, question: str) -> str | None:
        """Gives the first training row with a question."""
        return self._questions.get(_key(question))


def _key(text: str) -> bytes:
    """Eight bytes in place of a text: millions are held."""
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest()
