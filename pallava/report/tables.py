"""Tables as HTML."""

import html
from collections.abc import Sequence


def percent(value: float) -> str:
    """0.8333 as ``83.3 %``; a dash where there is no number."""
    return "–" if value != value else f"{100 * value:.1f} %"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, caption: str = "", is_text: bool = False) -> str:
    """A table; all columns but the first are set to the right, unless they are text. What stands in it is escaped.

    Raises:
        ValueError: If a row has more or fewer cells than the header.
    """
    if wrong := [row for row in rows if len(row) != len(header)]:
        raise ValueError(f"row {wrong[0]} has {len(wrong[0])} cells, but the header has {len(header)}")
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    title = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    kind = ' class="text"' if is_text else ""
    return f'<div class="scroll"><table{kind}>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
