"""Pictures of what a model looks at: an image with its tiles, and heat over it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from pallava.report.plots import as_written

_INK, _SOFT = "#23202b", "#6d6877"
_HEAT = "YlOrRd"
_PALE = 0.45  # how light the darkest grey of a picture under heat is
_WIDTH, _ABOVE, _BELOW, _GAP = 3.6, 0.62, 0.62, 0.35  # inches: a picture, its title, its scale, between pictures
_HEADER, _FOOTER = 0.55, 0.4
_TALLEST = 2.0  # height of a picture by its width; a taller one becomes narrower


@dataclass(frozen=True)
class Panel:
    """One picture with heat and texts over it."""

    title: str  # above it
    note: str  # smaller, below the title
    image: NDArray[np.uint8]  # (H, W, 3)
    grid: tuple[int, int] = (1, 1)  # columns and rows of tiles, whose borders are drawn
    heat: NDArray[np.floating] | None = None  # (R, C), spread over the whole picture
    written: Sequence[Sequence[str]] | None = None  # (rows, columns) of texts, one in the corner of each tile
    unit: str = ""  # of the heat, below its scale
    starts_at_zero: bool = True  # whether the scale starts at zero, not at the least value
    is_peaked: bool = False  # whether most of the heat is in few places: the scale then shows the faint ones too


def draw_panels(
    panels: Sequence[Panel], out: IO[bytes], *, title: str, footnote: str = "", file_format: str = "png"
) -> None:
    """Draw panels side by side into a binary file, as "png", "pdf", "svg" or "jpg"."""
    is_tall = max(_aspect(panel) for panel in panels) > 1.2
    columns = min(len(panels), 4 if is_tall or len(panels) == 4 else 3)
    rows = [panels[start : start + columns] for start in range(0, len(panels), columns)]
    heights = [_WIDTH * min(max(_aspect(panel) for panel in row), _TALLEST) for row in rows]
    width = columns * (_WIDTH + _GAP) + _GAP
    height = _HEADER + sum(heights) + len(rows) * (_ABOVE + _BELOW) + _FOOTER
    figure = Figure(figsize=(width, height), dpi=150, facecolor="white")
    heading = as_written(title)
    figure.text(_GAP / width, 1 - 0.22 / height, heading, va="top", fontsize=14, fontweight="bold", color=_INK)
    figure.text(_GAP / width, 0.16 / height, as_written(footnote), fontsize=8.5, color=_SOFT)
    top = height - _HEADER
    for row, row_height in zip(rows, heights, strict=True):
        for column, panel in enumerate(row):
            _place(figure, panel, _GAP + column * (_WIDTH + _GAP), top - _ABOVE, row_height)
        top -= _ABOVE + row_height + _BELOW
    figure.savefig(out, format=file_format)


def _place(figure: Figure, panel: Panel, left: float, top: float, room: float) -> None:
    """Draw a panel whose upper left corner is given in inches, with its scale below it."""
    aspect, (width, height) = _aspect(panel), figure.get_size_inches()
    own_width, own_height = min(_WIDTH, room / aspect), min(room, _WIDTH * aspect)
    axes = figure.add_axes((left / width, (top - own_height) / height, own_width / width, own_height / height))
    scale = _draw(axes, panel)
    if scale is not None:
        bar = (left / width, (top - own_height - 0.17) / height, own_width / width, 0.09 / height)
        _draw_scale(figure, figure.add_axes(bar), scale, panel.unit)


def _aspect(panel: Panel) -> float:
    return panel.image.shape[0] / panel.image.shape[1]


def _draw(axes: Axes, panel: Panel) -> Normalize | None:
    height, width = panel.image.shape[:2]
    axes.set_axis_off()
    title, note = as_written(panel.title), as_written(panel.note)
    axes.annotate(title, (0, 1), (0, 19), "axes fraction", "offset points", fontsize=11, weight="bold", color=_INK)
    axes.annotate(note, (0, 1), (0, 6), "axes fraction", "offset points", fontsize=8.5, color=_SOFT)
    scale: Normalize | None = None
    shown: NDArray[np.floating] = panel.image / 255
    if panel.heat is not None:
        low = 0.0 if panel.starts_at_zero else float(panel.heat.min())
        high = max(float(panel.heat.max()), low + 1e-9)
        scale = PowerNorm(0.5, low, high) if panel.is_peaked else Normalize(low, high)
        # The picture in pale grey, coloured by the heat.
        ys, xs = (np.arange(side) * n // side for side, n in zip((height, width), panel.heat.shape, strict=True))
        colours = colormaps[_HEAT](np.asarray(scale(panel.heat))[ys][:, xs])[..., :3]
        shown = colours * (_PALE + (1 - _PALE) * panel.image.mean(-1, keepdims=True) / 255)
    axes.imshow(shown, extent=(0, width, height, 0), aspect="auto")
    _draw_tiles(axes, panel, width, height)
    return scale


def _draw_scale(figure: Figure, axes: Axes, scale: Normalize, unit: str) -> None:
    ticks = MaxNLocator(4)  # more would meet where the scale is narrow
    bar = figure.colorbar(ScalarMappable(scale, _HEAT), cax=axes, orientation="horizontal", ticks=ticks)
    bar.set_label(unit, fontsize=8, color=_SOFT, labelpad=1)
    bar.ax.tick_params(labelsize=7.5, colors=_SOFT, length=2, pad=1.5)
    bar.outline.set_visible(False)  # type: ignore[operator]


def _draw_tiles(axes: Axes, panel: Panel, width: int, height: int) -> None:
    columns, rows = panel.grid
    for draw_line, count, length in ((axes.axvline, columns, width), (axes.axhline, rows, height)):
        for place in np.linspace(0, length, count + 1)[1:-1]:
            draw_line(place, color="white", linewidth=2)
            draw_line(place, color=_INK, linewidth=0.8)
    box = {"boxstyle": "round,pad=0.3", "facecolor": "white", "alpha": 0.9, "edgecolor": "none"}
    for row, texts in enumerate(panel.written or ()):
        for column, text in enumerate(texts):
            corner = ((column + 0.05) * width / columns, (row + 0.05) * height / rows)
            axes.text(*corner, text, ha="left", va="top", fontsize=9.5, color=_INK, bbox=box)
