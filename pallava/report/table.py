"""Tables that render to text, HTML and Markdown, and the one way to write a value with its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pallava.report.page import render

_UNDEFINED = "–"


@dataclass(frozen=True)
class Table:
    """A table of texts; a column of numbers is set to the right.

    Attributes:
        title: Line above it; may be empty.
        header: Names of the columns.
        rows: Cells of each row, as many as the header has.
        note: Line below it; may be empty.
        is_text: Whether all columns hold text and are set to the left, not the first alone.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    is_text: bool = False

    def __post_init__(self) -> None:
        """Check the number of cells.

        Raises:
            ValueError: A row has more or fewer cells than the header.
        """
        if wrong := [row for row in self.rows if len(row) != len(self.header)]:
            raise ValueError(f"row {wrong[0]} has {len(wrong[0])} cells, but the header has {len(self.header)}")

    def to_text(self) -> str:
        """Return the table as lines for the terminal."""
        lines = [self.header, *self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        place = str.ljust if self.is_text else str.rjust
        text = ["  ".join([line[0].ljust(widths[0]), *map(place, line[1:], widths[1:])]).rstrip() for line in lines]
        return "\n".join([*filter(None, [self.title]), *text, *filter(None, [self.note])])

    def to_html(self) -> str:
        """Return the table as a block of a page."""
        return render("table", **vars(self))

    def to_markdown(self) -> str:
        """Return the table as Markdown, in which a cell can neither break a line nor start a column or a tag."""
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        table = "\n".join("| " + " | ".join(map(escape_markdown, line)) + " |" for line in lines)
        return "\n\n".join(filter(None, [escape_markdown(self.title), table, escape_markdown(self.note)]))


def estimate(value: float | None, low: float | None, high: float | None) -> str:
    """Return a value with its interval in percent, such as ``83.3 % [80.1, 86.0]``, or a dash if it is undefined."""
    if value is None or value != value:
        return _UNDEFINED
    bounds = (percent(math.nan if bound is None else bound).removesuffix(" %") for bound in (low, high))
    return f"{percent(value)} [{', '.join(bounds)}]"


def percent(value: float) -> str:
    """Return 0.8333 as ``83.3 %``, and a dash for an undefined number."""
    return _UNDEFINED if value != value else f"{100 * value:.1f} %"


def escape_markdown(text: str) -> str:
    """Return foreign text for Markdown: on one line, without a new column or a tag."""
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")
