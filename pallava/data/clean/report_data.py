"""What the report of a cleaning run shows of its records: counts of values, and a few drawn records of each kind."""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pallava.data.clean.outputs import DROPPED, KEPT
from pallava.io.records import RecordFile

Row = dict[str, Any]
"""A line of kept.jsonl or dropped.jsonl."""
Group = tuple[str, str]
"""("kept", source), or (filter, reason)."""
Counts = dict[str, Counter[float]]
"""How often each value occurs among the "kept" and the "dropped"."""

_DIGITS = 3  # of scores, so that a million different ones take no more memory than a thousand


@dataclass
class Collected:
    """What one pass over the records gives.

    Attributes:
        words: Words of the captions.
        sides: Longer sides of the images in pixels.
        scores: For each filter with a score.
        samples: A few records of each group, in the order of the draw.
        firsts: The kept records that drawn duplicates name, by "source:id".
    """

    words: Counts = field(default_factory=lambda: defaultdict(Counter))
    sides: Counts = field(default_factory=lambda: defaultdict(Counter))
    scores: dict[str, Counts] = field(default_factory=lambda: defaultdict(lambda: defaultdict(Counter)))
    samples: dict[Group, list[Row]] = field(default_factory=dict)
    firsts: dict[str, Row] = field(default_factory=dict)


def collect(folder: Path, *, num_shown: int, seed: int) -> Collected:
    """Reads kept.jsonl and dropped.jsonl once, in little memory.

    Args:
        folder: Of the run.
        num_shown: Records to draw of each group.
        seed: Of the draw.

    Raises:
        PallavaError: A file cannot be read.
    """
    collected, draw = Collected(), _Draw(num_shown, seed)
    for row in _rows(folder / DROPPED):
        _count(row, "dropped", collected)
        draw.offer((row["filter"], row["reason"]), row)
    collected.samples = draw.drawn()
    wanted = {name for rows in collected.samples.values() for row in rows if (name := first_of(row))}
    draw = _Draw(num_shown, seed)
    for row in _rows(folder / KEPT):
        _count(row, "kept", collected)
        draw.offer(("kept", row["source"]), row)
        if (name := f"{row['source']}:{row['id']}") in wanted:
            collected.firsts[name] = row
    collected.samples = draw.drawn() | collected.samples
    return collected


def first_of(row: Row) -> str:
    """The record that a dropped duplicate repeats, as "source:id", or nothing."""
    return row.get("detail", "").partition(" (distance ")[0] if row.get("filter") == "duplicates" else ""


def _rows(path: Path) -> Iterator[Row]:
    if not path.stat().st_size:
        return
    file = RecordFile(path)
    with tqdm(total=file.num_bytes, unit="B", unit_scale=True, desc="report", mininterval=1, disable=None) as bar:
        for record in file:
            yield record.value
            bar.update(file.num_bytes_read - bar.n)


def _count(row: Row, fate: str, collected: Collected) -> None:
    if row["kind"] == "captions":
        collected.words[fate][len(row["text"].split())] += 1
    if "image_size" in row:
        collected.sides[fate][max(row["image_size"])] += 1
    for name, score in row["scores"].items():
        collected.scores[name][fate][round(score, _DIGITS)] += 1


class _Draw:
    """The records of each group whose hashes are smallest: a draw that needs no count beforehand."""

    def __init__(self, num_shown: int, seed: int) -> None:
        self._num_shown, self._seed = num_shown, seed
        self._heaps: dict[Group, list[tuple[int, int, Row]]] = defaultdict(list)
        self._num_offered = 0

    def offer(self, group: Group, row: Row) -> None:
        text = f"{self._seed}:{row['source']}:{row['id']}".encode(errors="replace")
        rank = -int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
        self._num_offered += 1
        heap, entry = self._heaps[group], (rank, self._num_offered, row)  # rows themselves cannot be compared
        if len(heap) < self._num_shown:
            heapq.heappush(heap, entry)
        elif rank > heap[0][0]:
            heapq.heapreplace(heap, entry)

    def drawn(self) -> dict[Group, list[Row]]:
        return {group: [row for *_, row in sorted(heap, reverse=True)] for group, heap in sorted(self._heaps.items())}
