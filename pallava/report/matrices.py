"""A confusion matrix as SVG text."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from pallava.report.plots import COLOURS, _svg, as_written

_INK = "#8a8f98"
_MAX_SIDE = 9.0  # inches


def confusion_plot(rows: Sequence[str], columns: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    """A confusion matrix: counts in the cells, shaded by the share of their row.

    Args:
        rows: Names of the true classes.
        columns: Names of the predicted ones.
        counts: A row for each true class.

    Returns:
        An ``<svg>`` element.
    """
    side = min(2.2 + 0.55 * len(columns), _MAX_SIDE)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.add_subplot()
    for y, row in enumerate(counts):
        for x, count in enumerate(row):
            share = count / max(sum(row), 1)
            axes.fill_between([x - 0.47, x + 0.47], y - 0.47, y + 0.47, color=COLOURS[0], alpha=share, linewidth=0)
            axes.text(x, y, str(count), ha="center", va="center", fontsize=9, color="white" if share > 0.7 else _INK)
    axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(rows) - 0.5, -0.5), aspect="equal")
    axes.set_xticks(range(len(columns)), [as_written(name) for name in columns], rotation=40, ha="right")
    axes.set_yticks(range(len(rows)), [as_written(name) for name in rows])
    axes.set_xlabel("predicted", color=_INK)
    axes.set_ylabel("true", color=_INK)
    axes.tick_params(colors=_INK, labelsize=8, length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return _svg(figure).replace(_INK, "currentColor")  # dark on light ground, and the other way round
