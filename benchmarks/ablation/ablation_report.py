"""What came out of the ablation: a table, a plot, and the paired differences, written into a page."""

import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ablation_variants import VARIANTS
from matplotlib.figure import Figure

from pallava.demo.questions import FINE_DETAIL
from pallava.errors import PallavaError
from pallava.evaluation.answers.items import Answer, read_predictions
from pallava.evaluation.answers.rules import is_exact_match
from pallava.evaluation.statistics import estimate_means
from pallava.io.files import write_bytes, write_text
from pallava.report.plots import COLOURS

WITHOUT_TILES = "answers_without_tiles.json"
_BEGIN, _END = "<!-- written by `make ablation` -->", "<!-- end -->"
COLUMNS = {
    "fine": "fine detail",
    "fine_overview": "fine detail, overview for tiles",
    "closed": "other closed",
    "open": "other open",
    "shuffled": "closed, shuffled images",
    "half_size": "same answer at half size",
    "double_size": "same answer at double size",
}
"""Columns of the table: shares of questions."""
_PAIRED = ("fine", "closed", "open")


@dataclass(frozen=True)
class Run:
    """One training of a variant with a seed, and its folder."""

    name: str
    seed: int
    folder: Path

    @property
    def is_done(self) -> bool:
        """Whether all its answers are there."""
        return (self.folder / "demo" / "changed" / "results.json").is_file()


def write_report(runs: Sequence[Run], out: Path) -> None:
    """Write the results of the runs that are done into the marked part of a page, and the plot beside it.

    Raises:
        PallavaError: No run is done, or the page has no such part.
    """
    done: dict[str, list[Run]] = {}
    for run in runs:
        if run.is_done:
            done.setdefault(run.name, []).append(run)
    if not done:
        raise PallavaError("no run of the ablation is done; run it without --report first")
    shares = {name: [_shares(run) for run in own] for name, own in done.items()}
    legend = [f"- **{name}**: {variant.means}." for name, variant in VARIANTS.items() if name in shares]
    lines = [*legend, "", _table(shares), *_paired(done)]
    page = out.read_text(encoding="utf-8") if out.exists() else f"{_BEGIN}\n{_END}\n"
    part = re.compile(f"{re.escape(_BEGIN)}.*?{re.escape(_END)}", re.S)
    if not part.search(page):
        raise PallavaError(f"'{out}' must have a line {_BEGIN} and a line {_END} for the results")
    results = "\n".join([_BEGIN, "", *lines, "", _END])
    write_bytes(out.with_suffix(".png"), _draw(shares))
    write_text(out, part.sub(lambda _: results, page))


def _shares(run: Run) -> dict[str, float]:
    demo = run.folder / "demo"
    rights = _rights(read_predictions(demo / "evaluation"))
    again = [Answer.from_record(record) for record in json.loads((demo / WITHOUT_TILES).read_text())]
    results = json.loads((demo / "evaluation" / "results.json").read_text())["data"]["questions"]
    changed = json.loads((demo / "changed" / "results.json").read_text())["data"]["changed"]["consistency"]["same"]
    return {
        **{kind: float(np.mean([right for right, _ in own.values()])) for kind, own in rights.items()},
        "fine_overview": float(np.mean([is_exact_match(each.text, each.item.reference) for each in again])),
        "shuffled": results["controls"]["shuffled images"]["exact_match_closed"]["value"],
        **{name: changed[name]["value"] for name in ("half_size", "double_size")},
    }


def _rights(answers: Sequence[Answer]) -> dict[str, dict[str, tuple[bool, str]]]:
    """By kind of question ("fine", "closed", "open"), and id: whether the answer is right, and the image."""
    found: dict[str, dict[str, tuple[bool, str]]] = {kind: {} for kind in _PAIRED}
    for each in answers:
        kind = "fine" if each.item.group == FINE_DETAIL else str(each.item.kind)
        found[kind][each.item.id] = is_exact_match(each.text, each.item.reference), each.item.image
    return found


def _table(shares: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Return means over the seeds, with the standard deviation."""
    rows = [["variant", "seeds", *COLUMNS.values()], ["---", *["---:"] * (len(COLUMNS) + 1)]]
    for name in VARIANTS:
        if name in shares:
            values = [[run[column] for run in shares[name]] for column in COLUMNS]
            rows.append([name, str(len(shares[name])), *map(_mean_and_spread, values)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _mean_and_spread(values: Sequence[float]) -> str:
    spread = f" ± {100 * np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{100 * np.mean(values):.1f}{spread}"


def _paired(done: Mapping[str, Sequence[Run]]) -> list[str]:
    """Return a table of differences to the first variant, question by question, with intervals over the images."""
    first, *others = VARIANTS
    if first not in done or not any(name in done for name in others):
        return []
    rights = {
        name: [_rights(read_predictions(run.folder / "demo" / "evaluation")) for run in own]
        for name, own in done.items()
    }
    rows = [["against cross-attention", *(COLUMNS[kind] for kind in _PAIRED)], ["---", *["---:"] * len(_PAIRED)]]
    for name in (other for other in others if other in done):
        cells = []
        for kind in _PAIRED:
            ids = sorted(rights[first][0][kind])
            own, reference = (
                np.mean([[run[kind][each][0] for each in ids] for run in rights[which]], axis=0)
                for which in (name, first)
            )
            (found,) = estimate_means([own - reference], [rights[first][0][kind][each][1] for each in ids])
            cells.append(f"{100 * found.value:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]")
        rows.append([name, *cells])
    return ["", *(f"| {' | '.join(row)} |" for row in rows)]


def _draw(shares: Mapping[str, Sequence[Mapping[str, float]]]) -> bytes:
    """Draw a point for each seed: shares of right answers by kind of question, a row for each variant."""
    names = [name for name in VARIANTS if name in shares]
    figure = Figure(figsize=(7.5, 0.5 * len(names) + 1.2), layout="constrained")
    axes = figure.add_subplot()
    for offset, (kind, colour) in enumerate(zip(_PAIRED, COLOURS, strict=False)):
        points = [(100 * run[kind], row) for row, name in enumerate(names) for run in shares[name]]
        xs, ys = zip(*points, strict=True)
        axes.scatter(xs, np.array(ys) + 0.2 * (offset - 1), color=colour, s=28, label=COLUMNS[kind])
    axes.axvline(50, color="grey", linewidth=1, linestyle="--")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("right in % (a point for each seed; dashed: chance between two answers)")
    axes.legend(frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110)
    return buffer.getvalue()
