"""The report on a cleaning run: what each source lost to which filter, and pictures of what was kept and dropped."""

from __future__ import annotations

import heapq
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from pallava.data.clean.settings import DROPPED, KEPT
from pallava.data.material import SUMMARY_NAME
from pallava.images import ImageError, open_image
from pallava.io.files import write_text
from pallava.io.hashing import short_hash
from pallava.io.records import RecordFile
from pallava.report import page as html
from pallava.report.plots import COLOURS, histogram
from pallava.report.table import Table, percent

PAGE = "index.html"
Row = dict[str, Any]
"""A line of kept.jsonl or dropped.jsonl."""
Group = tuple[str, str]
"""("kept", source), or (filter, reason)."""
Counts = dict[str, Counter[float]]
"""How often each value occurs among the "kept" and the "dropped"."""

_NUM_SHOWN = 12  # pictures of a kind
_THUMBNAIL = 192  # pixels of the longer side
_MAX_TEXT = 110  # characters of a caption
_DIGITS = 3  # of scores, so that a million different ones take no more memory than a thousand
_KEPT, _UNREAD = "kept", "unread"
_UNREAD_COLOUR = "#8a8f98"
_FILTER_COLOURS = ("#d0628f", "#c98a2b", "#4c86c6", "#b0584a", "#9a6fb0", "#6c8f3c")
_KEPT_COLOUR = "#2f8f83"
_THRESHOLDS = {"words": "min_words", "image": "max_background", "pathology": "clip_threshold"}
_SCORES = {
    "image": ("Background of the images", "share of the pixels"),
    "duplicates": ("Duplicates: distance from the image that is kept", "bits of the hash"),
}
"""Title and axis of the filters whose score is not a judge's."""


def describe(summary: dict[str, Any], out: str) -> str:
    """Return what each source lost to each filter, and why, as text for the terminal.

    Args:
        summary: The content of ``summary.json``.
        out: The run's folder, as it is to be named.
    """
    parts = [_funnel(summary, str).to_text(), _reasons(summary, str).to_text()]
    if found := summary.get("published_index"):
        parts.append(
            f"published list: {found['num_names']} names, {found['num_unmatched']} without a match, "
            f"{found['num_in_several_sources']} in several sources, {found['num_without_name']} entries without a name "
            f"({out}/{found['report']})"
        )
    return "\n\n".join([*parts, f"{summary['num_kept']} of {summary['num_records']} records are kept, in {out}"])


def write_report(folder: str | Path, *, seed: int = 0) -> None:
    """Write ``index.html`` from what cleaning wrote; the same files give the same page.

    Args:
        folder: The run's folder.
        seed: Seed of the draw of records for the contact sheets.

    Raises:
        PallavaError: A file cannot be read.
    """
    folder = Path(folder)
    summary = json.loads((folder / SUMMARY_NAME).read_text(encoding="utf-8"))
    collected = collect(folder, num_shown=_NUM_SHOWN, seed=seed)
    settings = Table("", ["Setting", "Value"], list(_settings(summary["settings"])), is_text=True)
    parts = [
        html.heading("What cleaning kept, and what it dropped", level=1),
        _figures(summary),
        html.heading("Where the records went", "Each filter sees what those to its left have kept."),
        html.share_bars(_shares(summary), _colours(summary)),
        _funnel(summary, _number).to_html(),
        html.heading("Reasons"),
        _reasons(summary, _number).to_html(),
        *_unread_examples(summary),
        *_published_index(summary),
        html.heading("Distributions", "The last bar of each holds the highest hundredth, too."),
        html.grid(list(_histograms(collected, summary["settings"])), is_wide=True),
        *_sheets(collected, summary),
        html.heading("Settings"),
        settings.to_html(),
    ]
    write_text(folder / PAGE, html.page("Cleaning report", parts), errors="replace")


def _number(count: int) -> str:
    return f"{count:,}".replace(",", "\u202f")  # a thin space, since a comma is a decimal sign to half of the world


def _share(count: int, total: int) -> str:
    return percent(count / total if total else float("nan"))


def _dropped(summary: Row, label: str, name: str) -> dict[str, int]:
    """Return the counts of drops by reason, of one source and one filter or of what was not read."""
    source = summary["sources"][label]
    return source["unread"] if name == _UNREAD else source["filters"][name]["dropped"]


def _funnel(summary: Row, number: Callable[[int], str]) -> Table:
    names = [_UNREAD, *summary["filters"]]
    counts = {
        label: [
            source["num_records"],
            *(sum(_dropped(summary, label, name).values()) for name in names),
            source["num_kept"],
        ]
        for label, source in summary["sources"].items()
    }
    if len(counts) > 1:
        counts["all"] = [sum(column) for column in zip(*counts.values(), strict=True)]
    rows = [[label, *map(number, row), _share(row[-1], row[0])] for label, row in counts.items()]
    return Table("", ["source", "read", *names, "kept", "share"], rows)


def _reasons(summary: Row, number: Callable[[int], str]) -> Table:
    labels, rows = list(summary["sources"]), []
    for name in (_UNREAD, *summary["filters"]):
        for reason in sorted({reason for label in labels for reason in _dropped(summary, label, name)}):
            counts = [_dropped(summary, label, name).get(reason, 0) for label in labels]
            rows.append(
                [f"{name}: {reason}", *(number(count) if count else "" for count in counts), number(sum(counts))]
            )
    return Table("", ["reason", *labels, "all"], rows)


def _figures(summary: Row) -> str:
    num_sources = len(summary["sources"])
    values = [
        (_number(summary["num_records"]), f"records of {num_sources} {'source' if num_sources == 1 else 'sources'}"),
        (_number(summary["num_kept"]), "kept"),
        (_share(summary["num_kept"], summary["num_records"]), "of them"),
        (_number(summary["num_pairs"]), "pairs of image and caption"),
    ]
    return html.figures(values)


def _colours(summary: Row) -> dict[str, str]:
    filters = dict(zip(summary["filters"], _FILTER_COLOURS * len(summary["filters"]), strict=False))
    return {_KEPT: _KEPT_COLOUR, **filters, _UNREAD: _UNREAD_COLOUR}


def _shares(summary: Row) -> list[tuple[str, list[tuple[str, int]]]]:
    rows = []
    for label, source in summary["sources"].items():
        names = [*summary["filters"], _UNREAD]
        parts = [(_KEPT, source["num_kept"]), *((name, sum(_dropped(summary, label, name).values())) for name in names)]
        rows.append((f"{label}: {_share(source['num_kept'], source['num_records'])} kept", parts))
    return rows


def _unread_examples(summary: Row) -> Iterator[str]:
    rows = [
        [f"{label}: {reason}", "; ".join(examples)]
        for label, source in summary["sources"].items()
        for reason, examples in source["unread_examples"].items()
    ]
    if rows:
        yield Table("", ["Unread rows", "The first of them"], rows, is_text=True).to_html()


def _published_index(summary: Row) -> Iterator[str]:
    if index := summary.get("published_index"):
        yield html.heading("Published list of images", f"The names are in {index['report']}.")
        yield html.figures(
            [
                (_number(index["num_names"]), "names on the list"),
                (_number(index["num_unmatched"]), "without a match"),
                (_number(index["num_in_several_sources"]), "in several sources"),
                (_number(index["num_without_name"]), "entries without a name"),
            ]
        )


def _settings(settings: Row) -> Iterator[list[str]]:
    for name, value in settings.items():
        if value is not None and name != "roots":
            yield [name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)]


# Records of the run ---------------------------------------------------------------------------------------------------


@dataclass
class Collected:
    """Counts and samples of a run's records.

    Attributes:
        words: Words of the captions.
        sides: Longer sides of the images in pixels.
        scores: Scores of each filter that has some.
        samples: A few records of each group, in the order of the draw.
        firsts: The kept records that drawn duplicates name, by "source:id".
    """

    words: Counts = field(default_factory=lambda: defaultdict(Counter))
    sides: Counts = field(default_factory=lambda: defaultdict(Counter))
    scores: dict[str, Counts] = field(default_factory=lambda: defaultdict(lambda: defaultdict(Counter)))
    samples: dict[Group, list[Row]] = field(default_factory=dict)
    firsts: dict[str, Row] = field(default_factory=dict)


def collect(folder: Path, *, num_shown: int, seed: int) -> Collected:
    """Read kept.jsonl and dropped.jsonl once, in little memory.

    Args:
        folder: The run's folder.
        num_shown: Number of records to draw from each group.
        seed: Seed of the draw.

    Raises:
        PallavaError: A file cannot be read.
    """
    collected, draw = Collected(), _Draw(num_shown, seed)
    for row in _rows(folder / DROPPED):
        _count(row, "dropped", collected)
        draw.offer((row["filter"], row["reason"]), row)
    collected.samples = draw.drawn()
    wanted = {name for rows in collected.samples.values() for row in rows if (name := _first_of(row))}
    draw = _Draw(num_shown, seed)
    for row in _rows(folder / KEPT):
        _count(row, "kept", collected)
        draw.offer((_KEPT, row["source"]), row)
        if (name := f"{row['source']}:{row['id']}") in wanted:
            collected.firsts[name] = row
    collected.samples = draw.drawn() | collected.samples
    return collected


def _first_of(row: Row) -> str:
    """Return the record that a dropped duplicate repeats, as "source:id", or nothing."""
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
        rank = -int.from_bytes(short_hash(f"{self._seed}:{row['source']}:{row['id']}"), "big")
        self._num_offered += 1
        heap, entry = self._heaps[group], (rank, self._num_offered, row)  # rows themselves cannot be compared
        if len(heap) < self._num_shown:
            heapq.heappush(heap, entry)
        elif rank > heap[0][0]:
            heapq.heapreplace(heap, entry)

    def drawn(self) -> dict[Group, list[Row]]:
        return {group: [row for *_, row in sorted(heap, reverse=True)] for group, heap in sorted(self._heaps.items())}


# Plots and pictures ---------------------------------------------------------------------------------------------------


def _histograms(collected: Collected, settings: Row) -> Iterator[str]:
    def card(title: str, counts: Counts, x_label: str, threshold: Any = None) -> str:
        series = {fate: counts[fate] for fate in ("kept", "dropped") if counts.get(fate)}
        number = threshold if isinstance(threshold, int | float) else None
        colours = {"kept": _KEPT_COLOUR, "dropped": COLOURS[1]}
        plot = histogram(series, x_label=x_label, threshold=number, colours=[colours[fate] for fate in series])
        return html.card(title, plot)

    if collected.words:
        yield card("Words of the captions", collected.words, "words", settings.get("min_words"))
    if collected.sides:
        yield card("Longer sides of the images", collected.sides, "pixels")
    for name, counts in sorted(collected.scores.items()):
        if name != "words":  # shown above
            title, x_label = _SCORES.get(name, (f"Scores of the filter {name}", "score"))
            yield card(title, counts, x_label, settings.get(_THRESHOLDS.get(name, "")))


def _sheets(collected: Collected, summary: Row) -> Iterator[str]:
    folder = Path(summary["image_folder"])
    order = [*((_KEPT, label) for label in summary["sources"]), *sorted(collected.samples)]
    groups = sorted(
        collected.samples,
        key=lambda group: ([_KEPT, *summary["filters"]].index(group[0]), order.index(group)),
    )
    for name, what in tqdm(groups, desc="thumbnails", disable=None):
        title = f"Kept of {what}" if name == _KEPT else f"Dropped by {name}: {what}"
        if name == _KEPT:
            count = summary["sources"][what]["num_kept"]
        else:
            count = sum(_dropped(summary, label, name).get(what, 0) for label in summary["sources"])
        cells = [_cell(row, collected, folder) for row in collected.samples[name, what]]
        shown = f"{len(cells)} of {_number(count)}, drawn at random." if len(cells) < count else f"All {count}."
        yield html.heading(title, shown)
        yield html.contact_sheet(cells)


def _cell(row: Row, collected: Collected, folder: Path) -> html.Cell:
    images = [_thumbnail(folder, row)]
    if first := collected.firsts.get(_first_of(row)):
        images.append(_thumbnail(folder, first))
    score = "" if row.get("score") is None else f"score {row['score']:.3g}"
    facts = [f"of {row['detail']}" if row.get("detail") else score, _text(row)]
    return html.Cell(images, f"{row['source']}:{row['id']}", " · ".join(fact for fact in facts if fact))


def _text(row: Row) -> str:
    text = row["text"] if row["kind"] == "captions" else f"{row.get('question', '')} – {row.get('answer', '')}"
    text = " ".join(text.split())
    return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}…"


def _thumbnail(folder: Path, row: Row) -> Image.Image | None:
    """Return the image made small, or None if it cannot be opened or is a link that leaves the image folder."""
    path = (folder / row["path"]).resolve()
    if row.get("reason") == "missing" or not path.is_relative_to(folder.resolve()):
        return None
    try:
        image = open_image(path)
    except ImageError:
        return None
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    return image
