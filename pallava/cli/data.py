"""The commands on data: `data unpack`, `data prepare`, `data check`, `data clean`, `data instruct` and `data leak`."""

import argparse
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

from pallava.cli.options import Workers, add_parameters
from pallava.data.material import COLUMNS_HELP, add_source_options, read_columns, read_source, read_sources
from pallava.errors import PallavaError, check_at_least
from pallava.io.archives import MAX_GB, unpack
from pallava.io.files import write_json
from pallava.io.processes import default_num_workers

_INTERRUPTED = 130
_NUM_WORKERS = default_num_workers()
_TOKENIZER = "name or folder of the tokenizer: the config's llm_name_or_path"
_Template = Annotated[
    str | None,
    "name of the prompt template, or `tokenizer` for the tokenizer's own chat template (default: that of its family)",
]
_ContextLength = Annotated[int, "maximum number of tokens in a row"]
_NumVisualTokens = Annotated[int, "maximum number of tokens per image"]


def run_data_unpack(
    archive: Annotated[list[str], "zip, tar or tar.gz file; its content decides which"],
    out: Annotated[str, "folder to make; it must not exist"],
    flat: Annotated[bool, "leave out the folders in the archives"] = False,
    max_gb: Annotated[float, "maximum unpacked size in GB"] = MAX_GB,
) -> None:
    """Unpack downloaded zip, tar or tar.gz files into one new folder, or refuse them as a whole."""
    if not max_gb > 0:
        raise PallavaError(f"--max-gb must be above 0, got {max_gb:g}")
    unpacked = unpack(archive, out, max_gb=max_gb, is_flat=flat)
    print(f"{out}: {unpacked.num_files} files, {unpacked.num_bytes / 1e9:.2f} GB")


def run_data_prepare(
    data: Annotated[str, "JSONL or JSON training file, or a folder of such files"],
    out: Annotated[str, "output folder; must not exist"],
    *,
    tokenizer: Annotated[str, _TOKENIZER],
    prompt_template: _Template = None,
    context_length: _ContextLength = 2048,
    num_visual_tokens: _NumVisualTokens = 196,
    workers: Annotated[int, "number of processes"] = 1,
) -> None:
    """Tokenize training files ahead of training into a folder that a config's data_path can name."""
    if Path(out).exists():
        raise PallavaError(f"'{out}' exists already; give another folder, or remove it")
    from pallava.data.tokenize import prepare
    from pallava.data.training_row import EncodingSettings
    from pallava.model.loading import load_tokenizer

    check_at_least(1, workers=workers)
    loaded = load_tokenizer(tokenizer)
    settings = EncodingSettings.make(loaded, prompt_template, context_length, num_visual_tokens)
    prepared = prepare(data, loaded, settings, num_workers=workers, out=out)
    print(f"{Path(out)}: {prepared.describe()}")


def run_data_check(
    path: Annotated[str, "JSONL or JSON list of {id, image, conversations}", {"metavar": "file"}],
    *,
    image_folder: Annotated[str, "folder that image names are relative to"],
    decode_images: Annotated[bool, "decode every image, not only its header", "--decode"] = False,
    tokenizer: Annotated[str | None, f"{_TOKENIZER}; counts the tokens of each row"] = None,
    prompt_template: _Template = None,
    context_length: _ContextLength = 2048,
    num_visual_tokens: _NumVisualTokens = 196,
    num_workers: Workers = _NUM_WORKERS,
) -> int:
    """Check a training file before training: images, markers, turns, answers, ids and, with a tokenizer, the length."""
    from pallava.data.check import check_training_file

    check_at_least(1, workers=num_workers, context_length=context_length, num_visual_tokens=num_visual_tokens)
    report = check_training_file(
        path,
        image_folder,
        decode_images=decode_images,
        tokenizer=tokenizer,
        prompt_template=prompt_template,
        context_length=context_length,
        num_visual_tokens=num_visual_tokens,
        num_workers=num_workers,
    )
    print(f"{report.num_faulty} of {report.num_rows} rows of {path} are at fault")
    for reason, count in report.faults.items():
        is_skipped = reason == "over_room" and not tokenizer
        print(f"  {reason:<18}{'not checked: give --tokenizer' if is_skipped else f'{count:>8}'}")
        for example in report.examples[reason]:
            print(f"    {example}")
    return int(report.num_faulty > 0)


def add_data_clean_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments, which are those of the settings."""
    from pallava.data.clean.settings import FILTERS, CleanSettings
    from pallava.report.table import Table

    rows = [[f"  {name}", ", ".join(sorted(each.kinds)), each.drops] for name, each in FILTERS.items()]
    parser.epilog = Table("filters:", ["  name", "looks at", "drops"], rows, is_text=True).to_text()
    parser.add_argument("out", help="output folder; an unfinished run in it is resumed")
    add_source_options(parser, kinds=("captions", "questions"))
    add_parameters(parser, CleanSettings)


def run_data_clean(source: list[str], split: list[str], out: str, **settings: Any) -> int:
    """Drop what does not belong into the training of a human pathology model, and say why."""
    from pallava.data.clean.report import describe
    from pallava.data.clean.run import clean

    try:
        summary = clean(source, out, splits=split, **settings)
    except KeyboardInterrupt:
        print("interrupted: scores so far are kept, and the same command resumes", file=sys.stderr)
        return _INTERRUPTED
    print(describe(summary, out))
    if summary["num_pairs"]:
        words = ["--input", f"{out}/pairs.json", "--image-folder", summary["image_folder"]]
        print(f"next: python tools/dataformat.py {shlex.join([*words, '--output', f'{out}/train.jsonl'])}")
    return 0


def add_data_instruct_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_source_options(parser, also=", or a kept.jsonl", default_split="train")
    add_parameters(parser, run_data_instruct)


def run_data_instruct(
    source: list[str],
    split: list[str],
    columns: str | None,
    out: Annotated[str, "JSONL file to write; an older one is replaced at the end"],
    weights: Annotated[str, "number of times to take each row, such as path-vqa=2,pmc-vqa=0.5 (default: 1)"] = "",
    seed: Annotated[int, "seed of the order and of fractions"] = 0,
    image_folder: Annotated[
        str | None, "folder to which image names become relative (default: the one above all roots)"
    ] = None,
    report: Annotated[str | None, "JSON file for the counts", {"metavar": "FILE"}] = None,
) -> None:
    """Write the training file of instruction tuning from sources of questions."""
    from pallava.data.training_file import write_training_file

    summary = write_training_file(
        read_sources(source, split, columns, default_split="train"),
        out,
        image_folder=image_folder,
        weights=_read_weights(weights),
        seed=seed,
    )
    print(f"{'source':<16}{'records':>10}{'questions':>11}{'weight':>8}{'rows':>10}")
    for name, count in summary.sources.items():
        print(f"{name:<16}{count.num_records:>10}{count.num_questions:>11}{count.weight:>8g}{count.num_written:>10}")
        for reason, number in count.dropped.items():
            print(f"  left out: {reason:<18}{number:>6}, as {'; '.join(summary.examples.get(reason, [])[:1])}")
    print(f"\nwrote {summary.num_written} rows to {out}; image folder: {summary.image_folder}")
    print(f"next: pallava data check {out} --image-folder {summary.image_folder}")
    if report:
        write_json(report, summary.to_dict())


def _read_weights(text: str) -> dict[str, float]:
    parts = (part.partition("=") for part in text.split(",") if part)
    try:
        return {name.strip(): float(number) for name, _, number in parts}
    except ValueError:
        raise PallavaError(f"--weights must be NAME=NUMBER,..., such as path-vqa=2, got {text!r}") from None


def run_data_leak(
    train: Annotated[str, "training material"],
    test: Annotated[str, "evaluation set"],
    train_images: Annotated[str | None, "image folder of TRAIN, if that is a training file or csv=FILE"] = None,
    test_images: Annotated[str | None, "image folder of TEST, if that is a training file or csv=FILE"] = None,
    train_split: Annotated[str | None, "split of TRAIN, if that is NAME=ROOT (default: train, for questions)"] = None,
    test_split: Annotated[str | None, "split of TEST, if that is NAME=ROOT (default: test, for questions)"] = None,
    columns: Annotated[str | None, COLUMNS_HELP, {"metavar": "KEY=COLUMN,..."}] = None,
    out: Annotated[str, "JSON file for the report"] = "leak.json",
    distance: Annotated[int, "maximum distance of 64-bit hashes in bits, 0 to 10"] = 4,
    with_turns: Annotated[
        bool, "search for mirrored test images and those turned by right angles, too", "--turned"
    ] = False,
    num_workers: Workers = _NUM_WORKERS,
) -> None:
    """Find test rows whose image or question is in the training material, and list which to exclude."""
    from pallava.data.leak import write_leak_report

    check_at_least(1, workers=num_workers)
    read = read_columns(columns)
    report = write_leak_report(
        read_source(train, split=train_split, columns=read, default_split="train"),
        read_source(test, split=test_split, columns=read, default_split="test"),
        out,
        train_images=train_images,
        test_images=test_images,
        distance=distance,
        with_turns=with_turns,
        num_workers=num_workers,
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
    exclude = Path(out).with_suffix(".exclude.txt")
    print(f"\n{out}: report; {exclude}: {len(report.leaks)} ids to exclude")
