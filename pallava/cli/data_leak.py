"""Finds test rows whose image or question is in the training material, and writes which to exclude.

TRAIN and TEST are each a training file (JSONL), the kept.jsonl of `pallava data clean`, or NAME=ROOT of a public set.
Images are compared by perceptual hash, so that size and compression do not hide them. Questions are compared without
case, punctuation and options; short ones ("What is this?") meet by chance, so look at the counts before you exclude by
them. The hashes are kept in a file beside the report, where a stopped or repeated run finds them. Of a kept.jsonl of
several sources the rows are listed as SOURCE:ID; `pallava evaluate --exclude` takes the ids of one set.

Example:
  pallava data leak instruction.jsonl path-vqa=/data/pathvqa --train-images /data
"""

import argparse
import json
from pathlib import Path

from pallava.errors import PallavaError

_TURNED = "find mirrored test images and those turned by right angles, too"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("train", help="training material")
    parser.add_argument("test", help="evaluation set")
    parser.add_argument("--train-images", help="image folder of a training file")
    parser.add_argument("--test-images", help="image folder, where TEST is such a file")
    parser.add_argument("--train-split", help="where TRAIN is NAME=ROOT (default: train, of questions)")
    parser.add_argument("--test-split", help="where TEST is NAME=ROOT (default: test, of questions)")
    parser.add_argument("--out", default="leak.json", help="the report (default: %(default)s)")
    parser.add_argument("--distance", type=int, default=4, help="of 64 bits of the hash (default: %(default)s)")
    parser.add_argument("--turned", action="store_true", help=_TURNED)
    parser.add_argument(
        "--exclude-by",
        choices=("images", "questions", "both", "either"),
        default="either",
        help="what makes a test row one to exclude (default: %(default)s)",
    )
    parser.add_argument("--workers", type=int, help="processes (default: one a core, at most 16)")


def run(options: argparse.Namespace) -> int:
    """Compares, writes the report and the list beside it, prints a table."""
    from pallava.data.audit_rows import open_rows
    from pallava.data.image_hashes import HashCache
    from pallava.data.leak import audit
    from pallava.io.processes import default_num_workers

    out = Path(options.out)
    if out.is_dir():
        raise PallavaError(f"the report '{out}' is a folder; give the name of a file")
    train = open_rows(options.train, image_folder=options.train_images, split=options.train_split, usual_split="train")
    test = open_rows(options.test, image_folder=options.test_images, split=options.test_split, usual_split="test")
    cache = HashCache(out.with_suffix(".hashes.sqlite"))
    num_workers = default_num_workers() if options.workers is None else options.workers
    try:
        report = audit(
            train, test, cache, distance=options.distance, with_turns=options.turned, num_workers=num_workers
        )
    finally:
        cache.close()
    settings = {key: getattr(options, key) for key in ("train", "test", "distance", "turned", "exclude_by")}
    excluded = report.shared(options.exclude_by)
    list_path = out.with_suffix(".exclude.txt")
    _write(list_path, "".join(f"{row_id}\n" for row_id in excluded))
    _write(out, json.dumps({"settings": settings, **report.to_dict()}, indent=1, ensure_ascii=False) + "\n")
    _print(report)
    print(f"\n{out}: the report; {list_path}: {len(excluded)} ids to exclude, by {options.exclude_by}")
    return 0


def _write(path: Path, text: str) -> None:
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(text, encoding="utf-8", errors="replace")
    unfinished.replace(path)


def _print(report) -> None:  # type: ignore[no-untyped-def]  # its module is imported when the command runs
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
