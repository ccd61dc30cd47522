"""A cleaning run in its folder: whole, one shard of it, or the merge of all shards."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pallava.data.clean.filters import Filter
from pallava.data.clean.outputs import DROPPED, KEPT, PAIRS, SUMMARY, Summary, image_folder_path, write_outputs
from pallava.data.clean.pipeline import WHOLE, Input, Outcome, Pipeline, Shard
from pallava.data.clean.settings import CleanSettings, Effort, make_filters, open_inputs
from pallava.errors import PallavaError
from pallava.io.store import Store

STORE = "scores.sqlite"
_SHARD_STORE = re.compile(r"scores\.shard-(\d+)-of-(\d+)\.sqlite")


@dataclass(frozen=True)
class _Run:
    folder: Path
    settings: CleanSettings
    inputs: Sequence[Input]
    filters: Sequence[Filter]
    image_folder: Path


def clean(
    folder: Path, settings: CleanSettings, *, shard: Shard = WHOLE, effort: Effort | None = None
) -> Summary | None:
    """Judges and decides; goes on where an earlier run in the folder stopped.

    Args:
        folder: Where scores and outputs go.
        settings: What to clean, and how.
        shard: The part to judge; with more than one, `merge` decides.
        effort: How much is done at a time.

    Returns:
        What ``summary.json`` holds; None for a shard.

    Raises:
        PallavaError: The settings do not fit each other or the disk, or the work cannot go on; scores stay.
    """
    _check_folder(folder)
    with _opened(folder, settings, effort) as run, _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with Store(folder / _store_name(shard)) as store:
            store.write("num_records", None)
            store.write("settings", settings.to_json())
            pipeline = _pipeline(run, store)
            pipeline.survey()
            store.write("num_records", pipeline.judge(shard))
            if shard.count > 1:
                return None
            summary = _write(run, pipeline.decide())
    _report(folder)
    return summary


def merge(folder: Path) -> Summary:
    """Decides on what all shards in a folder have judged.

    Returns:
        What ``summary.json`` holds.

    Raises:
        PallavaError: A shard is missing, not finished, or of other settings or records.
    """
    paths = _find_shards(folder)
    stored, num_records = _check_shards(paths)
    opened = _opened(folder, CleanSettings.from_json(stored))
    with opened as run, _writing(folder), Store(folder / STORE) as store:
        for path in paths:
            store.add_scores_of(path)
        store.write("settings", stored)
        store.write("num_records", num_records)
        pipeline = _pipeline(run, store)
        pipeline.survey()
        summary = _write(run, _counted(pipeline.decide(), num_records))
    _report(folder)
    return summary


@contextmanager
def _opened(folder: Path, settings: CleanSettings, effort: Effort | None = None) -> Iterator[_Run]:
    """Opens and checks everything before the first byte is written; ends the filters' processes at the end."""
    if not settings.sources:
        raise PallavaError("there is no source; give at least one, such as --source quilt-1m=/data/quilt")
    inputs = open_inputs(settings)
    roots = [each.source.root for each in inputs]
    image_folder = Path(settings.image_folder or os.path.commonpath([root.resolve() for root in roots]))
    for root in roots:
        image_folder_path(image_folder, root)
    filters = make_filters(settings, effort)
    with ExitStack() as stack:
        for each in filters:
            stack.callback(getattr(each, "close", lambda: None))
        yield _Run(folder, settings, inputs, filters, image_folder)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Makes one sentence of a full disk or a lack of rights; files that are read tell theirs themselves."""
    try:
        yield
    except OSError as error:
        raise PallavaError(f"cannot write into '{folder}': {error.strerror or error}") from None


def _pipeline(run: _Run, store: Store) -> Pipeline:
    return Pipeline(run.inputs, run.filters, store, drop_unanswered=run.settings.drop_unanswered)


def _write(run: _Run, outcomes: Iterator[Outcome]) -> Summary:
    roots = {each.label: str(each.source.root.resolve()) for each in run.inputs}
    settings = {**run.settings.to_json(), "roots": roots}
    return write_outputs(
        run.folder, outcomes, inputs=run.inputs, filters=run.filters, image_folder=run.image_folder, settings=settings
    )


def _report(folder: Path) -> None:
    from pallava.data.clean.report import write_report  # draws with matplotlib, which takes a second to import

    write_report(folder)


def _check_folder(folder: Path) -> None:
    """Refuses a folder whose files are not of a cleaning run: they would be replaced."""
    if folder.exists() and not folder.is_dir():
        raise PallavaError(f"the output '{folder}' is a file; give the name of a folder")
    found = [name for name in (KEPT, DROPPED, PAIRS, SUMMARY) if (folder / name).exists()]
    if found and not (folder / STORE).exists():
        raise PallavaError(
            f"'{folder}' holds {found[0]} but no {STORE}, so it is of no cleaning run; give another folder"
        )


def _store_name(shard: Shard) -> str:
    return STORE if shard.count == 1 else f"scores.shard-{shard.index}-of-{shard.count}.sqlite"


def _find_shards(folder: Path) -> list[Path]:
    """Gives the stores of all shards in order.

    Raises:
        PallavaError: One is missing, or there are two sets of them.
    """
    matches = [match for path in sorted(folder.glob("scores.shard-*")) if (match := _SHARD_STORE.fullmatch(path.name))]
    counts = sorted({int(match[2]) for match in matches})
    if not counts:
        raise PallavaError(f"'{folder}' holds no shard; make them with `pallava data clean ... --shard 1/2` and so on")
    if len(counts) > 1:
        raise PallavaError(
            f"'{folder}' holds shards of {' and of '.join(map(str, counts))}; move those of one set away"
        )
    shards = [Shard(index, counts[0]) for index in range(1, counts[0] + 1)]
    missing = [f"{each.index}/{each.count}" for each in shards if not (folder / _store_name(each)).is_file()]
    if missing:
        raise PallavaError(
            f"in '{folder}' shard {', '.join(missing)} is missing; run its command, or copy its file here"
        )
    return [folder / _store_name(each) for each in shards]


def _check_shards(paths: Sequence[Path]) -> tuple[dict[str, Any], int]:
    """Gives the settings and the number of records that all shards share."""
    found: list[tuple[dict[str, Any], int]] = []
    for path in paths:
        with Store(path) as store:
            settings, num_records = store.read("settings"), store.read("num_records")
        if settings is None or num_records is None:
            raise PallavaError(f"'{path}' is not finished; run the command of that shard again, which goes on")
        for name, value in settings.items():
            if found and (first := found[0][0].get(name)) != value:
                raise PallavaError(
                    f"'{paths[0]}' and '{path}' are of other settings: {name} is {first!r} and {value!r}; "
                    "run the shards with the same options"
                )
        if found and found[0][1] != num_records:
            raise PallavaError(
                f"'{paths[0]}' was made from {found[0][1]} records and '{path}' from {num_records}; "
                "the machines do not have the same files"
            )
        found.append((settings, num_records))
    return found[0]


def _counted(outcomes: Iterator[Outcome], num_expected: int) -> Iterator[Outcome]:
    count = 0
    for outcome in outcomes:
        count += 1
        yield outcome
    if count != num_expected:
        raise PallavaError(f"the shards judged {num_expected} records, and here are {count}; are the files the same?")
