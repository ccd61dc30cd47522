"""Find test rows whose image or question is in the training material, and list which to exclude.

TRAIN and TEST are each a training file (JSONL), the kept.jsonl of `pallava data clean`, or NAME=ROOT of a data set
(csv=FILE with --columns). Images are compared by perceptual hash, so that size and compression do not hide them.
Questions are compared without case, punctuation and options; short ones ("What is this?") match by chance, so look at
the counts before excluding: the report lists for each row which of the two it shares. Hashes are kept in a file beside
the report, from which a stopped or repeated run resumes. Rows of a kept.jsonl of several sources are listed as
SOURCE:ID; `pallava evaluate --exclude` takes the ids of one set.

Example:
  pallava data leak instruction.jsonl path-vqa=/data/pathvqa --train-images /data
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pallava.data.leak import LeakReport


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    from pallava.data.material import add_columns_option

    add = parser.add_argument
    add("train", help="training material")
    add("test", help="evaluation set")
    add("--train-images", help="image folder of TRAIN, if that is a training file or csv=FILE")
    add("--test-images", help="image folder of TEST, if that is a training file or csv=FILE")
    add("--train-split", help="split of TRAIN, if that is NAME=ROOT (default: train, for questions)")
    add("--test-split", help="split of TEST, if that is NAME=ROOT (default: test, for questions)")
    add_columns_option(parser)
    add("--out", default="leak.json", help="JSON file for the report (default: %(default)s)")
    add(
        "--distance",
        type=int,
        default=4,
        help="maximum number of bits, 0 to 10, in which the 64-bit hashes of one image may differ "
        "(default: %(default)s)",
    )
    add("--turned", action="store_true", help="search for mirrored test images and those turned by right angles, too")
    add("--workers", type=int, help="number of processes (default: one for each core, at most 16)")


def run(options: argparse.Namespace) -> int:
    """Compare, write the report and the list beside it, and print a table."""
    from pallava.data.leak import write_leak_report
    from pallava.data.material import read_columns, read_source
    from pallava.io.processes import default_num_workers

    columns = read_columns(options.columns)
    report = write_leak_report(
        read_source(options.train, split=options.train_split, columns=columns, default_split="train"),
        read_source(options.test, split=options.test_split, columns=columns, default_split="test"),
        options.out,
        train_images=options.train_images,
        test_images=options.test_images,
        distance=options.distance,
        with_turns=options.turned,
        num_workers=default_num_workers() if options.workers is None else options.workers,
    )
    _print(report)
    print(
        f"\n{options.out}: report; {Path(options.out).with_suffix('.exclude.txt')}: {len(report.leaks)} ids to exclude"
    )
    return 0


def _print(report: LeakReport) -> None:
    print(f"training: {report.num_train_rows} rows, {report.num_train_images} images")
    print(f"test:     {report.num_test_rows} rows, {report.num_test_images} images\n")
    print(f"{'test rows that share':<38}{'rows':>8}{'share':>9}")
    names = {"images": "an image", "questions": "a question", "both": "both", "either": "one or the other"}
    for what, name in names.items():
        count = len(report.shared(what))
        print(f"  {name:<36}{count:>8}{count / max(report.num_test_rows, 1):>9.1%}")
    if report.distances:
        print(f"\n{'test images found at distance':<38}{'images':>8}")
        for distance, count in sorted(report.distances.items()):
            print(f"  {distance:<36}{count:>8}")
    for problem, count in sorted(report.problems.items()):
        print(f"not compared: {problem}: {count} images")
