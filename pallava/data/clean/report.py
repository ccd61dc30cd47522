"""The report on a cleaning run: what each source lost to which filter, and pictures of what was kept and dropped.

Counts are tables for the terminal and for the page.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from textwrap import shorten
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
from pallava.report.table import Table, percent

_Row = dict[str, Any]  # a line of kept.jsonl or dropped.jsonl, or summary.json
_Group = tuple[str, str]  # ("kept", source), or (filter, reason)
_Counts = dict[str, Counter[float]]  # how often each value occurs among the "kept" and the "dropped"

_NUM_SHOWN = 12  # pictures of a kind
_THUMBNAIL = 192  # pixels of the longer side
_MAX_TEXT = 110  # characters of a caption
_DIGITS = 3  # of scores, so that a million different ones take no more memory than a thousand
_KEPT, _UNREAD = "kept", "unread"  # beside the filters' names
_KEPT_COLOUR, _UNREAD_COLOUR = "#2f8f83", "#8a8f98"
_FILTER_COLOURS = ("#d0628f", "#c98a2b", "#4c86c6", "#b0584a", "#9a6fb0", "#6c8f3c")
_HISTOGRAMS = {
    "words": ("Words of the captions", "words", "min_words"),
    "sides": ("Longer sides of the images", "pixels", ""),
    "duplicates": ("Duplicates: distance from the image that is kept", "bits of the hash", ""),
    "image": ("Background of the images", "share of the pixels", "max_background"),
    "pathology": ("Scores of the filter pathology", "score", "clip_threshold"),
}  # title, axis, and the setting that is the threshold


def describe(summary: _Row, out: str) -> str:
    """Return what each source lost to each filter, and why, as text that names the output folder."""
    parts = [_funnel_table(summary).to_text(), _reasons_table(summary).to_text()]
    if index := _index_sentence(summary):
        parts.append(f"published list in {out}: {index}")
    return "\n\n".join([*parts, f"{summary['num_kept']} of {summary['num_records']} records are kept, in {out}"])


def write_report(folder: Path) -> None:
    """Write ``index.html`` from the files of a run; the same files give the same page.

    Raises:
        PallavaError: A file cannot be read.
    """
    summary = json.loads((folder / SUMMARY_NAME).read_text(encoding="utf-8"))
    num_sources, num_kept, num_records = len(summary["sources"]), summary["num_kept"], summary["num_records"]
    figures = [
        (_number(num_records), f"records of {num_sources} {'source' if num_sources == 1 else 'sources'}"),
        (_number(num_kept), "kept"),
        (_share(num_kept, num_records), "of them"),
        (_number(summary["num_pairs"]), "pairs of image and caption"),
    ]
    collected, index = _collect(folder), _index_sentence(summary)
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
        html.figures(figures),
        html.heading("Where the records went", "Each filter sees what those to its left have kept."),
        html.share_bars(list(_shares(summary)), {_KEPT: _KEPT_COLOUR, **colours, _UNREAD: _UNREAD_COLOUR}),
        _funnel_table(summary).to_html(),
        html.heading("Reasons"),
        _reasons_table(summary).to_html(),
        Table("", ["Unread rows", "The first of them"], examples, is_text=True).to_html() if examples else "",
        html.heading("Published list of images", index) if index else "",
        html.heading("Distributions", "The last bar of each holds the highest hundredth, too."),
        html.grid(list(_histograms(collected, summary["settings"])), is_wide=True),
        *_sheets(collected, summary),
        html.heading("Settings"),
        Table("", ["Setting", "Value"], settings, is_text=True).to_html(),
    ]
    write_text(folder / "index.html", html.page("Cleaning report", parts), errors="replace")


def _shares(summary: _Row) -> Iterator[tuple[str, list[tuple[str, int]]]]:
    for label, drops in _drops(summary).items():
        source = summary["sources"][label]
        parts = [(name, sum(reasons.values())) for name, reasons in drops.items()]
        title = f"{label}: {_share(source['num_kept'], source['num_records'])} kept"
        yield title, [(_KEPT, source["num_kept"]), *parts[1:], parts[0]]  # what was not read is the end of the bar


def _number(count: int) -> str:
    return f"{count:,}".replace(",", "\u202f")  # a thin space, since a comma is a decimal sign to half of the world


def _share(count: int, total: int) -> str:
    return percent(count / total if total else float("nan"))


def _drops(summary: _Row) -> dict[str, dict[str, dict[str, int]]]:
    """Return the counts of drops by source, by filter (at first what was not read), and by reason."""
    return {
        label: {_UNREAD: source["unread"]} | {name: source["filters"][name]["dropped"] for name in summary["filters"]}
        for label, source in summary["sources"].items()
    }


def _funnel_table(summary: _Row) -> Table:
    counts = {
        label: [source["num_records"], *(sum(each.values()) for each in drops.values()), source["num_kept"]]
        for (label, drops), source in zip(_drops(summary).items(), summary["sources"].values(), strict=True)
    }
    if len(counts) > 1:
        counts["all"] = [sum(column) for column in zip(*counts.values(), strict=True)]
    rows = [[label, *map(_number, row), _share(row[-1], row[0])] for label, row in counts.items()]
    return Table("", ["source", "read", _UNREAD, *summary["filters"], "kept", "share"], rows)


def _reasons_table(summary: _Row) -> Table:
    drops, rows = _drops(summary), []
    for name in (_UNREAD, *summary["filters"]):
        for reason in sorted({reason for each in drops.values() for reason in each[name]}):
            counts = [each[name].get(reason, 0) for each in drops.values()]
            cells = [_number(count) if count else "" for count in counts]
            rows.append([f"{name}: {reason}", *cells, _number(sum(counts))])
    return Table("", ["reason", *drops, "all"], rows)


def _index_sentence(summary: _Row) -> str:
    if not (index := summary.get("published_index")):
        return ""
    return (
        f"{_number(index['num_names'])} names, {_number(index['num_unmatched'])} without a match, "
        f"{_number(index['num_in_several_sources'])} in several sources, {_number(index['num_without_name'])} entries "
        f"without a name; see {index['report']}"
    )


@dataclass
class _Collected:
    """Counts of captions' words, images' longer "sides" and scores by filter; samples of each group.

    `firsts` are the kept records that drawn duplicates name, by "source:id".
    """

    counts: dict[str, _Counts] = field(default_factory=lambda: defaultdict(lambda: defaultdict(Counter)))
    samples: dict[_Group, list[_Row]] = field(default_factory=lambda: defaultdict(list))
    firsts: dict[str, _Row] = field(default_factory=dict)

    def count(self, row: _Row, fate: str) -> None:
        values = {name: round(score, _DIGITS) for name, score in row["scores"].items()}
        if row["kind"] == "captions":
            values["words"] = len(row["text"].split())
        if "image_size" in row:
            values["sides"] = max(row["image_size"])
        for name, value in values.items():
            self.counts[name][fate][value] += 1

    def offer(self, row: _Row, group: _Group, seed: int) -> None:
        """Keep the rows of a group whose hashes are smallest: a draw that needs no count beforehand."""
        row["rank"] = short_hash(f"{seed}:{row['source']}:{row['id']}")
        rows = self.samples[group]
        rows.append(row)
        rows.sort(key=itemgetter("rank"))
        del rows[_NUM_SHOWN:]


def _collect(folder: Path, seed: int = 0) -> _Collected:
    """Read kept.jsonl and dropped.jsonl once, in little memory."""
    collected = _Collected()
    for row in _rows(folder / DROPPED):
        collected.count(row, "dropped")
        collected.offer(row, (row["filter"], row["reason"]), seed)
    wanted = {_first_of(row) for rows in collected.samples.values() for row in rows}
    for row in _rows(folder / KEPT):
        collected.count(row, _KEPT)
        collected.offer(row, (_KEPT, row["source"]), seed)
        if (name := f"{row['source']}:{row['id']}") in wanted:
            collected.firsts[name] = row
    return collected


def _first_of(row: _Row) -> str:
    """Return the record that a dropped duplicate repeats, as "source:id", or nothing."""
    return row.get("detail", "").partition(" (distance ")[0] if row.get("filter") == "duplicates" else ""


def _rows(path: Path) -> Iterator[_Row]:
    if not path.stat().st_size:
        return
    file = RecordFile(path)
    with tqdm(total=file.num_bytes, unit="B", unit_scale=True, desc="report", mininterval=1, disable=None) as bar:
        for record in file:
            yield record.value
            bar.update(file.num_bytes_read - bar.n)


def _histograms(collected: _Collected, settings: _Row) -> Iterator[str]:
    from pallava.report.plots import COLOURS, histogram  # imports matplotlib, which takes a second

    fates = {_KEPT: _KEPT_COLOUR, "dropped": COLOURS[1]}
    for name in [*_HISTOGRAMS, *sorted(collected.counts.keys() - _HISTOGRAMS.keys())]:
        if counts := collected.counts.get(name):
            title, x_label, threshold = _HISTOGRAMS.get(name, (f"Scores of the filter {name}", "score", ""))
            series = {fate: counts[fate] for fate in fates if fate in counts}
            colours, limit = [fates[fate] for fate in series], settings.get(threshold)
            yield html.card(title, histogram(series, x_label=x_label, threshold=limit, colours=colours))


def _sheets(collected: _Collected, summary: _Row) -> Iterator[str]:
    folder, kinds = Path(summary["image_folder"]), [_KEPT, *summary["filters"]]
    drops = _drops(summary).values()
    order = [*((_KEPT, label) for label in summary["sources"]), *sorted(collected.samples)]
    groups = sorted(collected.samples, key=lambda group: (kinds.index(group[0]), order.index(group)))
    for name, what in tqdm(groups, desc="thumbnails", disable=None):
        if name == _KEPT:
            title, count = f"Kept of {what}", summary["sources"][what]["num_kept"]
        else:
            title = f"Dropped by {name}: {what}"
            count = sum(each[name].get(what, 0) for each in drops)
        cells = [_cell(row, collected, folder) for row in collected.samples[name, what]]
        shown = f"{len(cells)} of {_number(count)}, drawn at random." if len(cells) < count else f"All {count}."
        yield html.heading(title, shown)
        yield html.contact_sheet(cells)


def _cell(row: _Row, collected: _Collected, folder: Path) -> html.Cell:
    images = [_thumbnail(folder, row)]
    if first := collected.firsts.get(_first_of(row)):
        images.append(_thumbnail(folder, first))
    score = "" if row.get("score") is None else f"score {row['score']:.3g}"
    text = row["text"] if row["kind"] == "captions" else f"{row.get('question', '')} – {row.get('answer', '')}"
    facts = [f"of {row['detail']}" if row.get("detail") else score, shorten(text, _MAX_TEXT, placeholder="…")]
    return html.Cell(images, f"{row['source']}:{row['id']}", " · ".join(fact for fact in facts if fact))


def _thumbnail(folder: Path, row: _Row) -> Image.Image | None:
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
