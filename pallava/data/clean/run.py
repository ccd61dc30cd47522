"""A cleaning run in its folder, and the files that it writes."""

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from pallava.data.clean.filters import Filter
from pallava.data.clean.pipeline import Outcome, Pipeline
from pallava.data.clean.published_index import PublishedIndexFilter
from pallava.data.clean.report import write_report
from pallava.data.clean.settings import DROPPED, KEPT, CleanSettings, make_engine, make_filters
from pallava.data.material import SUMMARY_NAME, read_sources
from pallava.data.sources import SOURCES, Source
from pallava.data.sources.base import Pair, to_json
from pallava.errors import PallavaError, check_paths
from pallava.io.files import remove_leftovers, whole_file, write_json
from pallava.io.store import Store

_STORE, _PAIRS, _INDEX_REPORT = "scores.sqlite", "pairs.json", "published_index.txt"
_MAX_EXAMPLES = 3
_to_line = partial(json.dumps, ensure_ascii=False)


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
    if not sources:
        raise PallavaError("sources must hold at least one NAME=ROOT, such as quilt-1m=/data/quilt, got none")
    check_paths(sources, out)
    folder = Path(out)
    chosen = CleanSettings.create(read_sources(sources, splits, columns), settings)
    _check_folder(folder)
    inputs = _open_sources(chosen)
    roots = {label: source.root.resolve() for label, source in inputs.items()}
    image_folder = Path(chosen.image_folder or os.path.commonpath(roots.values()))
    paths = {label: _relative_root(image_folder, source.root) for label, source in inputs.items()}
    filters, engine = make_filters(chosen), make_engine(chosen)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with Store(folder / _STORE) as store:
            for name in (KEPT, DROPPED, _PAIRS):  # of a killed run, gigabytes of them
                remove_leftovers(folder / name)
            pipeline = Pipeline(inputs, filters, store, chosen.drop_unanswered, engine)
            pipeline.survey()
            pipeline.judge()
            counts = _write_outcomes(folder, pipeline.decide(), inputs, filters, paths)
        summary = _summary(inputs, filters, counts, image_folder)
        summary["settings"] = {**chosen.to_json(), "roots": {label: str(root) for label, root in roots.items()}}
        summary |= _index_report(folder, filters)
        write_json(folder / SUMMARY_NAME, summary, ensure_ascii=False)
    except OSError as error:  # a full disk or a lack of rights; errors of files that are read are PallavaErrors
        raise PallavaError(f"cannot write into '{folder}': {error.strerror or error}") from None
    finally:
        for each in filters:
            each.close()
        engine.close()
    write_report(folder)
    return summary


def _open_sources(settings: CleanSettings) -> dict[str, Source]:
    """Open the sources under their names in the output: their own, or "pairs-2" for the second of a name."""
    opened: dict[str, Source] = {}
    for index, spec in enumerate(settings.sources, 1):
        if not spec.name:
            raise PallavaError(f"a source must be NAME=ROOT, such as quilt-1m=/data/quilt, got '{spec.root}'")
        if SOURCES[spec.name].kind == "classes":
            raise PallavaError(f"'{spec.name}' is a set of classes; only captions and questions can be cleaned")
        count = [each.name for each in settings.sources[:index]].count(spec.name)
        folder = settings.image_folder if spec.columns else None
        source = spec.open(image_policy=settings.image_policy, image_folder=folder)
        opened[spec.name if count == 1 else f"{spec.name}-{count}"] = source
    return opened


def _relative_root(image_folder: Path, root: Path) -> str:
    """Return a root relative to the image folder, with a closing slash unless they are the same."""
    try:
        relative = root.resolve().relative_to(image_folder.resolve()).as_posix()
    except ValueError:
        raise PallavaError(
            f"the root '{root}' is not in the image folder '{image_folder}'; give a folder above all roots"
        ) from None
    return "" if relative == "." else f"{relative}/"


def _check_folder(folder: Path) -> None:
    """Refuse a folder whose files are not of a cleaning run: they would be replaced."""
    if folder.exists() and not folder.is_dir():
        raise PallavaError(f"the output '{folder}' is a file; give the name of a folder")
    found = [name for name in (KEPT, DROPPED, _PAIRS, SUMMARY_NAME) if (folder / name).exists()]
    if found and not (folder / _STORE).exists():
        raise PallavaError(f"'{folder}' holds {found[0]} but not {_STORE}: not a cleaning run; give another folder")


def _write_outcomes(
    folder: Path,
    outcomes: Iterable[Outcome],
    inputs: Mapping[str, Source],
    filters: Sequence[Filter],
    paths: Mapping[str, str],
) -> dict[str, dict[str, Any]]:
    """Write kept and dropped records and the pairs, and return the counts of each source.

    Earlier files are replaced once everything is complete; the summary of an earlier run is removed before, so that a
    summary always belongs to the files beside it.
    """
    counts: dict[str, dict[str, Any]] = {
        label: {"filters": {each.name: {"num_in": 0, "dropped": Counter()} for each in filters}, "num_kept": 0}
        for label in inputs
    }
    separator = "[\n"
    has_pairs = any(source.kind == "captions" for source in inputs.values())
    names = [KEPT, DROPPED, *([_PAIRS] if has_pairs else [])]
    with ExitStack() as stack:
        files = {name: stack.enter_context(whole_file(folder / name, errors="replace")) for name in names}
        for outcome in outcomes:
            row, record, is_kept = _row(outcome, paths), outcome.candidate.record, outcome.decision.keep
            _count(outcome, counts[record.source]["filters"], filters)
            counts[record.source]["num_kept"] += is_kept
            files[KEPT if is_kept else DROPPED].write(_to_line(row) + "\n")
            if is_kept and isinstance(record, Pair):
                files[_PAIRS].write(separator + _to_line({"image": row["path"], "caption": record.text}))
                separator = ",\n"
        if has_pairs:
            files[_PAIRS].write("[]\n" if separator == "[\n" else "\n]\n")
        for file in files.values():  # a full disk shows here, while everything of an earlier run is in its place
            file.flush()
            os.fsync(file.fileno())
        (folder / SUMMARY_NAME).unlink(missing_ok=True)
        if not has_pairs:
            (folder / _PAIRS).unlink(missing_ok=True)
    return counts


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
        counts[each.name]["num_in"] += outcome.candidate.kind in each.kinds
        if each.name == outcome.filter_name:
            counts[each.name]["dropped"][outcome.decision.reason.partition(" of ")[0]] += 1
            return


def _summary(
    inputs: Mapping[str, Source], filters: Sequence[Filter], counts: dict[str, dict[str, Any]], image_folder: Path
) -> dict[str, Any]:
    sources = {
        label: {
            "name": source.name,
            "kind": source.kind,
            "root": str(source.root.resolve()),
            "num_records": source.tally.num_records,
            "unread": dict(source.tally.dropped),
            "unread_examples": dict(source.tally.examples),
            **counts[label],
        }
        for label, source in inputs.items()
    }
    return {
        "num_records": sum(each["num_records"] for each in sources.values()),
        "num_kept": sum(each["num_kept"] for each in sources.values()),
        "filters": [each.name for each in filters],
        "sources": sources,
        "image_folder": str(image_folder),
        "num_pairs": sum(each["num_kept"] for each in sources.values() if each["kind"] == "captions"),
    }


def _index_report(folder: Path, filters: Sequence[Filter]) -> dict[str, Any]:
    """Write which listed names match nothing, which several sources, and which entries are not names."""
    index = next((each for each in filters if isinstance(each, PublishedIndexFilter)), None)
    if index is None:
        (folder / _INDEX_REPORT).unlink(missing_ok=True)
        return {}
    unmatched, ambiguous = index.unmatched(), index.ambiguous()
    with whole_file(folder / _INDEX_REPORT, errors="replace") as file:
        file.writelines(f"several sources\t{name}\t{', '.join(sources)}\n" for name, sources in ambiguous)
        file.writelines(f"no match\t{name}\n" for name in unmatched)
        file.writelines(f"no name\t{entry}\n" for entry in index.unread)
    return {
        "published_index": {
            "num_names": len(index.names),
            "num_unmatched": len(unmatched),
            "num_in_several_sources": len(ambiguous),
            "num_without_name": len(index.unread),
            "unmatched_examples": unmatched[:_MAX_EXAMPLES],
            "several_sources_examples": [[name, sources] for name, sources in ambiguous[:_MAX_EXAMPLES]],
            "without_name_examples": index.unread[:_MAX_EXAMPLES],
            "report": _INDEX_REPORT,
        }
    }
