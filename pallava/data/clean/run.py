"""A cleaning run in its folder."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from pallava.data.clean.filters import Filter
from pallava.data.clean.outputs import DROPPED, KEPT, PAIRS, SUMMARY, Summary, image_folder_path, write_outputs
from pallava.data.clean.pipeline import Input, Outcome, Pipeline
from pallava.data.clean.settings import CleanSettings, Effort, make_filters, open_inputs
from pallava.errors import PallavaError
from pallava.io.store import Store

STORE = "scores.sqlite"


@dataclass(frozen=True)
class _Run:
    folder: Path
    settings: CleanSettings
    inputs: Sequence[Input]
    filters: Sequence[Filter]
    image_folder: Path


def clean(folder: Path, settings: CleanSettings, *, effort: Effort | None = None) -> Summary:
    """Judges and decides; goes on where an earlier run in the folder stopped.

    Args:
        folder: Where scores and outputs go.
        settings: What to clean, and how.
        effort: How much is done at a time.

    Returns:
        What ``summary.json`` holds.

    Raises:
        PallavaError: The settings do not fit each other or the disk, or the work cannot go on; scores stay.
    """
    _check_folder(folder)
    with _opened(folder, settings, effort) as run, _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with Store(folder / STORE) as store:
            store.write("settings", settings.to_json())
            pipeline = _pipeline(run, store)
            pipeline.survey()
            pipeline.judge()
            summary = _write(run, pipeline.decide())
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
