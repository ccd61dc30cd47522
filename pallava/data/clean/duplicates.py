"""Exact and near duplicates among images, within and across sources."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

from pallava.data.clean.filters import APPLIES_TO, Item, Score, Verdict
from pallava.data.image_hashes import NEAR_DISTANCE, HammingIndex, check_distance, has_structure
from pallava.data.sources.base import Question
from pallava.errors import PallavaError


@dataclass(frozen=True)
class _First:
    """The kept file that a file repeats (itself, if it is the first of its kind)."""

    number: int
    record: str
    how: str = ""  # "exact" or "near", or nothing for itself
    distance: int = 0


class DuplicateFilter:
    """Keeps the first, in the order of the records, of images that are the same or nearly so.

    Rows of one file (same source, same path) are no duplicates of each other unless their text is equal too. Of
    captions, any row of a duplicate file is dropped; a question only where its text and answer come a second time,
    since another question about the same image teaches something else. Captions and questions do not meet.

    Nothing is computed here: the hashes come from the image filter's scores, and every reason begins with
    ``exact duplicate of``, ``near duplicate of`` or ``repetition of`` and names the record that is kept. What was seen
    lives in a temporary SQLite file, so that memory stays small.
    """

    name = "duplicates"
    kinds = APPLIES_TO["duplicates"]
    key = ""  # nothing to store

    def __init__(self, distance: int = NEAR_DISTANCE) -> None:
        """Nothing is held before `begin`, so that the filter can be sent to other processes.

        Raises:
            PallavaError: The distance is not from 0 to 10 bits.
        """
        check_distance(distance)
        self._distance = distance

    def begin(self) -> None:
        """Forgets all items; to be called before the first decision."""
        self._indexes = {kind: HammingIndex(self._distance) for kind in self.kinds}
        self._seen = _Seen()
        self._num_firsts = 0

    def item_key(self, item: Item) -> str:
        """The same for every item."""
        return ""

    def score(self, items: Sequence[Item]) -> list[Score]:
        """Nothing; the image filter computes the hashes."""
        return [{} for _ in items]

    def decide(self, item: Item, score: Score) -> Verdict:
        """Compares an item with those before it.

        Raises:
            PallavaError: The image filter has not run before.
        """
        first = self._first_of_file(item)
        if first.how and item.kind == "captions":
            tail = f" (distance {first.distance})" if first.how == "near" else ""
            return Verdict(False, f"{first.how} duplicate of {first.record}{tail}", float(first.distance))
        answer = item.record.answer.strip() if isinstance(item.record, Question) else ""
        text = ("text", item.kind, first.number, " ".join(item.text.split()), answer)
        if row := self._seen.get(*text):
            return Verdict(False, f"repetition of {row.record}", float(first.distance))
        self._seen.put(_First(first.number, _name(item)), *text)
        return Verdict(True)

    def _first_of_file(self, item: Item) -> _First:
        file = ("file", item.kind, item.record.source, item.record.image)
        first = self._seen.get(*file)
        if first is None:
            first = self._compare(item)
            self._seen.put(first, *file)
        return first

    def _compare(self, item: Item) -> _First:
        """Finds the file that an unseen file repeats, or enters it as the first of its kind."""
        if not item.shared.get("sha256") or not item.shared.get("perceptual_hash"):
            raise PallavaError("the filter 'duplicates' needs the hashes of the filter 'image'; put 'image' before it")
        content = ("content", item.kind, item.shared["sha256"])
        if first := self._seen.get(*content):
            return _First(first.number, first.record, "exact")
        image_hash, index = int(item.shared["perceptual_hash"], 16), self._indexes[item.kind]
        if has_structure(image_hash) and (found := index.find(image_hash)):
            first = self._seen.get("hash", item.kind, found[0])
            assert first is not None  # entered below
            return _First(first.number, first.record, "near", found[1])
        self._num_firsts += 1
        first = _First(self._num_firsts, _name(item))
        self._seen.put(first, *content)
        if has_structure(image_hash):
            self._seen.put(first, "hash", item.kind, index.add(image_hash))
        return first


def _name(item: Item) -> str:
    return f"{item.record.source}:{item.record.id}"


class _Seen:
    """What was seen under a key of any parts: a dictionary that SQLite moves to the disk as it grows."""

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
    digest = hashlib.blake2b("\0".join(map(str, key)).encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)
