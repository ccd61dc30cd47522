"""The list of images that PA-LLaVA published (PCaption-0.5M): every caption of an image on it is kept."""

import json
import posixpath
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from pallava.data.clean.filters import CAPTIONS, Candidate, Decision, Filter, Findings
from pallava.data.sources import SOURCES
from pallava.data.sources.files import RowDropped, json_rows
from pallava.errors import PallavaError
from pallava.io.files import report_os_errors
from pallava.io.texts import read_text

_KEYS = ("image", "image_path", "img", "image_id", "image_name", "file_name", "filename", "name", "path", "file", "id")
_ENDING = re.compile(r"\.(jpe?g|png|tiff?|webp|bmp|gif)$", re.IGNORECASE)
_ARCHIVES = (".gz", ".tgz", ".tar", ".zip", ".bz2", ".xz", ".7z")
_OWN = ("pairs", "csv")
_SHOWN = 80  # characters of an entry


class PublishedIndexFilter(Filter):
    """Keep the captions of listed images; a name is matched on the path, then the base name, then without ending.

    A weaker match counts only if the name and the image have no better one. That takes a survey of all candidates. A
    name that matches images of several sources keeps them all and is reported, not guessed.
    The entries of the list that hold no name are `unread`, with their positions.
    """

    name = "published-index"
    kinds = CAPTIONS
    needs_survey = True

    def __init__(self, path: str | Path) -> None:
        self.names, self.unread = _read_names(Path(path))
        if not self.names:
            first = f" ({self.unread[0]})" if self.unread else ""
            raise PallavaError(f"found no image name in the list '{path}'{first}; expected one a line, or JSON")
        self._by_level: dict[int, dict[str, tuple[int, ...]]] = {3: {}, 2: {}, 1: {}}
        for number, (_, name) in enumerate(self.names):
            for level, key in _spellings(name):
                numbers = self._by_level[level]
                numbers[key] = (*numbers.get(key, ()), number)
        self._best = bytearray(len(self.names))
        self._sources: dict[int, set[str]] = {}  # of the best matches

    def survey(self, candidate: Candidate) -> None:
        level, numbers = self._matches(candidate)
        for number in numbers:
            if level > self._best[number]:
                self._best[number], self._sources[number] = level, set()
            if level == self._best[number]:
                self._sources[number].add(candidate.record.source)

    def score(self, candidates: Sequence[Candidate]) -> list[Findings]:
        """Return how the image's name is matched: 3 by its path, 2 by its base name, 1 without its ending, 0 not."""
        matches = map(self._matches, candidates)
        return [{"match": level * any(self._best[each] == level for each in numbers)} for level, numbers in matches]

    def decide(self, candidate: Candidate, findings: Findings) -> Decision:
        return Decision("" if findings["match"] else "not_listed", findings["match"])

    def unmatched(self) -> list[str]:
        """Return the names that match nothing."""
        return [name for (_, name), level in zip(self.names, self._best, strict=True) if not level]

    def ambiguous(self) -> list[tuple[str, list[str]]]:
        """Return the names that match images of several sources, with these."""
        found = sorted((number, sorted(sources)) for number, sources in self._sources.items() if len(sources) > 1)
        return [(self.names[number][1], sources) for number, sources in found]

    def _matches(self, candidate: Candidate) -> tuple[int, Sequence[int]]:
        for level, key in _spellings(_normal(candidate.record.image)):
            numbers = self._by_level[level].get(key, ())
            if found := [each for each in numbers if _may_be(self.names[each][0], candidate.record.source)]:
                return level, found
        return 0, ()


def _read_names(path: Path) -> tuple[list[tuple[str, str]], list[str]]:
    """Read a list of image names: JSON (a list, or an object by source or by image), JSON Lines, or one name a line.

    An entry is a name, several, or an object with them under "image", "image_id" or the like. Return (source as the
    list spells it or nothing, normalized name), each once, and the entries without a name, with their positions.
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
    return list(names), unread


def _entries(path: Path) -> Iterator[tuple[str, str, Any]]:
    """Yield source, position and value of each entry."""
    with report_os_errors(f"cannot read the list '{path}'"), path.open("rb") as file:
        first = file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")[:1]  # with or without a byte order mark
    if first not in (b"[", b"{", b'"'):
        lines = enumerate(read_text(path, "the list").splitlines(), 1)
        yield from (("", f"line {number}", line.strip()) for number, line in lines if line.strip())
        return
    if first == b"{":
        with suppress(ValueError, RecursionError):  # an object a line
            yield from _table_entries(json.loads(read_text(path, "the list")))
            return
    for row in json_rows(path):
        yield ("", "", row) if isinstance(row, RowDropped) else ("", row.position, row.value)


def _table_entries(table: dict[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Yield the entries of lists or objects by source, or of one object by image or by number."""
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
    """Yield the names of an entry, and an empty one for each that is not a name."""
    if isinstance(value, dict):
        value = next((found for key in _KEYS if (found := value.get(key)) and isinstance(found, str | list)), None)
    for each in value if isinstance(value, list) and value else [value]:
        yield each.strip() if isinstance(each, str) else ""


def _normal(name: str) -> str:
    return posixpath.normpath(name.replace("\\", "/")).lstrip("/")


def _spellings(name: str) -> list[tuple[int, str]]:
    base = posixpath.basename(name)
    return [(3, name), (2, base), (1, _ENDING.sub("", base))]


@cache
def _may_be(listed: str, source: str) -> bool:
    """Return whether a source can be the one that the list names: PubMedVision_Alignment is pubmedvision.

    Data of the user's own can be any, and so can what the list calls by a name that is not one of ours.
    """
    spelled = re.sub(r"[^a-z0-9]", "", listed.lower())
    letters = {name: re.sub(r"[^a-z0-9]", "", name.lower()) for name in SOURCES if name not in _OWN and spelled}
    known = [name for name, own in letters.items() if spelled.startswith(own) or own.startswith(spelled)]
    return not known or source.startswith((*_OWN, *known))
