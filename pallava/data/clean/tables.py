"""The counts of a cleaning run as tables, for the terminal and for the report."""

from __future__ import annotations

from typing import Any

from pallava.report.table import Table, percent

UNREAD = "unread"
"""Name under which rows that were not read are counted, beside the filters' names."""


def describe(summary: dict[str, Any], out: str) -> str:
    """Return what each source lost to each filter, and why, as text for the terminal.

    Args:
        summary: The content of ``summary.json``.
        out: The run's folder, as it is to be named.
    """
    parts = [funnel_table(summary).to_text(), reasons_table(summary).to_text()]
    if index := index_sentence(summary):
        parts.append(f"published list in {out}: {index}")
    return "\n\n".join([*parts, f"{summary['num_kept']} of {summary['num_records']} records are kept, in {out}"])


def number(count: int) -> str:
    """Return a number with separated thousands."""
    return f"{count:,}".replace(",", "\u202f")  # a thin space, since a comma is a decimal sign to half of the world


def share(count: int, total: int) -> str:
    """Return a share in percent, or a dash of nothing."""
    return percent(count / total if total else float("nan"))


def dropped(summary: dict[str, Any], label: str, name: str) -> dict[str, int]:
    """Return the counts of drops by reason, of one source and one filter or of what was not read."""
    source = summary["sources"][label]
    return source["unread"] if name == UNREAD else source["filters"][name]["dropped"]


def losses(summary: dict[str, Any], label: str) -> dict[str, int]:
    """Return what a source lost to reading and to each filter."""
    return {name: sum(dropped(summary, label, name).values()) for name in (UNREAD, *summary["filters"])}


def funnel_table(summary: dict[str, Any]) -> Table:
    """Return what each source lost to each filter."""
    counts = {
        label: [source["num_records"], *losses(summary, label).values(), source["num_kept"]]
        for label, source in summary["sources"].items()
    }
    if len(counts) > 1:
        counts["all"] = [sum(column) for column in zip(*counts.values(), strict=True)]
    rows = [[label, *map(number, row), share(row[-1], row[0])] for label, row in counts.items()]
    return Table("", ["source", "read", UNREAD, *summary["filters"], "kept", "share"], rows)


def reasons_table(summary: dict[str, Any]) -> Table:
    """Return how often each reason occurs in each source."""
    labels, rows = list(summary["sources"]), []
    for name in (UNREAD, *summary["filters"]):
        for reason in sorted({reason for label in labels for reason in dropped(summary, label, name)}):
            counts = [dropped(summary, label, name).get(reason, 0) for label in labels]
            cells = [number(count) if count else "" for count in counts]
            rows.append([f"{name}: {reason}", *cells, number(sum(counts))])
    return Table("", ["reason", *labels, "all"], rows)


def index_sentence(summary: dict[str, Any]) -> str:
    """Return how the published list matches, or nothing without one."""
    if not (index := summary.get("published_index")):
        return ""
    return (
        f"{number(index['num_names'])} names, {number(index['num_unmatched'])} without a match, "
        f"{number(index['num_in_several_sources'])} in several sources, {number(index['num_without_name'])} entries "
        f"without a name; see {index['report']}"
    )
