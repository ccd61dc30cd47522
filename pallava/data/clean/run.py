"""A cleaning run in its folder, and the files that it writes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from pallava.data.clean.filters import Filter
from pallava.data.clean.pipeline import Input, Outcome, Pipeline
from pallava.data.clean.published_index import PublishedIndexFilter
from pallava.data.clean.settings import DROPPED, KEPT, CleanSettings, make_filters
from pallava.data.material import SUMMARY_NAME, read_sources
from pallava.data.sources import SOURCES
from pallava.data.sources.base import Pair, to_json
from pallava.errors import PallavaError
from pallava.io.files import whole_file, write_json
from pallava.io.store import Store

STORE, PAIRS, INDEX_REPORT = "scores.sqlite", "pairs.json", "published_index.txt"
_MAX_EXAMPLES = 3


def clean(
    sources: Sequence[str],
    out: str | Path,
    *,
    splits: Sequence[str] = (),
    columns: str | Mapping[str, str] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Drop what does not belong into training from data sets; an unfinished run in the output folder is resumed.

    ``kept.jsonl`` and ``dropped.jsonl`` hold a record a line (as `to_json` writes it) with "path" (its image relative
    to the image folder), "scores" (number by filter), "image_size" if it is known, and for a dropped one "filter",
    "reason" (by which drops are counted), "detail" and "score". ``pairs.json`` holds the kept captions,
    ``summary.json`` the counts, and ``index.html`` is a report.

    Args:
        sources: "NAME=ROOT" of each source, such as "quilt-1m=/data/quilt".
        out: Output folder.
        splits: The split to read: "SPLIT" for all sources, or "NAME=SPLIT" for one.
        columns: Columns of a table, such as {"image": "file", "caption": "text"}.
        settings: Further settings by name, see `CleanSettings`; None means the default.

    Returns:
        The content of ``summary.json``.

    Raises:
        PallavaError: The settings contradict each other or the disk, or the work cannot be finished; scores so far are
            kept.
    """
    folder = Path(out)
    chosen = CleanSettings.create(read_sources(sources, splits, columns), settings)
    _check_folder(folder)
    inputs = _open_inputs(chosen)
    roots = [each.source.root for each in inputs]
    image_folder = Path(chosen.image_folder or os.path.commonpath([root.resolve() for root in roots]))
    paths = {each.label: image_folder_path(image_folder, each.source.root) for each in inputs}
    with ExitStack() as stack:
        filters = make_filters(chosen)
        for each in filters:
            stack.callback(each.close)
        stack.enter_context(_writing(folder))
        folder.mkdir(parents=True, exist_ok=True)
        store = stack.enter_context(Store(folder / STORE))
        pipeline = Pipeline(inputs, filters, store, drop_unanswered=chosen.drop_unanswered)
        pipeline.survey()
        pipeline.judge()
        counts = write_outcomes(folder, pipeline.decide(), inputs, filters, paths)
        summary = _summary(inputs, filters, counts)
        resolved = {each.label: str(each.source.root.resolve()) for each in inputs}
        summary |= {"image_folder": str(image_folder), "num_pairs": counts["num_pairs"]}
        summary |= {"settings": {**chosen.to_json(), "roots": resolved}, **_index_report(folder, filters)}
        write_json(folder / SUMMARY_NAME, summary, ensure_ascii=False)
    from pallava.data.clean.report import write_report  # imports matplotlib, which takes a second

    write_report(folder)
    return summary


def write_outcomes(
    folder: Path,
    outcomes: Iterable[Outcome],
    inputs: Sequence[Input],
    filters: Sequence[Filter],
    paths: Mapping[str, str],
) -> dict[str, Any]:
    """Write kept and dropped records and the pairs; earlier files are replaced once everything is complete.

    The summary of an earlier run is removed before, so that a summary always belongs to the files beside it.

    Args:
        folder: The output folder.
        outcomes: Outcomes of all records, in order.
        inputs: The sources.
        filters: The filters in the order in which they decided.
        paths: Root of each source relative to the image folder, by its label.

    Returns:
        Counts: "num_pairs", "num_kept" by source, and "filters" by source and filter.
    """
    counts = {each.label: {one.name: {"num_in": 0, "dropped": {}} for one in filters} for each in inputs}
    num_kept, num_pairs = dict.fromkeys(counts, 0), 0
    has_pairs = any(each.source.kind == "captions" for each in inputs)
    names = [KEPT, DROPPED, *([PAIRS] if has_pairs else [])]
    with ExitStack() as stack:
        files = {name: stack.enter_context(whole_file(folder / name, errors="replace")) for name in names}
        for outcome in outcomes:
            row = _row(outcome, paths)
            _count(outcome, counts[row["source"]], filters)
            if outcome.filter_name:
                files[DROPPED].write(_line(row))
                continue
            num_kept[row["source"]] += 1
            files[KEPT].write(_line(row))
            if isinstance(record := outcome.candidate.record, Pair):
                pair = _line({"image": row["path"], "caption": record.text})
                files[PAIRS].write((",\n" if num_pairs else "[\n") + pair[:-1])
                num_pairs += 1
        if has_pairs:
            files[PAIRS].write("\n]\n" if num_pairs else "[]\n")
        else:
            (folder / PAIRS).unlink(missing_ok=True)
        for file in files.values():  # a full disk shows here, while everything of an earlier run is in its place
            file.flush()
            os.fsync(file.fileno())
        (folder / SUMMARY_NAME).unlink(missing_ok=True)
    return {"num_pairs": num_pairs, "num_kept": num_kept, "filters": counts}


def image_folder_path(image_folder: Path, root: Path) -> str:
    """Return a root relative to the image folder, with a closing slash unless they are the same.

    Raises:
        PallavaError: The root is elsewhere.
    """
    try:
        relative = root.resolve().relative_to(image_folder.resolve()).as_posix()
    except ValueError:
        raise PallavaError(
            f"the root '{root}' is not in the image folder '{image_folder}'; give a folder above all roots"
        ) from None
    return "" if relative == "." else f"{relative}/"


def _open_inputs(settings: CleanSettings) -> list[Input]:
    inputs = []
    for label, spec in zip(settings.labels, settings.sources, strict=True):
        if not spec.name:
            raise PallavaError(f"a source must be NAME=ROOT, such as quilt-1m=/data/quilt, got '{spec.root}'")
        if SOURCES[spec.name].kind == "classes":
            raise PallavaError(f"'{spec.name}' is a set of classes; only captions and questions can be cleaned")
        folder = settings.image_folder if spec.columns else None
        inputs.append(Input(label, spec.open(image_policy=settings.image_policy, image_folder=folder)))
    return inputs


def _check_folder(folder: Path) -> None:
    """Refuse a folder whose files are not of a cleaning run: they would be replaced."""
    if folder.exists() and not folder.is_dir():
        raise PallavaError(f"the output '{folder}' is a file; give the name of a folder")
    found = [name for name in (KEPT, DROPPED, PAIRS, SUMMARY_NAME) if (folder / name).exists()]
    if found and not (folder / STORE).exists():
        raise PallavaError(f"'{folder}' holds {found[0]} but not {STORE}: not a cleaning run; give another folder")


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Report a full disk or a lack of rights with the folder; errors of files that are read name them already."""
    try:
        yield
    except OSError as error:
        raise PallavaError(f"cannot write into '{folder}': {error.strerror or error}") from None


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def _row(outcome: Outcome, paths: Mapping[str, str]) -> dict[str, Any]:
    record, shared = outcome.candidate.record, outcome.candidate.shared
    row = {**to_json(record), "path": paths[record.source] + record.image, "scores": outcome.scores}
    if "width" in shared:
        row["image_size"] = [shared["width"], shared["height"]]
    if outcome.filter_name:
        reason, _, detail = outcome.decision.reason.partition(" of ")
        row |= {"filter": outcome.filter_name, "reason": reason, "detail": detail, "score": outcome.decision.score}
    return row


def _count(outcome: Outcome, counts: dict[str, dict[str, Any]], filters: Sequence[Filter]) -> None:
    for each in filters:
        if outcome.candidate.kind in each.kinds:
            counts[each.name]["num_in"] += 1
        if each.name == outcome.filter_name:
            dropped, reason = counts[each.name]["dropped"], outcome.decision.reason.partition(" of ")[0]
            dropped[reason] = dropped.get(reason, 0) + 1
            return


def _summary(inputs: Sequence[Input], filters: Sequence[Filter], counts: dict[str, Any]) -> dict[str, Any]:
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
            "filters": counts["filters"][each.label],
            "num_kept": counts["num_kept"][each.label],
        }
    return {
        "num_records": sum(each["num_records"] for each in sources.values()),
        "num_kept": sum(counts["num_kept"].values()),
        "filters": [each.name for each in filters],
        "sources": sources,
    }


def _index_report(folder: Path, filters: Sequence[Filter]) -> dict[str, Any]:
    """Write which listed names match nothing, which several sources, and which entries are not names."""
    index = next((each for each in filters if isinstance(each, PublishedIndexFilter)), None)
    if index is None:
        (folder / INDEX_REPORT).unlink(missing_ok=True)
        return {}
    unmatched, ambiguous = list(index.unmatched()), list(index.ambiguous())
    with whole_file(folder / INDEX_REPORT, errors="replace") as file:
        file.writelines(f"several sources\t{name}\t{', '.join(sources)}\n" for name, sources in ambiguous)
        file.writelines(f"no match\t{name}\n" for name in unmatched)
        file.writelines(f"no name\t{entry}\n" for entry in index.unread)
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
