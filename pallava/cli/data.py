"""The commands of data but for cleaning: ``unpack``, ``prepare``, ``check``, ``instruct`` and ``leak``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pallava.errors import PallavaError
from pallava.io.archives import MAX_GB, unpack
from pallava.io.files import write_json
from pallava.io.processes import default_num_workers

_TOKENIZER = "name or folder of the tokenizer: the config's llm_name_or_path"
_WORKERS = "number of processes (default: one for each core, at most 16)"


def add_unpack_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``data unpack``."""
    add = parser.add_argument
    add("archive", nargs="+", help="zip, tar or tar.gz file; its content decides which")
    add("out", help="folder to make; it must not exist")
    add("--flat", action="store_true", help="leave out the folders in the archives")
    add("--max-gb", type=float, default=MAX_GB, help="maximum unpacked size in GB (default: %(default)g)")


def run_unpack(options: argparse.Namespace) -> int:
    """Unpack downloaded zip, tar or tar.gz files into one new folder, or refuse them as a whole.

    An archive is refused if a member would leave the folder, is a link, a device or encrypted, or if it unpacks to more
    than it declares, than is plausible for its size, or than --max-gb. Archives inside of an archive are left packed.
    Files get the dates that the archive records.

    Examples:
      pallava data unpack downloads/images_2.zip data/PMC-VQA/images_2
      pallava data unpack downloads/images_*.zip data/PubMedVision/images --flat
    """
    if not options.max_gb > 0:
        raise PallavaError(f"--max-gb must be above 0, got {options.max_gb:g}")
    unpacked = unpack(options.archive, options.out, max_gb=options.max_gb, is_flat=options.flat)
    print(f"{options.out}: {unpacked.num_files} files, {unpacked.num_bytes / 1e9:.2f} GB")
    return 0


def add_prepare_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``data prepare``."""
    parser.add_argument("data", help="JSONL or JSON training file, or a folder of such files")
    parser.add_argument("out", help="output folder; must not exist")
    parser.add_argument("--tokenizer", required=True, help=_TOKENIZER)
    _add_room_arguments(parser)
    parser.add_argument("--workers", type=int, default=1, help="number of processes (default: %(default)s)")


def _add_room_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--prompt-template", default="llama3_chat", help="name of the chat template (default: %(default)s)")
    add("--context-length", type=int, default=2048, help="maximum number of tokens in a row (default: %(default)s)")
    add("--num-visual-tokens", type=int, default=196, help="maximum number of tokens per image (default: %(default)s)")


def _room(options: argparse.Namespace) -> dict[str, Any]:
    return {key: getattr(options, key) for key in ("prompt_template", "context_length", "num_visual_tokens")}


def run_prepare(options: argparse.Namespace) -> int:
    """Tokenize training files ahead of training into a folder that a config's data_path can name.

    Training does the same by itself and keeps the result in a cache; do it ahead for a large set, or where the nodes
    share no cache. The settings must be those of the config.

    Example:
      pallava data prepare data/align.jsonl data/align --tokenizer meta-llama/Meta-Llama-3-8B-Instruct
    """
    out = Path(options.out)
    if out.exists():
        raise PallavaError(f"'{out}' exists already; give another folder, or remove it")
    from pallava.data.tokenize import prepare
    from pallava.data.training_row import EncodingSettings
    from pallava.model.loading import load_tokenizer

    tokenizer = load_tokenizer(options.tokenizer)
    settings = EncodingSettings.make(tokenizer, **_room(options))
    prepared = prepare(options.data, tokenizer, settings, num_workers=options.workers, out=out)
    print(f"{out}: {prepared.describe()}")
    return 0


def add_check_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``data check``."""
    parser.add_argument("file", help="JSONL or JSON list of {id, image, conversations}")
    parser.add_argument("--image-folder", required=True, help="folder that image names are relative to")
    parser.add_argument("--decode", action="store_true", help="decode every image, not only its header")
    parser.add_argument("--tokenizer", help=f"{_TOKENIZER}; counts the tokens of each row")
    _add_room_arguments(parser)
    parser.add_argument("--workers", type=int, default=default_num_workers(), help=_WORKERS)


def run_check(options: argparse.Namespace) -> int:
    """Check a training file before training: images, markers, turns, answers, ids and, with a tokenizer, the length.

    The exit code is 0 if no row has a fault, 1 if any has, 2 if the check could not be made.

    Example:
      pallava data check instruction.jsonl --image-folder /data --decode --tokenizer meta-llama/Meta-Llama-3-8B-Instruct
    """
    from pallava.data.check import check_training_file

    report = check_training_file(
        options.file,
        options.image_folder,
        decode_images=options.decode,
        tokenizer=options.tokenizer,
        num_workers=options.workers,
        **_room(options),
    )
    print(f"{report.num_faulty} of {report.num_rows} rows of {options.file} are at fault")
    for reason, count in report.faults.items():
        is_skipped = reason == "over_room" and not options.tokenizer
        print(f"  {reason:<18}{'not checked: give --tokenizer' if is_skipped else f'{count:>8}'}")
        for example in report.examples[reason]:
            print(f"    {example}")
    return int(report.num_faulty > 0)


def add_instruct_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``data instruct``."""
    from pallava.data.material import add_source_options

    add = parser.add_argument
    add("out", help="JSONL file to write; an older one is replaced at the end")
    add_source_options(parser, also=", or a kept.jsonl", default_split="train")
    add("--weights", default="", help="number of times to take each row, such as path-vqa=2,pmc-vqa=0.5 (default: 1)")
    add("--seed", type=int, default=0, help="seed of the order and of fractions (default: %(default)s)")
    add("--image-folder", help="folder to which image names become relative (default: the one above all roots)")
    add("--report", metavar="FILE", help="JSON file for the counts")


def run_instruct(options: argparse.Namespace) -> int:
    """Write the training file of instruction tuning from sources of questions.

    Each source is NAME=ROOT, csv=FILE with --columns, or the kept.jsonl of `pallava data clean`. All training questions
    of PathVQA and the 15,788 of PMC-VQA that PA-LLaVA kept make its 35,543 rows.

    Examples:
      pallava data instruct instruction.jsonl --source path-vqa=/data/pathvqa --source clean/kept.jsonl
      pallava data instruct mine.jsonl --source csv=mine.csv --columns image=file,question=text,answer=diagnosis
    """
    from pallava.data.material import read_sources
    from pallava.data.training_file import write_training_file

    summary = write_training_file(
        read_sources(options.source, options.split, options.columns, default_split="train"),
        options.out,
        image_folder=options.image_folder,
        weights=_read_weights(options.weights),
        seed=options.seed,
    )
    print(f"{'source':<16}{'records':>10}{'questions':>11}{'weight':>8}{'rows':>10}")
    for name, count in summary.sources.items():
        print(f"{name:<16}{count.num_records:>10}{count.num_questions:>11}{count.weight:>8g}{count.num_written:>10}")
        for reason, number in count.dropped.items():
            print(f"  left out: {reason:<18}{number:>6}, as {'; '.join(summary.examples.get(reason, [])[:1])}")
    print(f"\nwrote {summary.num_written} rows to {options.out}; image folder: {summary.image_folder}")
    print(f"next: pallava data check {options.out} --image-folder {summary.image_folder}")
    if options.report:
        write_json(options.report, summary.to_dict())
    return 0


def _read_weights(text: str) -> dict[str, float]:
    parts = (part.partition("=") for part in text.split(",") if part)
    try:
        return {name.strip(): float(number) for name, _, number in parts}
    except ValueError:
        raise PallavaError(f"--weights must be NAME=NUMBER,..., such as path-vqa=2, got {text!r}") from None


def add_leak_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``data leak``."""
    from pallava.data.material import COLUMNS_HELP

    add = parser.add_argument
    add("train", help="training material")
    add("test", help="evaluation set")
    add("--train-images", help="image folder of TRAIN, if that is a training file or csv=FILE")
    add("--test-images", help="image folder of TEST, if that is a training file or csv=FILE")
    add("--train-split", help="split of TRAIN, if that is NAME=ROOT (default: train, for questions)")
    add("--test-split", help="split of TEST, if that is NAME=ROOT (default: test, for questions)")
    add("--columns", metavar="KEY=COLUMN,...", help=COLUMNS_HELP)
    add("--out", default="leak.json", help="JSON file for the report (default: %(default)s)")
    add("--distance", type=int, default=4, help="maximum distance of 64-bit hashes in bits, 0 to 10 (default: 4)")
    add("--turned", action="store_true", help="search for mirrored test images and those turned by right angles, too")
    add("--workers", type=int, default=default_num_workers(), help=_WORKERS)


def run_leak(options: argparse.Namespace) -> int:
    """Find test rows whose image or question is in the training material, and list which to exclude.

    TRAIN and TEST are each a training file (JSONL), the kept.jsonl of `pallava data clean`, or NAME=ROOT of a data set
    (csv=FILE with --columns). Images are compared by perceptual hash, so that size and compression do not hide them.
    Questions are compared without case, punctuation and options; short ones ("What is this?") match by chance, so look
    at the counts before excluding: the report lists for each row which of the two it shares. Hashes are kept in a file
    beside the report, from which a stopped or repeated run resumes. Rows of a kept.jsonl of several sources are listed
    as SOURCE:ID; `pallava evaluate --exclude` takes the ids of one set.

    Example:
      pallava data leak instruction.jsonl path-vqa=/data/pathvqa --train-images /data
    """
    from pallava.data.leak import write_leak_report
    from pallava.data.material import read_columns, read_source

    columns = read_columns(options.columns)
    report = write_leak_report(
        read_source(options.train, split=options.train_split, columns=columns, default_split="train"),
        read_source(options.test, split=options.test_split, columns=columns, default_split="test"),
        options.out,
        train_images=options.train_images,
        test_images=options.test_images,
        distance=options.distance,
        with_turns=options.turned,
        num_workers=options.workers,
    )
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
    for reason, count in sorted(report.rows_not_compared.items()):
        print(f"not compared: {reason}: {count} rows")
    exclude = Path(options.out).with_suffix(".exclude.txt")
    print(f"\n{options.out}: report; {exclude}: {len(report.leaks)} ids to exclude")
    return 0
