"""Plots as ``<svg>`` elements for a page, readable on light and dark ground alike."""

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import cycle

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_INK = "#8a8f98"  # a grey between, since the page's colours follow the reader's system
_MAX_SIDE = 9.0  # inches of a confusion matrix
COLOURS = ("#7c5cc4", "#d0628f", "#2f8f83", "#c98a2b")


def line_plot(points: Sequence[tuple[float, float]], *, x_label: str, y_label: str, smooth: int = 1) -> str:
    """Draw a line through (x, y): a running mean of `smooth` points, over the raw ones in a fainter colour."""
    figure, axes = _start()
    xs, ys = [x for x, _ in points], [y for _, y in points]
    if smooth > 1:
        axes.plot(xs, ys, color=COLOURS[0], linewidth=0.8, alpha=0.25)
    axes.plot(xs, _running_mean(ys, smooth), color=COLOURS[0], linewidth=1.8)
    return _finish(figure, axes, x_label, y_label)


def histogram(
    series: Mapping[str, Mapping[float, int]],  # by name, how often each value occurs
    *,
    x_label: str,
    threshold: float | None = None,  # value at which a line is drawn
    colours: Sequence[str] = COLOURS,  # of the series
) -> str:
    """Draw how often values occur, as bars; those of several series, each in its colour, on top of each other.

    Raises:
        ValueError: The series have no value.
    """
    edges = _edges(series)
    figure, axes = _start()
    below = np.zeros(len(edges) - 1)
    for (name, counts), colour in zip(series.items(), cycle(colours), strict=False):
        values = np.clip(list(counts), edges[0], edges[-1])
        heights, _ = np.histogram(values, edges, weights=list(counts.values()))
        axes.bar(edges[:-1], heights, np.diff(edges), below, align="edge", color=colour, label=as_written(name))
        below += heights
    if threshold is not None:
        axes.axvline(threshold, color=_INK, linewidth=1.2, linestyle="--", label=f"threshold {threshold:g}")
    axes.set_xlim(edges[0], edges[-1])
    if len(series) > 1 or threshold is not None:
        axes.legend(frameon=False, labelcolor=_INK, fontsize=8)
    return _finish(figure, axes, x_label, "records")


def confusion_plot(columns: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    """Draw a confusion matrix, whose cells are shaded by the share of their row; the first columns name the rows."""
    side = min(2.2 + 0.55 * len(columns), _MAX_SIDE)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.add_subplot()
    for y, row in enumerate(counts):
        for x, count in enumerate(row):
            share = count / max(sum(row), 1)
            axes.fill_between([x - 0.47, x + 0.47], y - 0.47, y + 0.47, color=COLOURS[0], alpha=share, linewidth=0)
            axes.text(x, y, str(count), ha="center", va="center", fontsize=9, color="white" if share > 0.7 else _INK)
    axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(counts) - 0.5, -0.5), aspect="equal")
    axes.set_xticks(range(len(columns)), [as_written(name) for name in columns], rotation=40, ha="right")
    axes.set_yticks(range(len(counts)), [as_written(name) for name in columns[: len(counts)]])
    axes.set_xlabel("predicted", color=_INK)
    axes.set_ylabel("true", color=_INK)
    axes.tick_params(colors=_INK, labelsize=8, length=0)
    axes.spines[:].set_visible(False)
    return _svg(figure).replace(_INK, "currentColor")  # dark on light ground, and the other way round


def confidence_plot(
    curves: Mapping[str, Sequence[tuple[float, float]]], bins: Sequence[tuple[float, float, int]]
) -> str:
    """Draw risk against coverage, and beside it how often answers of like probability are right.

    Args:
        curves: By name, (coverage, risk) from 0 to 1; the first is the model's, the others are dashed.
        bins: Mean probability, share of right answers, and number of answers of each bin, shown as the point's area.
    """
    figure = Figure(figsize=(9.2, 3.2), layout="constrained")
    risk, reliability = figure.subplots(1, 2)
    for number, (name, points) in enumerate(curves.items()):
        style = {"linestyle": "--", "linewidth": 1.2} if number else {"marker": ".", "markersize": 3, "linewidth": 1.8}
        risk.plot(*zip(*points, strict=True), color=COLOURS[number], label=as_written(name), **style)
    risk.legend(frameon=False, labelcolor=_INK, fontsize=8)
    risk.set(xlim=(0, 1.02), ylim=(-0.02, None))
    most = max(count for _, _, count in bins)
    sizes = [12 + 150 * count / most for _, _, count in bins]
    reliability.plot([0, 1], [0, 1], color=_INK, linewidth=1.2, linestyle="--", label="calibrated")
    reliability.scatter(
        *zip(*[each[:2] for each in bins], strict=True), sizes, color=COLOURS[0], alpha=0.8, label="model"
    )
    reliability.legend(frameon=False, labelcolor=_INK, fontsize=8)
    reliability.set(xlim=(0, 1.02), ylim=(-0.05, 1.05))
    _label(risk, "coverage: share of answers kept", "risk: share of wrong ones")
    _label(reliability, "probability", "share of right answers")
    return _svg(figure)


def _edges(series: Mapping[str, Mapping[float, int]], num_bins: int = 40) -> np.ndarray:
    """Edges of bars from the smallest value to the 99th percentile, beyond which the last bar counts all.

    Each of few whole numbers has its own bar.
    """
    total: Counter[float] = Counter()
    for counts in series.values():
        total.update(counts)
    if not total:
        raise ValueError("the series must have at least one value")
    values = np.array(sorted(total))
    shares = np.cumsum([total[value] for value in values.tolist()])
    low, high = values[0], values[np.searchsorted(shares, 0.99 * shares[-1])]
    if np.all(values == np.rint(values)):
        least = (high - low + 1) / num_bins
        # The next of 1, 2, 5, 10, 20, ..., so that a round threshold falls between two bars.
        step = next(10**power * one for power in range(19) for one in (1, 2, 5) if 10**power * one >= least)
        low = low // step * step
        return low + step * np.arange(int(np.ceil((high - low + 1) / step)) + 1)
    return np.linspace(low, high if high > low else low + 1, num_bins + 1)


def _start() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.6, 2.7), layout="constrained")  # inches of 96 pixels
    return figure, figure.add_subplot()


def _finish(figure: Figure, axes: Axes, x_label: str, y_label: str) -> str:
    _label(axes, x_label, y_label)
    return _svg(figure)


def _label(axes: Axes, x_label: str, y_label: str) -> None:
    axes.set_xlabel(x_label, color=_INK)
    axes.set_ylabel(y_label, color=_INK)
    axes.tick_params(colors=_INK, labelsize=8)
    axes.grid(color=_INK, alpha=0.18, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_INK)


def _running_mean(values: Sequence[float], width: int) -> list[float]:
    """Return the mean of each value and those before it, `width` in all."""
    return [sum(values[max(0, i - width + 1) : i + 1]) / min(i + 1, width) for i in range(len(values))]


def as_written(text: str) -> str:
    r"""Return a text for matplotlib that shows a ``$`` as it is; between two of them it would read a formula."""
    return text.replace("$", r"\$")


def _svg(figure: Figure) -> str:
    out = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "pallava"}):  # the same plot is the same text
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    return text[text.index("<svg") :]
