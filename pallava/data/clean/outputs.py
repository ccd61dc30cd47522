"""What cleaning writes: the records kept and dropped, the pairs, and the counts. All of it appears at the end."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from pallava.data.clean.filters import Filter
from pallava.data.clean.pipeline import Input, Outcome
from pallava.data.clean.published_index import PublishedIndexFilter
from pallava.data.sources.base import Pair, to_json
from pallava.errors import PallavaError

KEPT, DROPPED, PAIRS, SUMMARY = "kept.jsonl", "dropped.jsonl", "pairs.json", "summary.json"
INDEX_REPORT = "published_index.txt"
_NAMES = (KEPT, DROPPED, PAIRS)
_MAX_EXAMPLES = 3

Summary = dict[str, Any]


def write_outputs(
    folder: Path,
    outcomes: Iterable[Outcome],
    *,
    inputs: Sequence[Input],
    filters: Sequence[Filter],
    image_folder: Path,
    settings: dict[str, Any],
) -> Summary:
    """Writes all files but the report; earlier ones are replaced when everything is complete.

    ``kept.jsonl`` and ``dropped.jsonl`` hold a record a line (as `to_json` writes it) with "path" (of its image under
    the image folder), "scores" (number by filter), "image_size" where it is known, and of a dropped one "filter",
    "reason" (what drops are counted by), "detail" and "score". ``pairs.json`` holds the kept captions.

    Args:
        folder: Where to write; must exist.
        outcomes: Of all records, in order.
        inputs: The sources.
        filters: In the order in which they decided.
        image_folder: What the paths are relative to; holds all roots.
        settings: Of the run, for the summary.

    Returns:
        What ``summary.json`` holds.
    """
    roots = {each.label: image_folder_path(image_folder, each.source.root) for each in inputs}
    counts = {each.label: {one.name: {"num_in": 0, "dropped": {}} for one in filters} for each in inputs}
    num_kept = dict.fromkeys(counts, 0)
    with _unfinished(folder) as files:
        pairs = _PairWriter(files[PAIRS])
        for outcome in outcomes:
            row = _row(outcome, roots)
            _count(outcome, counts[row["source"]], filters)
            if outcome.filter_name:
                files[DROPPED].write(_line(row))
                continue
            num_kept[row["source"]] += 1
            files[KEPT].write(_line(row))
            if isinstance(outcome.item.record, Pair):
                pairs.write({"image": row["path"], "caption": outcome.item.record.text})
        pairs.end()
    summary = _summary(inputs, filters, counts, num_kept)
    summary |= {"image_folder": str(image_folder), "num_pairs": pairs.count, "settings": settings}
    summary |= _index_report(folder, filters)
    _publish(folder, summary)
    return summary


def image_folder_path(image_folder: Path, root: Path) -> str:
    """Gives a root relative to the image folder, with a closing slash unless they are the same.

    Raises:
        PallavaError: The root lies elsewhere.
    """
    try:
        relative = root.resolve().relative_to(image_folder.resolve()).as_posix()
    except ValueError:
        raise PallavaError(
            f"the root '{root}' does not lie in the image folder '{image_folder}'; give a folder above all roots"
        ) from None
    return "" if relative == "." else f"{relative}/"


@contextmanager
def _unfinished(folder: Path) -> Iterator[dict[str, BinaryIO]]:
    """Opens the files under other names, and takes them away again if the block fails."""
    files: dict[str, BinaryIO] = {}
    try:
        for name in _NAMES:
            files[name] = _hidden(folder, name).open("wb")
        yield files
        for file in files.values():
            file.close()
    except BaseException:
        for name, file in files.items():
            file.close()
            _hidden(folder, name).unlink(missing_ok=True)
        raise


def _hidden(folder: Path, name: str) -> Path:
    return folder / f".{name}.unfinished"


def _publish(folder: Path, summary: Summary) -> None:
    """Gives the files their names; the summary comes last, so where it stands everything is of one run."""
    (folder / SUMMARY).unlink(missing_ok=True)
    for name in _NAMES:
        _hidden(folder, name).replace(folder / name)
    if not summary["num_pairs"] and not any(each["kind"] == "captions" for each in summary["sources"].values()):
        (folder / PAIRS).unlink()  # of questions alone there are no pairs
    hidden = _hidden(folder, SUMMARY)
    hidden.write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", errors="replace")
    hidden.replace(folder / SUMMARY)


class _PairWriter:
    """Writes a JSON list, one pair a line."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.count = 0

    def write(self, pair: dict[str, str]) -> None:
        self._file.write((b",\n" if self.count else b"[\n") + _line(pair)[:-1])
        self.count += 1

    def end(self) -> None:
        self._file.write(b"\n]\n" if self.count else b"[]\n")


def _line(row: dict[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode(errors="replace") + b"\n"


def _row(outcome: Outcome, roots: dict[str, str]) -> dict[str, Any]:
    record, shared = outcome.item.record, outcome.item.shared
    row = {**to_json(record), "path": roots[record.source] + record.image, "scores": outcome.scores}
    if "width" in shared:
        row["image_size"] = [shared["width"], shared["height"]]
    if outcome.filter_name:
        reason, _, detail = outcome.verdict.reason.partition(" of ")
        row |= {"filter": outcome.filter_name, "reason": reason, "detail": detail, "score": outcome.verdict.score}
    return row


def _count(outcome: Outcome, counts: dict[str, dict[str, Any]], filters: Sequence[Filter]) -> None:
    for each in filters:
        if outcome.item.kind in each.kinds:
            counts[each.name]["num_in"] += 1
        if each.name == outcome.filter_name:
            dropped, reason = counts[each.name]["dropped"], outcome.verdict.reason.partition(" of ")[0]
            dropped[reason] = dropped.get(reason, 0) + 1
            return


def _summary(
    inputs: Sequence[Input], filters: Sequence[Filter], counts: dict[str, Any], num_kept: dict[str, int]
) -> Summary:
    sources = {}
    for each in inputs:
        tally = each.source.tally
        sources[each.label] = {
            "name": each.source.name,
            "kind": each.source.kind,
            "root": str(each.source.root.resolve()),
            "num_records": tally.num_records,
            "unread": dict(tally.dropped),
            "unread_examples": dict(tally.examples),
            "filters": counts[each.label],
            "num_kept": num_kept[each.label],
        }
    return {
        "num_records": sum(each["num_records"] for each in sources.values()),
        "num_kept": sum(num_kept.values()),
        "filters": [each.name for each in filters],
        "sources": sources,
    }


def _index_report(folder: Path, filters: Sequence[Filter]) -> Summary:
    """Writes which listed names matched nothing, which several sources, and which entries are no names."""
    report = folder / INDEX_REPORT
    index = next((each for each in filters if isinstance(each, PublishedIndexFilter)), None)
    if index is None:
        report.unlink(missing_ok=True)
        return {}
    unmatched, ambiguous = list(index.unmatched()), list(index.ambiguous())
    hidden = _hidden(folder, INDEX_REPORT)
    with hidden.open("w", encoding="utf-8", errors="replace") as file:
        file.writelines(f"several sources\t{name}\t{', '.join(sources)}\n" for name, sources in ambiguous)
        file.writelines(f"no match\t{name}\n" for name in unmatched)
        file.writelines(f"no name\t{entry}\n" for entry in index.unread)
    hidden.replace(report)
    return {
        "published_index": {
            "num_names": index.num_names,
            "num_unmatched": len(unmatched),
            "num_in_several_sources": len(ambiguous),
            "num_without_name": len(index.unread),
            "unmatched_examples": unmatched[:_MAX_EXAMPLES],
            "several_sources_examples": [[name, sources] for name, sources in ambiguous[:_MAX_EXAMPLES]],
            "without_name_examples": index.unread[:_MAX_EXAMPLES],
            "report": INDEX_REPORT,
        }
    }
