"""Plots as SVG text that sits in a page, readable on light and dark ground alike."""

import io
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

_INK = "#8a8f98"  # a grey between, since the page's colours follow the reader's system
COLOURS = ("#7c5cc4", "#d0628f", "#2f8f83", "#c98a2b")


def line_plot(
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    x_label: str,
    y_label: str,
    smooth: int = 1,
    size: tuple[float, float] = (4.6, 2.7),
) -> str:
    """Lines over steps.

    Args:
        series: Name of each line and its points (x, y).
        x_label: Below the plot.
        y_label: Beside it.
        smooth: Points that a running mean takes together; the raw ones stay visible, faint.
        size: In inches, of 96 pixels.

    Returns:
        An ``<svg>`` element.
    """
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    for (name, points), colour in zip(series.items(), COLOURS * len(series), strict=False):
        xs, ys = [x for x, _ in points], [y for _, y in points]
        if smooth > 1:
            axes.plot(xs, ys, color=colour, linewidth=0.8, alpha=0.25)
        axes.plot(xs, running_mean(ys, smooth), color=colour, linewidth=1.8, label=name)
    axes.set_xlabel(x_label, color=_INK)
    axes.set_ylabel(y_label, color=_INK)
    axes.tick_params(colors=_INK, labelsize=8)
    axes.grid(color=_INK, alpha=0.18, linewidth=0.6)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_INK)
    if len(series) > 1:
        axes.legend(frameon=False, labelcolor=_INK, fontsize=8)
    return _svg(figure)


def running_mean(values: Sequence[float], width: int) -> list[float]:
    """Mean of each value and those before it, `width` in all."""
    return [sum(values[max(0, i - width + 1) : i + 1]) / min(i + 1, width) for i in range(len(values))]


def _svg(figure: Figure) -> str:
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    return text[text.index("<svg") :]
