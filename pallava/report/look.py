"""Pictures of what a model looks at: an image with its tiles, and heat laid over it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

_INK, _SOFT = "#23202b", "#6d6877"
_HEAT = "magma"
_WIDTH, _TITLE_SPACE, _MAX_COLUMNS = 4.3, 0.75, 3  # inches of a panel and above it; panels in a row
_PALE = 0.35  # how much of a picture under heat is left


@dataclass(frozen=True)
class Panel:
    """One picture, and what is laid over it.

    Attributes:
        title: Above it.
        note: Below the title, smaller.
        image: (H, W, 3) of bytes.
        grid: Columns and rows of tiles, whose borders are drawn.
        heat: (R, C), spread over the whole picture.
        written: (rows, columns) of texts, one in the middle of each tile.
        unit: What the heat counts, beside its scale.
        starts_at_zero: Whether the scale does; else at the least value.
    """

    title: str
    note: str
    image: NDArray[np.uint8]
    grid: tuple[int, int] = (1, 1)
    heat: NDArray[np.floating] | None = None
    written: Sequence[Sequence[str]] | None = None
    unit: str = ""
    starts_at_zero: bool = True


def draw_panels(panels: Sequence[Panel], out: Path, *, title: str, footnote: str = "") -> None:
    """Draws panels into one file, three in a row.

    Args:
        panels: What to draw.
        out: A file whose ending matplotlib knows: ``.png``, ``.pdf``, ``.svg``.
        title: Above all.
        footnote: Below all.
    """
    columns = min(_MAX_COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    tallest = max(panel.image.shape[0] / panel.image.shape[1] for panel in panels)
    height = _WIDTH * min(max(tallest, 0.6), 1.5) + _TITLE_SPACE
    figure = Figure(figsize=(columns * _WIDTH, rows * height + 0.7), dpi=150, layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)  # type: ignore[union-attr]
    figure.suptitle(title, x=0.012, ha="left", fontsize=14, fontweight="bold", color=_INK)
    figure.supxlabel(footnote, x=0.012, ha="left", fontsize=8.5, color=_SOFT)
    for number, panel in enumerate(panels, start=1):
        _draw(figure, figure.add_subplot(rows, columns, number), panel)
    figure.savefig(out)


def _draw(figure: Figure, axes: Axes, panel: Panel) -> None:
    height, width = panel.image.shape[:2]
    axes.set_title(panel.title, loc="left", fontsize=11, fontweight="bold", color=_INK, pad=20)
    axes.text(0, 1.02, panel.note, transform=axes.transAxes, fontsize=8.5, color=_SOFT, va="bottom")
    axes.set_axis_off()
    axes.set_anchor("N")
    if panel.heat is None:
        axes.imshow(panel.image, extent=(0, width, height, 0))
    else:
        low = 0.0 if panel.starts_at_zero else float(panel.heat.min())
        scale = Normalize(low, max(float(panel.heat.max()), low + 1e-9))
        axes.imshow(_under_heat(panel.image, scale(panel.heat)), extent=(0, width, height, 0))
        bar = figure.colorbar(_mappable(scale), ax=axes, fraction=0.04, pad=0.02, aspect=28)
        bar.set_label(panel.unit, fontsize=8.5, color=_SOFT)
        bar.ax.tick_params(labelsize=7.5, colors=_SOFT)
        bar.outline.set_visible(False)  # type: ignore[operator]
    _draw_tiles(axes, panel, width, height)


def _draw_tiles(axes: Axes, panel: Panel, width: int, height: int) -> None:
    columns, rows = panel.grid
    ink = "white" if panel.heat is not None else _INK
    for x in np.linspace(0, width, columns + 1)[1:-1]:
        axes.axvline(x, color=ink, linewidth=1.4)
    for y in np.linspace(0, height, rows + 1)[1:-1]:
        axes.axhline(y, color=ink, linewidth=1.4)
    box = {"boxstyle": "round,pad=0.3", "facecolor": "white", "alpha": 0.88, "edgecolor": "none"}
    for row, texts in enumerate(panel.written or ()):
        for column, text in enumerate(texts):
            x, y = (column + 0.5) * width / columns, (row + 0.5) * height / rows
            axes.text(x, y, text, ha="center", va="center", fontsize=9, color=_INK, bbox=box)


def _under_heat(image: NDArray[np.uint8], heat: NDArray[np.floating]) -> NDArray[np.floating]:
    """The picture in grey, coloured by heat (R, C) between 0 and 1: (H, W, 3) between 0 and 1."""
    height, width = image.shape[:2]
    ys, xs = (np.arange(side) * count // side for side, count in zip((height, width), heat.shape, strict=True))
    colours = colormaps[_HEAT](np.asarray(heat)[ys][:, xs])[..., :3]
    grey = image.mean(-1, keepdims=True) / 255
    return colours * (1 - _PALE) + colours * grey * _PALE + 0.12 * (grey - 0.5)


def _mappable(scale: Normalize) -> object:
    from matplotlib.cm import ScalarMappable

    return ScalarMappable(scale, _HEAT)
