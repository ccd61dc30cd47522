"""The list of images that PA-LLaVA published (PCaption-0.5M): every caption of an image on it is kept."""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pallava.data.clean.filters import APPLIES_TO, Item, Score, Verdict
from pallava.data.sources import SOURCES
from pallava.data.sources.base import RowDropped
from pallava.data.sources.files import json_rows
from pallava.errors import PallavaError

_KEYS = ("image", "image_path", "img", "image_id", "image_name", "file_name", "filename", "name", "path", "file", "id")
_ENDING = re.compile(r"\.(jpe?g|png|tiff?|webp|bmp|gif)$", re.IGNORECASE)
_ARCHIVES = (".gz", ".tgz", ".tar", ".zip", ".bz2", ".xz", ".7z")
_OWN = ("pairs", "csv")
_SHOWN = 80  # characters of an entry
_LEVELS = (3, 2, 1)  # relative path, base name, base name without its ending


class PublishedIndexFilter:
    """Keeps the captions of listed images; a name is matched on the path, then the base name, then without ending.

    The weaker match counts only where no better one was found, for the name and for the image. That takes a survey of
    all items. A name that matches images of several sources keeps them all and is reported, not guessed.

    Attributes:
        unread: The entries of the list that hold no name, with their positions.
    """

    name = "published-index"
    kinds = APPLIES_TO["published-index"]
    key = ""

    def __init__(self, path: str | Path) -> None:
        """Reads the list.

        Raises:
            PallavaError: It cannot be read or holds no name.
        """
        listed = read_names(Path(path))
        self._names, self.unread = listed.names, listed.unread
        if not self._names:
            first = f" ({listed.unread[0]})" if listed.unread else ""
            raise PallavaError(
                f"the list '{path}' holds no image name{first}; expected file names, one a line or as JSON"
            )
        self._by_level: dict[int, dict[str, tuple[int, ...]]] = {level: {} for level in _LEVELS}
        for number, (_, name) in enumerate(self._names):
            for level, numbers in self._by_level.items():
                key = _at_level(name, level)
                numbers[key] = (*numbers.get(key, ()), number)
        self._best = bytearray(len(self._names))
        self._sources: dict[int, frozenset[str]] = {}

    @property
    def num_names(self) -> int:
        """How many names are on the list."""
        return len(self._names)

    def survey(self, item: Item) -> None:
        """Notes which names the item's image matches."""
        level, numbers = self._matches(item)
        for number in numbers:
            if level > self._best[number]:
                self._best[number] = level
                self._sources[number] = frozenset()
            if level == self._best[number] and item.record.source not in self._sources[number]:
                self._sources[number] |= {item.record.source}

    def item_key(self, item: Item) -> str:
        """The image's name."""
        return item.record.image

    def score(self, items: Sequence[Item]) -> list[Score]:
        """How well the image's name is matched: 3 by its path, 2 by its base name, 1 without its ending, 0 not."""
        return [{"match": self._match(item)} for item in items]

    def decide(self, item: Item, score: Score) -> Verdict:
        """Keeps what is matched."""
        return Verdict(bool(score["match"]), "" if score["match"] else "not_listed", score["match"])

    def unmatched(self) -> Iterator[str]:
        """Yields the names that matched nothing."""
        return (name for number, (_, name) in enumerate(self._names) if not self._best[number])

    def ambiguous(self) -> Iterator[tuple[str, list[str]]]:
        """Yields the names that matched images of several sources, with these."""
        for number, sources in sorted(self._sources.items()):
            if len(sources) > 1:
                yield self._names[number][1], sorted(sources)

    def _matches(self, item: Item) -> tuple[int, Sequence[int]]:
        """Finds the best level with a name for the image, and the names."""
        for level in _LEVELS:
            numbers = self._by_level[level].get(_at_level(_normal(item.record.image), level), ())
            if numbers := tuple(number for number in numbers if _may_be(self._names[number][0], item.record.source)):
                return level, numbers
        return 0, ()

    def _match(self, item: Item) -> int:
        level, numbers = self._matches(item)
        return level if any(self._best[number] == level for number in numbers) else 0


@dataclass(frozen=True)
class NameList:
    """What a list of images holds.

    Attributes:
        names: Source as the list spells it (nothing where it names none) and normalized name, each once.
        unread: The entries without a name, with their positions.
    """

    names: list[tuple[str, str]]
    unread: list[str]


def read_names(path: Path) -> NameList:
    """Reads a list of image names: JSON (a list, or an object by source or by image), JSON Lines, or one name a line.

    Args:
        path: The file. An entry is a name, several, or an object with them under "image", "image_id", "name" or the
            like; what is none costs itself alone.

    Raises:
        PallavaError: The file cannot be read, is an archive, or is damaged JSON.
    """
    if path.name.lower().endswith(_ARCHIVES):
        raise PallavaError(f"'{path}' is an archive; unpack it, and name the list of images in it")
    names: dict[tuple[str, str], None] = {}
    unread = []
    for source, position, value in _entries(path):
        for name in _names_in(value):
            if name:
                names[source, _normal(name)] = None
            elif isinstance(value, RowDropped):
                unread.append(str(value))
            else:
                unread.append(f"{position}: {json.dumps(value, ensure_ascii=False)[:_SHOWN]}")
    return NameList(list(names), unread)


def _entries(path: Path) -> Iterator[tuple[str, str, Any]]:
    head = _head(path)
    if head[:1] not in ("[", "{", '"'):
        yield from (("", position, line) for position, line in _lines(path))
        return
    table = _table(path) if head[:1] == "{" else None
    if table is not None:
        yield from _table_entries(table)
        return
    for row in json_rows(path, lambda num_bytes: None):
        yield ("", "", row) if isinstance(row, RowDropped) else ("", row.position, row.value)


def _head(path: Path) -> str:
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            return file.read(4096).lstrip()
    except OSError as error:
        raise PallavaError(f"cannot read the list '{path}': {error.strerror}") from None


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield f"line {number}", line.strip()


def _table(path: Path) -> dict[str, Any] | None:
    """Reads one object; None where the file holds an object a line."""
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _table_entries(table: dict[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Yields the entries of lists or objects by source, or of one object by image or by number."""
    if any(_names_in(table)):
        yield "", "the object", table
        return
    for key, value in table.items():
        if _ENDING.search(key):
            yield "", f"'{key}'", key
        elif isinstance(value, list):
            yield from ((key, f"'{key}', entry {number}", each) for number, each in enumerate(value, 1))
        elif isinstance(value, dict) and not any(_names_in(value)):
            for inner, each in value.items():
                yield key, f"'{key}', '{inner}'", inner if _ENDING.search(inner) else each
        else:
            yield "", f"'{key}'", value


def _names_in(value: Any) -> Iterator[str]:
    """Yields the names of an entry, and an empty one for each that is none."""
    if isinstance(value, dict):
        value = next((found for key in _KEYS if (found := value.get(key)) and isinstance(found, str | list)), None)
    for each in value if isinstance(value, list) and value else [value]:
        yield each.strip() if isinstance(each, str) else ""


def _normal(name: str) -> str:
    return posixpath.normpath(name.replace("\\", "/")).lstrip("/")


def _at_level(name: str, level: int) -> str:
    if level == 3:
        return name
    base = posixpath.basename(name)
    return base if level == 2 else _ENDING.sub("", base)


@cache
def _may_be(listed: str, source: str) -> bool:
    """Whether a source can be the one that the list names: PubMedVision_Alignment is pubmedvision and not quilt-1m.

    A source of plain pairs can be any, and so can what the list calls by a name that is none of ours.
    """
    known = [name for name in SOURCES if name not in _OWN and _is_alike(name, listed)]
    return not known or source.startswith(_OWN) or any(source.startswith(name) for name in known)


def _is_alike(name: str, listed: str) -> bool:
    name, listed = (re.sub(r"[^a-z0-9]", "", text.lower()) for text in (name, listed))
    return bool(listed) and (listed.startswith(name) or name.startswith(listed))
