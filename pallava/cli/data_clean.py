"""Drops what does not belong into the training of a human pathology model, and says why.

Sources are public data sets (pubmedvision, pmc-oa, quilt-1m, path-vqa, pmc-vqa) or pairs of your own (pairs). Into OUT
go kept.jsonl, dropped.jsonl, pairs.json (the captions), summary.json and index.html, a report to look at. Scores are
kept in OUT: a stopped run goes on by the same command, and with another threshold nothing is judged again.

The species rules have precision 0.969 and recall 0.969 for non-human on 193 captions held back from their tuning, by
`pytest -s tests/data/clean/test_species.py`.

Example:
  pallava data clean clean --source pubmedvision=/data/pubmedvision --source quilt-1m=/data/quilt
"""

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from pallava.errors import PallavaError

_INTERRUPTED = 130
_FILTERS = {
    "published-index": "images that are not on a list such as PCaption-0.5M's",
    "words": "captions of few words",
    "image": "missing, unreadable, truncated, too large or nearly empty images",
    "pathology": "other pictures than of pathology (--pathology metadata, clip or endpoint)",
    "species": "other material than human (--species rules or endpoint)",
    "duplicates": "the same image again, or nearly so, in all sources",
}
_JUDGE_OPTIONS = (
    "pathology",
    "clip_model",
    "clip_weights",
    "clip_threshold",
    "pathology_url",
    "pathology_model",
    "species",
    "species_url",
    "species_model",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    from pallava.data.clean.settings import CleanSettings as Default

    parser.epilog = _filter_table()
    add = parser.add_argument
    add("out", help="folder to write; one of an earlier run is gone on with")
    add("--source", action="append", required=True, metavar="NAME=ROOT", help="a data set and its folder; repeatable")
    add("--split", action="append", default=[], metavar="[NAME=]SPLIT", help="read one split of all sets, or of one")
    add("--image-policy", default="first", choices=["first", "each", "single-only"], help="rows with several images")
    add("--image-folder", help="what image paths are relative to (default: the folder above all roots)")
    add("--filters", help="of the filters below, by comma (default: all, or with a list: published-index,image)")
    add("--published-index", metavar="FILE", help="list of image names, as PA-LLaVA published it")
    add("--min-words", type=int, default=Default.min_words, help="of a caption (default: %(default)s)")
    add("--max-background", type=float, default=Default.max_background, help="without tissue (default: %(default)s)")
    add("--pathology", choices=["none", "metadata", "clip", "endpoint"], help="judge (default: metadata)")
    add("--clip-model", help="open_clip's name of a model, such as ViT-B-16 or hf-hub:ORGANIZATION/NAME")
    add("--clip-weights", help="open_clip's tag of weights, or a checkpoint")
    add("--clip-threshold", type=float, default=Default.clip_threshold, help="of 0 to 1 (default: %(default)s)")
    add("--pathology-url", help="of an OpenAI-compatible endpoint, such as http://localhost:8000/v1")
    add("--pathology-model", help="name of the vision-language model there")
    add("--species", choices=["none", "rules", "endpoint"], help="judge (default: rules)")
    add("--species-url", help="of an OpenAI-compatible endpoint")
    add("--species-model", help="name of the language model there")
    add("--concurrency", type=int, default=8, help="requests to an endpoint at a time (default: %(default)s)")
    add("--drop-unanswered", action="store_true", help="drop what an endpoint fails to answer; a later run asks again")
    add("--workers", type=int, default=None, help="processes that decode images (default: one a core, at most 16)")


def run(options: argparse.Namespace) -> int:
    """Cleans."""
    from pallava.data.clean.run import clean
    from pallava.data.clean.settings import Effort
    from pallava.io.processes import default_num_workers

    num_workers = default_num_workers() if options.workers is None else options.workers
    if num_workers < 1:
        raise PallavaError(f"the number of workers is {num_workers}; expected 1 or more")
    if options.concurrency < 1:
        raise PallavaError(f"the concurrency is {options.concurrency}; expected 1 or more")
    settings, effort = _settings(options), Effort(num_workers, options.concurrency)
    try:
        summary = clean(Path(options.out), settings, effort=effort)
    except KeyboardInterrupt:
        print("interrupted: what was judged is kept, and the same command goes on", file=sys.stderr)
        return _INTERRUPTED
    print_summary(summary, options.out)
    return 0


def print_summary(summary: dict[str, Any], out: str) -> None:
    """Prints what each source lost to each filter, the reasons, and the command to go on with."""
    header = ["source", "read", "unread", *summary["filters"], "kept"]
    rows = [header, *(_funnel_row(name, each) for name, each in summary["sources"].items())]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        print("  ".join([row[0].ljust(widths[0]), *cells]))
    print()
    for (name, reason), count in sorted(_reasons(summary).items()):
        print(f"  {name:16} {reason:24} {count:9}")
    _print_index(summary, out)
    print(f"\n{summary['num_kept']} of {summary['num_records']} records are kept, in {out}")
    if summary["num_pairs"]:
        words = ["--input", f"{out}/pairs.json", "--image-folder", summary["image_folder"]]
        print(f"go on with: python tools/dataformat.py {shlex.join([*words, '--output', f'{out}/train.jsonl'])}")


def _filter_table() -> str:
    from pallava.data.clean.filters import APPLIES_TO

    rows = [(name, ", ".join(sorted(kinds)), _FILTERS[name]) for name, kinds in APPLIES_TO.items()]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    lines = [f"  {name:<{widths[0]}}  {kinds:<{widths[1]}}  {what}" for name, kinds, what in rows]
    return "\n".join(["filters, what they look at, and what they drop:", *lines])


def _settings(options: argparse.Namespace) -> Any:
    from pallava.data.clean.settings import DEFAULT_FILTERS, INDEX_FILTERS, CleanSettings

    filters = INDEX_FILTERS if options.published_index else DEFAULT_FILTERS
    if options.filters is not None:
        filters = tuple(word.strip() for word in options.filters.split(",") if word.strip())
    for name in ("pathology", "species"):
        if getattr(options, name) not in (None, "none") and name not in filters:
            raise PallavaError(f"--{name} {getattr(options, name)} has no effect: add {name} to --filters")
    judges = {name: value for name in _JUDGE_OPTIONS if (value := getattr(options, name)) is not None}
    if options.clip_weights and Path(options.clip_weights).is_file():
        judges["clip_weights"] = _absolute(options.clip_weights)
    return CleanSettings(
        sources=_read_sources(options.source, options.split),
        image_folder=options.image_folder and _absolute(options.image_folder),
        image_policy=options.image_policy,
        filters=filters,
        min_words=options.min_words,
        max_background=options.max_background,
        published_index=options.published_index and _absolute(options.published_index),
        drop_unanswered=options.drop_unanswered,
        **judges,
    )


def _read_sources(sources: list[str], splits: list[str]) -> tuple[Any, ...]:
    from pallava.data.clean.settings import SourceSetting

    pairs = [text.partition("=") for text in sources]
    names = [name for name, _, _ in pairs]
    split_of: dict[str, str] = {}
    for text in splits:
        name, equals, split = text.partition("=")
        if equals and name not in names:
            raise PallavaError(f"--split {text} names no source; the sources are {', '.join(names)}")
        split_of.update({name: split} if equals else dict.fromkeys(names, name))
    for text, (name, equals, root) in zip(sources, pairs, strict=True):
        if not (name and equals and root):
            raise PallavaError(f"--source {text} is not NAME=ROOT; expected such as --source quilt-1m=/data/quilt")
    return tuple(SourceSetting(name, _absolute(root), split_of.get(name)) for name, _, root in pairs)


def _absolute(path: str) -> str:
    return str(Path(path).absolute())


def _funnel_row(name: str, source: dict[str, Any]) -> list[str]:
    dropped = [sum(each["dropped"].values()) for each in source["filters"].values()]
    counts = [source["num_records"], sum(source["unread"].values()), *dropped, source["num_kept"]]
    return [name, *map(str, counts)]


def _reasons(summary: dict[str, Any]) -> dict[tuple[str, str], int]:
    """Adds up the drops of all sources by filter and reason."""
    counts: dict[tuple[str, str], int] = {}
    for source in summary["sources"].values():
        parts = {"unread": source["unread"], **{name: each["dropped"] for name, each in source["filters"].items()}}
        for name, dropped in parts.items():
            for reason, count in dropped.items():
                counts[name, reason] = counts.get((name, reason), 0) + count
    return counts


def _print_index(summary: dict[str, Any], out: str) -> None:
    if found := summary.get("published_index"):
        print(
            f"\nof {found['num_names']} names on the list, {found['num_unmatched']} matched nothing and "
            f"{found['num_in_several_sources']} matched several sources; {found['num_without_name']} entries hold no "
            f"name: {out}/{found['report']}"
        )
