"""The report on a cleaning run: what each source lost to which filter, and pictures of what was kept and dropped.

Counts are tables for the terminal and for the page.
"""

import json
from bisect import insort
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import cycle
from operator import itemgetter
from pathlib import Path
from textwrap import shorten
from typing import Any

from PIL import Image
from tqdm import tqdm

from pallava.data.clean.settings import DROPPED, KEPT
from pallava.data.material import SUMMARY_NAME
from pallava.images import ImageError, open_image
from pallava.io.files import read_package_data, write_text
from pallava.io.hashing import short_hash
from pallava.io.records import RecordFile
from pallava.report.page import render_page
from pallava.report.table import Table, number, share

_Row = dict[str, Any]  # a line of kept.jsonl or dropped.jsonl, or summary.json
_Counts = dict[str, dict[str, Counter[float]]]  # by the name of a value and by fate, "kept" or "dropped"
_Samples = dict[tuple[str, str], list[_Row]]  # by ("kept", source), or (filter, reason)

_NUM_SHOWN = 12  # pictures of a kind
_THUMBNAIL = 192  # pixels of the longer side
_MAX_TEXT = 110  # characters of a caption
_DIGITS = 3  # of scores, so that a million different ones take no more memory than a thousand
_KEPT, _UNREAD = "kept", "unread"  # beside the filters' names
_KEPT_COLOUR, _UNREAD_COLOUR = "#2f8f83", "#8a8f98"
_FILTER_COLOURS = ("#d0628f", "#c98a2b", "#4c86c6", "#b0584a", "#9a6fb0", "#6c8f3c")
_HISTOGRAMS: dict[str, list[str]] = read_package_data(__file__)


def describe(summary: _Row, out: str) -> str:
    """Return what each source lost to each filter, and why, as text that names the output folder."""
    parts = [_funnel_table(summary).to_text(), _reasons_table(summary).to_text()]
    for source in summary["sources"].values():
        parts += [f"unread as {reason}: {first}" for reason, (first, *_) in source["unread_examples"].items()]
    if index := _index_sentence(summary):
        parts.append(f"published list in {out}: {index}")
    return "\n\n".join([*parts, f"{summary['num_kept']} of {summary['num_records']} records are kept, in {out}"])


def write_report(folder: Path) -> None:
    """Write ``index.html`` from the files of a run, which always give the same page.

    Raises:
        PallavaError: A file cannot be read.
    """
    summary = json.loads((folder / SUMMARY_NAME).read_text(encoding="utf-8"))
    counts, samples, firsts = _collect(folder)
    settings = {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in summary["settings"].items()
        if value is not None and name != "roots"
    }
    text = render_page(
        "data/clean/report.html.jinja",
        summary=summary,
        colours={_KEPT: _KEPT_COLOUR, **dict(zip(summary["filters"], cycle(_FILTER_COLOURS))), _UNREAD: _UNREAD_COLOUR},
        funnel=_funnel(summary),
        funnel_table=_funnel_table(summary),
        reasons=_reasons_table(summary),
        index=_index_sentence(summary),
        histograms=_histograms(counts, summary["settings"]),
        sheets=_sheets(samples, firsts, summary),
        settings=settings,
    )
    write_text(folder / "index.html", text, errors="replace")


def _drops(summary: _Row) -> dict[str, dict[str, dict[str, int]]]:
    """Return the counts of drops by source, by filter (at first what was not read), and by reason."""
    return {
        label: {_UNREAD: source["unread"]} | {name: source["filters"][name]["dropped"] for name in summary["filters"]}
        for label, source in summary["sources"].items()
    }


def _funnel(summary: _Row) -> dict[str, dict[str, int]]:
    """Return for each source how many records were read, dropped by each filter, and kept."""
    funnel = {}
    for label, drops in _drops(summary).items():
        source, lost = summary["sources"][label], {name: sum(reasons.values()) for name, reasons in drops.items()}
        funnel[label] = {"read": source["num_records"], **lost, _KEPT: source["num_kept"]}
    return funnel


def _funnel_table(summary: _Row) -> Table:
    counts = {label: list(row.values()) for label, row in _funnel(summary).items()}
    if len(counts) > 1:
        counts["all"] = [sum(column) for column in zip(*counts.values(), strict=True)]
    rows = [[label, *map(number, row), share(row[-1], row[0])] for label, row in counts.items()]
    return Table("", ["source", "read", _UNREAD, *summary["filters"], _KEPT, "share"], rows)


def _reasons_table(summary: _Row) -> Table:
    drops, rows = _drops(summary), []
    for name in (_UNREAD, *summary["filters"]):
        for reason in sorted({reason for each in drops.values() for reason in each[name]}):
            counts = [each[name].get(reason, 0) for each in drops.values()]
            cells = [number(count) if count else "" for count in counts]
            rows.append([f"{name}: {reason}", *cells, number(sum(counts))])
    return Table("", ["reason", *drops, "all"], rows)


def _index_sentence(summary: _Row) -> str:
    if not (index := summary.get("published_index")):
        return ""
    return (
        f"{number(index['num_names'])} names, {number(index['num_unmatched'])} without a match, "
        f"{number(index['num_in_several_sources'])} in several sources, {number(index['num_without_name'])} entries "
        f"without a name; see {index['report']}"
    )


def _collect(folder: Path, seed: int = 0) -> tuple[_Counts, _Samples, dict[str, _Row]]:
    """Read dropped.jsonl and kept.jsonl once, in little memory.

    Returns:
        How often each value occurs, by its name and fate; a draw of each group; and the kept records that drawn
        duplicates repeat, by "source:id".
    """
    counts: _Counts = defaultdict(lambda: defaultdict(Counter))
    samples: _Samples = defaultdict(list)
    firsts: dict[str, _Row] = {}
    for file, fate in ((DROPPED, "dropped"), (KEPT, _KEPT)):
        wanted = {_first_of(row) for rows in samples.values() for row in rows}
        for row in _rows(folder / file):
            for name, value in _values(row).items():
                counts[name][fate][value] += 1
            group = (_KEPT, row["source"]) if fate == _KEPT else (row["filter"], row["reason"])
            row["rank"] = short_hash(f"{seed}:{_name(row)}")
            insort(samples[group], row, key=itemgetter("rank"))
            del samples[group][_NUM_SHOWN:]  # the smallest hashes: a draw that needs no count beforehand
            if fate == _KEPT and _name(row) in wanted:
                firsts[_name(row)] = row
    return counts, samples, firsts


def _values(row: _Row) -> dict[str, float]:
    """Return scores by filter, "words" of a caption and the longer of an image's "sides"."""
    values = {name: round(score, _DIGITS) for name, score in row["scores"].items()}
    if row["kind"] == "captions":
        values["words"] = len(row["text"].split())
    if "image_size" in row:
        values["sides"] = max(row["image_size"])
    return values


def _name(row: _Row) -> str:
    return f"{row['source']}:{row['id']}"


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


def _histograms(counts: _Counts, settings: _Row) -> Iterator[tuple[str, str]]:
    from pallava.report.plots import COLOURS, histogram  # imports matplotlib, which takes a second

    fates = {_KEPT: _KEPT_COLOUR, "dropped": COLOURS[1]}
    for name in [*(name for name in _HISTOGRAMS if name in counts), *sorted(counts.keys() - _HISTOGRAMS.keys())]:
        title, x_label, threshold = _HISTOGRAMS.get(name, [f"Scores of the filter {name}", "score", ""])
        series = {fate: counts[name][fate] for fate in fates if fate in counts[name]}
        colours = [fates[fate] for fate in series]
        yield title, histogram(series, x_label=x_label, threshold=settings.get(threshold), colours=colours)


def _sheets(samples: _Samples, firsts: dict[str, _Row], summary: _Row) -> Iterator[dict[str, Any]]:
    """Yield contact sheets: those of each source's kept records, then those of each filter's reasons."""
    folder, drops = Path(summary["image_folder"]), _drops(summary).values()
    groups = [(_KEPT, label) for label in summary["sources"] if (_KEPT, label) in samples]
    groups += [group for name in summary["filters"] for group in sorted(samples) if group[0] == name]
    for name, what in tqdm(groups, desc="thumbnails", disable=None):
        if name == _KEPT:
            title, count = f"Kept of {what}", summary["sources"][what]["num_kept"]
        else:
            title, count = f"Dropped by {name}: {what}", sum(each[name].get(what, 0) for each in drops)
        yield {"title": title, "count": count, "cells": [_cell(row, firsts, folder) for row in samples[name, what]]}


def _cell(row: _Row, firsts: dict[str, _Row], folder: Path) -> dict[str, Any]:
    rows = [row, firsts[first]] if (first := _first_of(row)) in firsts else [row]
    text = row["text"] if row["kind"] == "captions" else f"{row.get('question', '')} – {row.get('answer', '')}"
    images = [_thumbnail(folder, each) for each in rows]
    return {"row": row, "images": images, "text": shorten(text, _MAX_TEXT, placeholder="…")}


def _thumbnail(folder: Path, row: _Row) -> Image.Image | None:
    """Return the image made small, or None if it cannot be opened, or could not when it was judged."""
    if row.get("reason") == "missing":
        return None
    try:
        image = open_image(folder / row["path"])
    except ImageError:
        return None
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    return image
