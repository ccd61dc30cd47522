"""What training material and an evaluation set share: nearly the same images, and the same questions.

Public sets of pathology draw on the same articles and textbooks, so a test image may have been trained on under
another name.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pallava.data.image_hashes import NEAR_DISTANCE, TURNS, HammingIndex, ImageHashes, has_structure, hash_images
from pallava.data.material import Conversation, Records, SourceSpec, open_records
from pallava.data.sources.base import Question
from pallava.errors import PallavaError
from pallava.io.files import write_json, write_text
from pallava.io.hashing import short_hash
from pallava.io.store import Store
from pallava.prompts import CAPTION_PROMPTS, IMAGE_TOKEN

_OPTIONS = re.compile(r"\n\s*\(?A[.):]\s.*", re.DOTALL)
_NO_WORD = re.compile(r"[\W_]+")
_EMPTY = "no image or question"


@dataclass(frozen=True)
class ImageMatch:
    """The training image that is nearest to a test image."""

    train_id: str  # the first row that shows it
    distance: int  # number of bits in which the perceptual hashes differ
    turn: str = ""  # one of `TURNS`, by which the test image becomes the training image


@dataclass(frozen=True)
class Leak:
    """A test row that shares an image or a question with the training material."""

    id: str
    image: str = ""  # path of the shared image
    match: ImageMatch | None = None
    question_train_id: str | None = None  # the first training row with the question


@dataclass
class LeakReport:
    """What the training material and an evaluation set share."""

    num_train_rows: int = 0
    num_train_images: int = 0
    num_test_rows: int = 0
    num_test_images: int = 0
    problems: Counter[str] = field(default_factory=Counter)  # images not compared, such as "test: missing"
    rows_not_compared: Counter[str] = field(default_factory=Counter)  # by side and reason, such as "train: malformed"
    distances: Counter[int] = field(default_factory=Counter)  # shared test images
    leaks: list[Leak] = field(default_factory=list)

    def shared(self, what: str) -> list[str]:
        """Return the ids of the test rows that share "images", "questions", "both" or "either"."""
        needs_image, needs_question = what in ("images", "both"), what in ("questions", "both")
        return [
            leak.id
            for leak in self.leaks
            if (leak.match or not needs_image) and (leak.question_train_id is not None or not needs_question)
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {
            "num_shared": {what: len(self.shared(what)) for what in ("images", "questions", "both", "either")},
            **vars(self),
            "distances": dict(sorted(self.distances.items())),
            "leaks": [asdict(leak) for leak in self.leaks],
        }


def write_leak_report(
    train: str | SourceSpec,
    test: str | SourceSpec,
    out: str | Path,
    *,
    train_images: str | Path | None = None,
    test_images: str | Path | None = None,
    distance: int = NEAR_DISTANCE,
    with_turns: bool = False,
    num_workers: int = 1,
) -> LeakReport:
    """Compare two sets, and write the report, the ids to exclude (``.exclude.txt``) and the hashes of images beside it.

    Each set is a training file or a table with its image folder, the kept.jsonl of cleaning, or NAME=ROOT of a data
    set. Hashes of equal images may differ in `distance` bits, 0 to 10; `with_turns` finds turned test images too. A
    repeated run takes the hashes from ``.image_hashes.sqlite`` beside the report.

    Raises:
        PallavaError: One of the sets cannot be read, or the distance is out of range.
    """
    out = Path(out)
    if out.is_dir():
        raise PallavaError(f"the report '{out}' is a folder; give the name of a file")
    sides = (open_records(train, image_folder=train_images), open_records(test, image_folder=test_images))
    with Store(out.with_suffix(".image_hashes.sqlite")) as store:
        report = _compare(*sides, store, distance, with_turns, num_workers)
    ids = "".join(f"{row_id}\n" for row_id in report.shared("either"))
    write_text(out.with_suffix(".exclude.txt"), ids, errors="replace")
    settings = {"train": str(train), "test": str(test), "distance": distance, "turned": with_turns}
    write_json(out, {"settings": settings, **report.to_dict()}, indent=1, ensure_ascii=False)
    return report


def _compare(
    train: Records, test: Records, store: Store, distance: int, with_turns: bool, num_workers: int
) -> LeakReport:
    report, known = LeakReport(), _Known(distance)
    images = known.images_of(_progress(_conversations(train), "training rows"), report)
    for path, hashes in _progress(hash_images(images, store, num_workers=num_workers), "training images"):
        known.add(path, hashes)
        if hashes.problem:
            report.problems[f"train: {hashes.problem}"] += 1
    rows = list(_progress(_conversations(test), "test rows"))
    if num_empty := sum(not row.images and not row.questions for row in rows):
        report.rows_not_compared[f"test: {_EMPTY}"] = num_empty
    for side, records in (("train", train), ("test", test)):
        report.rows_not_compared.update({f"{side}: {why}": count for why, count in records.tally.dropped.items()})
    paths = list(dict.fromkeys(path for row in rows for path in row.images))
    report.num_test_rows, report.num_test_images = len(rows), len(paths)
    matches = {}
    found = hash_images(paths, store, with_turns=with_turns, num_workers=num_workers)
    for path, hashes in _progress(found, "test images", len(paths)):
        if hashes.problem:
            report.problems[f"test: {hashes.problem}"] += 1
        elif match := known.find(hashes):
            matches[path] = match
            report.distances[match.distance] += 1
    report.leaks = [leak for row in rows if (leak := known.find_leak(row, matches))]
    return report


def _normalize(text: str) -> str:
    """Return a question without image markers, options, case, punctuation and extra spaces."""
    text = _OPTIONS.sub("", unicodedata.normalize("NFKC", text.replace(IMAGE_TOKEN, "")))
    return _NO_WORD.sub(" ", text.casefold()).strip()


_NO_QUESTIONS = frozenset(["", *map(_normalize, CAPTION_PROMPTS)])


def _conversations(records: Records) -> Iterator[Conversation]:
    """Yield rows with the paths of their images and normalized questions, of which a caption has none.

    The ids of a file of several sources name the source.
    """
    has_several = len(records.names) > 1
    for record, path in records:
        if isinstance(record, Conversation):
            questions = tuple(text for text in map(_normalize, record.questions) if text not in _NO_QUESTIONS)
            yield replace(record, images=tuple(str(path / name) for name in record.images), questions=questions)
            continue
        question = _normalize(record.question) if isinstance(record, Question) else ""
        row_id = f"{record.source}:{record.id}" if has_several else record.id
        yield Conversation(record.source, row_id, (str(path),), (question,) if question else ())


def _progress(values: Iterable[Any], what: str, total: int | None = None) -> Iterator[Any]:
    return iter(tqdm(values, desc=what, total=total, unit="", mininterval=1, disable=None))


class _Known:
    """The images and questions of the training material, each with the first row that has it."""

    def __init__(self, distance: int) -> None:
        self._index = HammingIndex(distance)
        self._ids: list[str] = []  # rows of the hashes in the index
        self._contents: dict[bytes, str] = {}  # rows of images without structure, by content
        self._questions: dict[bytes, str] = {}
        self._paths: set[bytes] = set()  # as short hashes, since there are millions
        self._waiting: dict[str, str] = {}  # rows of images that are being hashed

    def images_of(self, rows: Iterable[Conversation], report: LeakReport) -> Iterator[str]:
        """Remember the questions, and yield and count each image once."""
        for row in rows:
            report.num_train_rows += 1
            if not row.images and not row.questions:
                report.rows_not_compared[f"train: {_EMPTY}"] += 1
            for question in row.questions:
                self._questions.setdefault(short_hash(question), row.id)
            for path in row.images:
                key = short_hash(path)
                if key not in self._paths:
                    self._paths.add(key)
                    self._waiting[path] = row.id
                    report.num_train_images += 1
                    yield path

    def add(self, path: str, hashes: ImageHashes) -> None:
        """Add an image, unless one with the same hash is known."""
        row_id = self._waiting.pop(path)
        if hashes.problem:
            return
        value = int(hashes.hashes[0], 16)
        if not has_structure(value):
            self._contents.setdefault(short_hash(hashes.sha256), row_id)
        elif (found := self._index.find(value)) is None or found[1]:
            self._index.add(value)
            self._ids.append(row_id)

    def find(self, hashes: ImageHashes) -> ImageMatch | None:
        """Find the nearest training image, of equally near ones that of the simplest turn."""
        if not has_structure(int(hashes.hashes[0], 16)):
            row_id = self._contents.get(short_hash(hashes.sha256))
            return None if row_id is None else ImageMatch(row_id, 0)
        found = [self._index.find(int(value, 16)) for value in hashes.hashes]
        matches = [
            ImageMatch(self._ids[near[0]], near[1], turn) for near, turn in zip(found, TURNS, strict=False) if near
        ]
        return min(matches, key=lambda match: match.distance, default=None)

    def find_leak(self, row: Conversation, matches: dict[str, ImageMatch]) -> Leak | None:
        """Find what a test row shares, by the matches of test images."""
        images = (path for path in row.images if path in matches)
        image = min(images, key=lambda path: matches[path].distance, default="")
        found = (self._questions.get(short_hash(text)) for text in row.questions)
        question = next((train_id for train_id in found if train_id is not None), None)
        return Leak(row.id, image, matches.get(image), question) if image or question is not None else None
