"""The report on a cleaning run: what each source lost to which filter, and pictures of what was kept and dropped."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import shorten
from typing import Any

from PIL import Image
from tqdm import tqdm

from pallava.data.clean.settings import DROPPED, KEPT
from pallava.data.clean.tables import (
    UNREAD,
    dropped,
    funnel_table,
    index_sentence,
    losses,
    number,
    reasons_table,
    share,
)
from pallava.data.material import SUMMARY_NAME
from pallava.images import ImageError, open_image
from pallava.io.files import write_text
from pallava.io.hashing import short_hash
from pallava.io.records import RecordFile
from pallava.report import page as html
from pallava.report.plots import COLOURS, histogram
from pallava.report.table import Table

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
_KEPT = "kept"
_UNREAD_COLOUR = "#8a8f98"
_FILTER_COLOURS = ("#d0628f", "#c98a2b", "#4c86c6", "#b0584a", "#9a6fb0", "#6c8f3c")
_COLOURS = {_KEPT: "#2f8f83", "dropped": COLOURS[1]}
_THRESHOLDS = {"words": "min_words", "image": "max_background", "pathology": "clip_threshold"}
_SCORES = {
    "image": ("Background of the images", "share of the pixels"),
    "duplicates": ("Duplicates: distance from the image that is kept", "bits of the hash"),
}
"""Title and axis of the filters whose score is not a judge's."""


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
    collected, index = collect(folder, num_shown=_NUM_SHOWN, seed=seed), index_sentence(summary)
    examples = [
        [f"{label}: {reason}", "; ".join(examples)]
        for label, source in summary["sources"].items()
        for reason, examples in source["unread_examples"].items()
    ]
    settings = [
        [name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)]
        for name, value in summary["settings"].items()
        if value is not None and name != "roots"
    ]
    colours = dict(zip(summary["filters"], _FILTER_COLOURS * len(summary["filters"]), strict=False))
    parts = [
        html.heading("What cleaning kept, and what it dropped", level=1),
        _figures(summary),
        html.heading("Where the records went", "Each filter sees what those to its left have kept."),
        html.share_bars(list(_shares(summary)), {_KEPT: _COLOURS[_KEPT], **colours, UNREAD: _UNREAD_COLOUR}),
        funnel_table(summary).to_html(),
        html.heading("Reasons"),
        reasons_table(summary).to_html(),
        Table("", ["Unread rows", "The first of them"], examples, is_text=True).to_html() if examples else "",
        html.heading("Published list of images", index) if index else "",
        html.heading("Distributions", "The last bar of each holds the highest hundredth, too."),
        html.grid(list(_histograms(collected, summary["settings"])), is_wide=True),
        *_sheets(collected, summary),
        html.heading("Settings"),
        Table("", ["Setting", "Value"], settings, is_text=True).to_html(),
    ]
    write_text(folder / "index.html", html.page("Cleaning report", parts), errors="replace")


def _figures(summary: Row) -> str:
    num_sources, num_kept, num_records = len(summary["sources"]), summary["num_kept"], summary["num_records"]
    values = [
        (number(num_records), f"records of {num_sources} {'source' if num_sources == 1 else 'sources'}"),
        (number(num_kept), "kept"),
        (share(num_kept, num_records), "of them"),
        (number(summary["num_pairs"]), "pairs of image and caption"),
    ]
    return html.figures(values)


def _shares(summary: Row) -> Iterator[tuple[str, list[tuple[str, int]]]]:
    for label, source in summary["sources"].items():
        parts = losses(summary, label)
        parts[UNREAD] = parts.pop(UNREAD)  # at the end of the bar
        title = f"{label}: {share(source['num_kept'], source['num_records'])} kept"
        yield title, [(_KEPT, source["num_kept"]), *parts.items()]


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
        self._ranked: dict[Group, list[tuple[bytes, Row]]] = defaultdict(list)

    def offer(self, group: Group, row: Row) -> None:
        ranked = self._ranked[group]
        ranked.append((short_hash(f"{self._seed}:{row['source']}:{row['id']}"), row))
        ranked.sort(key=lambda pair: pair[0])
        del ranked[self._num_shown :]

    def drawn(self) -> dict[Group, list[Row]]:
        return {group: [row for _, row in ranked] for group, ranked in sorted(self._ranked.items())}


def _histograms(collected: Collected, settings: Row) -> Iterator[str]:
    def card(title: str, counts: Counts, x_label: str, threshold: float | None = None) -> str:
        series = {fate: counts[fate] for fate in _COLOURS if counts.get(fate)}
        colours = [_COLOURS[fate] for fate in series]
        return html.card(title, histogram(series, x_label=x_label, threshold=threshold, colours=colours))

    if collected.words:
        yield card("Words of the captions", collected.words, "words", settings.get("min_words"))
    if collected.sides:
        yield card("Longer sides of the images", collected.sides, "pixels")
    for name, counts in sorted(collected.scores.items()):
        if name != "words":  # shown above
            title, x_label = _SCORES.get(name, (f"Scores of the filter {name}", "score"))
            yield card(title, counts, x_label, settings.get(_THRESHOLDS.get(name, "")))


def _sheets(collected: Collected, summary: Row) -> Iterator[str]:
    folder, kinds = Path(summary["image_folder"]), [_KEPT, *summary["filters"]]
    labels = list(summary["sources"])
    order = [*((_KEPT, label) for label in labels), *sorted(collected.samples)]
    groups = sorted(collected.samples, key=lambda group: (kinds.index(group[0]), order.index(group)))
    for name, what in tqdm(groups, desc="thumbnails", disable=None):
        if name == _KEPT:
            title, count = f"Kept of {what}", summary["sources"][what]["num_kept"]
        else:
            title = f"Dropped by {name}: {what}"
            count = sum(dropped(summary, label, name).get(what, 0) for label in labels)
        cells = [_cell(row, collected, folder) for row in collected.samples[name, what]]
        shown = f"{len(cells)} of {number(count)}, drawn at random." if len(cells) < count else f"All {count}."
        yield html.heading(title, shown)
        yield html.contact_sheet(cells)


def _cell(row: Row, collected: Collected, folder: Path) -> html.Cell:
    images = [_thumbnail(folder, row)]
    if first := collected.firsts.get(_first_of(row)):
        images.append(_thumbnail(folder, first))
    score = "" if row.get("score") is None else f"score {row['score']:.3g}"
    text = row["text"] if row["kind"] == "captions" else f"{row.get('question', '')} – {row.get('answer', '')}"
    facts = [f"of {row['detail']}" if row.get("detail") else score, shorten(text, _MAX_TEXT, placeholder="…")]
    return html.Cell(images, f"{row['source']}:{row['id']}", " · ".join(fact for fact in facts if fact))


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
