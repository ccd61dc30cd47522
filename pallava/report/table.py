"""Tables that render to text, HTML and Markdown, and the one way to write numbers, shares and intervals."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_UNDEFINED = "–"


@dataclass(frozen=True)
class Table:
    """A table of texts; a column of numbers is set to the right."""

    title: str  # the line above it; may be empty
    header: Sequence[str]
    rows: Sequence[Sequence[str]]  # cells of each row, as many as the header has
    is_text: bool = False  # whether all columns hold text and are set to the left, not the first alone

    def __post_init__(self) -> None:
        if wrong := [row for row in self.rows if len(row) != len(self.header)]:
            raise ValueError(f"row {wrong[0]} has {len(wrong[0])} cells, but the header has {len(self.header)}")

    def to_text(self) -> str:
        """Return the table as lines for the terminal."""
        lines = [self.header, *self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        place = str.ljust if self.is_text else str.rjust
        text = ["  ".join([line[0].ljust(widths[0]), *map(place, line[1:], widths[1:])]).rstrip() for line in lines]
        return "\n".join([self.title, *text] if self.title else text)

    def to_markdown(self) -> str:
        """Return the table as Markdown, in which a cell can neither break a line nor start a column or a tag."""
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        table = "\n".join("| " + " | ".join(map(escape_markdown, line)) + " |" for line in lines)
        return f"{escape_markdown(self.title)}\n\n{table}" if self.title else table


def estimate(values: Mapping[str, float | None]) -> str:
    """Return "value", "low" and "high" as ``83.3 % [80.1, 86.0]``, or a dash if the value is undefined."""
    value, low, high = (percent(values[name]) for name in ("value", "low", "high"))
    return value if value == _UNDEFINED else f"{value} [{low.removesuffix(' %')}, {high.removesuffix(' %')}]"


def percent(value: float | None) -> str:
    """Return 0.8333 as ``83.3 %``, and a dash for an undefined number."""
    return _UNDEFINED if value is None or math.isnan(value) else f"{100 * value:.1f} %"


def share(part: int, whole: int) -> str:
    """Return a part of a whole in percent, and a dash for a part of nothing."""
    return percent(part / whole if whole else None)


def number(count: int) -> str:
    """Return 12345 with a thin space, since a comma is a decimal sign to half of the world."""
    return f"{count:,}".replace(",", "\u202f")


def escape_markdown(text: str) -> str:
    """Return foreign text for Markdown: on one line, without a new column or a tag."""
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")
