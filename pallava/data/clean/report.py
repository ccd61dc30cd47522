"""The page about a cleaning run: what each source lost to which filter, and pictures of what was kept and dropped."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from pallava.data.clean.outputs import SUMMARY
from pallava.data.clean.report_data import Collected, Counts, Group, Row, collect, first_of
from pallava.images import ImageError, open_image
from pallava.report import page as html
from pallava.report.plots import COLOURS, histogram
from pallava.report.tables import percent, table

PAGE = "index.html"

_NUM_SHOWN = 12  # pictures of a kind
_THUMBNAIL = 192  # pixels of the longer side
_MAX_TEXT = 110  # characters of a caption
_KEPT, _UNREAD = "kept", "not read"
_UNREAD_COLOUR = "#8a8f98"
_FILTER_COLOURS = ("#d0628f", "#c98a2b", "#4c86c6", "#b0584a", "#9a6fb0", "#6c8f3c")
_KEPT_COLOUR = "#2f8f83"
_THRESHOLDS = {"words": "min_words", "image": "max_background", "pathology": "clip_threshold"}
_SCORES = {
    "image": ("Background of the images", "share of the pixels"),
    "duplicates": ("Duplicates: distance from the image that is kept", "bits of the hash"),
}
"""Title and axis of the filters whose score is not a judge's."""


def write_report(folder: str | Path, *, seed: int = 0) -> None:
    """Writes ``index.html`` from what cleaning wrote; the same files give the same page.

    Args:
        folder: Of the run.
        seed: Of the records that are drawn for the contact sheets.

    Raises:
        PallavaError: A file cannot be read.
    """
    folder = Path(folder)
    summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    collected = collect(folder, num_shown=_NUM_SHOWN, seed=seed)
    parts = [
        html.heading("What cleaning kept, and what it dropped", level=1),
        _figures(summary),
        html.heading("Where the records went", "Each filter sees what those to its left have kept."),
        html.share_bars(_shares(summary), _colours(summary)),
        _funnel(summary),
        html.heading("Reasons"),
        _reasons(summary),
        *_published_index(summary),
        html.heading("Distributions", "The last bar of each holds the highest hundredth, too."),
        html.grid(list(_histograms(collected, summary["settings"])), is_wide=True),
        *_sheets(collected, summary),
        html.heading("Settings"),
        table(["Setting", "Value"], list(_settings(summary["settings"])), is_text=True),
    ]
    unfinished = folder / f".{PAGE}.unfinished"
    unfinished.write_text(html.page("Cleaning report", parts), encoding="utf-8", errors="replace")
    unfinished.replace(folder / PAGE)


def _number(count: int) -> str:
    return f"{count:,}".replace(",", "\u202f")  # a thin space, since a comma is a decimal sign to half of the world


def _share(count: int, total: int) -> str:
    return percent(count / total) if total else "–"


def _figures(summary: Row) -> str:
    sources = summary["sources"].values()
    values = [
        (_number(summary["num_records"]), f"records of {len(sources)} {'source' if len(sources) == 1 else 'sources'}"),
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
        dropped = [(name, sum(source["filters"][name]["dropped"].values())) for name in summary["filters"]]
        parts = [(_KEPT, source["num_kept"]), *dropped, (_UNREAD, sum(source["unread"].values()))]
        rows.append((f"{label}: {_share(source['num_kept'], source['num_records'])} kept", parts))
    return rows


def _funnel(summary: Row) -> str:
    rows = []
    for label, source in summary["sources"].items():
        dropped = [sum(source["filters"][name]["dropped"].values()) for name in summary["filters"]]
        counts = [sum(source["unread"].values()), *dropped]
        rows.append([source["num_records"], *(-count for count in counts), source["num_kept"]])
        rows[-1].insert(0, label)
    if len(rows) > 1:
        rows.append(["all", *(sum(row[column] for row in rows) for column in range(1, len(rows[0])))])
    header = ["Source", "Records", _UNREAD, *summary["filters"], "Kept", "Share"]
    cells = [[str(row[0]), *map(_signed, row[1:]), _share(row[-1], row[1])] for row in rows]
    return table(header, cells)


def _signed(count: int) -> str:
    return f"−{_number(-count)}" if count < 0 else _number(count)


def _reasons(summary: Row) -> str:
    counts: dict[tuple[str, str], dict[str, int]] = {}
    for label, source in summary["sources"].items():
        for reason, count in source["unread"].items():
            counts.setdefault((_UNREAD, reason), {})[label] = count
        for name in summary["filters"]:
            for reason, count in source["filters"][name]["dropped"].items():
                counts.setdefault((name, reason), {})[label] = count
    order = [_UNREAD, *summary["filters"]]
    labels = list(summary["sources"])
    rows = [
        [
            f"{name}: {reason}",
            *(_number(of[label]) if label in of else "" for label in labels),
            _number(sum(of.values())),
        ]
        for (name, reason), of in sorted(counts.items(), key=lambda item: (order.index(item[0][0]), item[0][1]))
    ]
    return table(["Reason", *labels, "All"], rows) + _unread_examples(summary)


def _unread_examples(summary: Row) -> str:
    rows = [
        [f"{label}: {reason}", "; ".join(examples)]
        for label, source in summary["sources"].items()
        for reason, examples in source["unread_examples"].items()
    ]
    return table(["Rows not read", "The first of them"], rows, is_text=True) if rows else ""


def _published_index(summary: Row) -> Iterator[str]:
    if index := summary.get("published_index"):
        yield html.heading("Published list of images", f"The names are in {index['report']}.")
        yield html.figures(
            [
                (_number(index["num_names"]), "names on the list"),
                (_number(index["num_unmatched"]), "matched nothing"),
                (_number(index["num_in_several_sources"]), "matched several sources"),
                (_number(index["num_without_name"]), "entries without a name"),
            ]
        )


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
            threshold = settings.get(_THRESHOLDS.get(name, ""))
            title, x_label = _SCORES.get(name, (f"Scores of the filter {name}", "score"))
            yield card(title, counts, x_label, threshold)


def _sheets(collected: Collected, summary: Row) -> Iterator[str]:
    folder = Path(summary["image_folder"])
    groups = sorted(collected.samples, key=lambda group: _rank(group, summary))
    for group in tqdm(groups, desc="thumbnails", disable=None):
        name, what = group
        title = f"Kept of {what}" if name == _KEPT else f"Dropped by {name}: {what}"
        count = _count_of(group, summary)
        cells = [_cell(row, collected, folder) for row in collected.samples[group]]
        shown = f"{len(cells)} of {_number(count)}, drawn at random." if len(cells) < count else f"All {count}."
        yield html.heading(title, shown)
        yield html.contact_sheet(cells)


def _rank(group: Group, summary: Row) -> tuple[int, int, str]:
    name, what = group
    if name == _KEPT:
        return 0, list(summary["sources"]).index(what), what
    return 1, summary["filters"].index(name), what


def _count_of(group: Group, summary: Row) -> int:
    name, what = group
    if name == _KEPT:
        return summary["sources"][what]["num_kept"]
    return sum(source["filters"][name]["dropped"].get(what, 0) for source in summary["sources"].values())


def _cell(row: Row, collected: Collected, folder: Path) -> html.Cell:
    images = [_thumbnail(folder, row)]
    if first := collected.firsts.get(first_of(row)):
        images.append(_thumbnail(folder, first))
    facts = [_why(row), _text(row)]
    return html.Cell(images, f"{row['source']}:{row['id']}", " · ".join(fact for fact in facts if fact))


def _why(row: Row) -> str:
    if row.get("detail"):
        return f"of {row['detail']}"
    return "" if row.get("score") is None else f"score {row['score']:.3g}"


def _text(row: Row) -> str:
    text = row["text"] if row["kind"] == "captions" else f"{row.get('question', '')} – {row.get('answer', '')}"
    text = " ".join(text.split())
    return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}…"


def _thumbnail(folder: Path, row: Row) -> Image.Image | None:
    """The image made small; nothing where it cannot be opened, or is a link that leaves the image folder."""
    path = (folder / row["path"]).resolve()
    if row.get("reason") == "missing" or not path.is_relative_to(folder.resolve()):
        return None
    try:
        image = open_image(path)
    except ImageError:
        return None
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    return image


def _settings(settings: Row) -> Iterator[list[str]]:
    for name, value in settings.items():
        if value is not None and name != "roots":
            yield [name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)]
