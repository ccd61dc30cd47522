"""Exact and near duplicates among images, within and across sources."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from pallava.data.clean.filters import KEEP, Candidate, Decision, Filter, Findings
from pallava.data.image_hashes import NEAR_DISTANCE, HammingIndex, check_distance, has_structure
from pallava.data.sources.base import Question
from pallava.errors import PallavaError
from pallava.io.hashing import short_hash


@dataclass(frozen=True)
class _First:
    """The kept file that a file repeats (itself, if it is the first of its kind)."""

    number: int
    record: str
    how: str = ""  # "exact" or "near", or nothing for itself
    distance: int = 0


class DuplicateFilter(Filter):
    """Keep the first, in the order of the records, of images that are the same or nearly so.

    Rows of one file (same source, same path) are not duplicates of each other unless their text is equal too. Of
    captions, any row of a duplicate file is dropped; a question only if its text and answer occur a second time, since
    another question about the same image teaches something else. Captions and questions are not compared.

    The hashes are the image filter's findings. Every reason begins with ``exact duplicate of``, ``near duplicate of``
    or ``repetition of`` and names the record that is kept. To save memory, these are kept in a temporary SQLite file.
    """

    name = "duplicates"
    is_ordered = True

    def __init__(self, distance: int = NEAR_DISTANCE) -> None:
        check_distance(distance)
        self._distance = distance

    def begin(self) -> None:
        """Forget all candidates; to be called before the first decision."""
        self._indexes = {kind: HammingIndex(self._distance) for kind in self.kinds}
        self._seen = _Seen()
        self._num_firsts = 0

    def decide(self, candidate: Candidate, findings: Findings) -> Decision:
        """Compare a candidate with those before it.

        Raises:
            PallavaError: The image filter has not run before.
        """
        first = self._first_of_file(candidate)
        if first.how and candidate.kind == "captions":
            tail = f" (distance {first.distance})" if first.how == "near" else ""
            return Decision(False, f"{first.how} duplicate of {first.record}{tail}", float(first.distance))
        answer = candidate.record.answer.strip() if isinstance(candidate.record, Question) else ""
        text = ("text", candidate.kind, first.number, " ".join(candidate.text.split()), answer)
        if row := self._seen.get(*text):
            return Decision(False, f"repetition of {row.record}", float(first.distance))
        self._seen.put(_First(first.number, _name(candidate)), *text)
        return KEEP

    def _first_of_file(self, candidate: Candidate) -> _First:
        file = ("file", candidate.kind, candidate.record.source, candidate.record.image)
        first = self._seen.get(*file)
        if first is None:
            first = self._compare(candidate)
            self._seen.put(first, *file)
        return first

    def _compare(self, candidate: Candidate) -> _First:
        if not candidate.shared.get("sha256") or not candidate.shared.get("perceptual_hash"):
            raise PallavaError("the filter 'duplicates' needs the hashes of the filter 'image'; put 'image' before it")
        content = ("content", candidate.kind, candidate.shared["sha256"])
        if first := self._seen.get(*content):
            return _First(first.number, first.record, "exact")
        image_hash, index = int(candidate.shared["perceptual_hash"], 16), self._indexes[candidate.kind]
        if has_structure(image_hash) and (found := index.find(image_hash)):
            first = self._seen.get("hash", candidate.kind, found[0])
            assert first is not None  # entered below
            return _First(first.number, first.record, "near", found[1])
        self._num_firsts += 1
        first = _First(self._num_firsts, _name(candidate))
        self._seen.put(first, *content)
        if has_structure(image_hash):
            self._seen.put(first, "hash", candidate.kind, index.add(image_hash))
        return first


def _name(candidate: Candidate) -> str:
    return f"{candidate.record.source}:{candidate.record.id}"


class _Seen:
    """A dictionary that SQLite moves to the disk as it grows."""

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None)  # a file without name, gone with the connection
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute("PRAGMA cache_size = -65536")  # in KiB
        self._database.execute("CREATE TABLE seen (key INTEGER PRIMARY KEY, number, record, how, distance)")
        self._database.execute("BEGIN")  # never committed, which is faster

    def get(self, *key: str | int) -> _First | None:
        rows = self._database.execute("SELECT number, record, how, distance FROM seen WHERE key = ?", (_hash(key),))
        row = rows.fetchone()
        return None if row is None else _First(*row)

    def put(self, first: _First, *key: str | int) -> None:
        row = (_hash(key), first.number, first.record, first.how, first.distance)
        self._database.execute("INSERT OR IGNORE INTO seen VALUES (?, ?, ?, ?, ?)", row)


def _hash(key: tuple[str | int, ...]) -> int:
    return int.from_bytes(short_hash(*key), "big", signed=True)
