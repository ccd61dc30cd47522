"""Tables as HTML, for callers that do not build a `Table` yet."""

from collections.abc import Sequence

from pallava.report.table import Table, percent

__all__ = ["percent", "table"]


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, caption: str = "", is_text: bool = False) -> str:
    """Return a table as HTML."""
    return Table(caption, header, rows, is_text=is_text).to_html()
