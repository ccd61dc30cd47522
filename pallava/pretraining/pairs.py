"""Pairs of image and caption as open_clip's trainer reads them, a table or WebDataset shards, and their batches."""

import argparse
import csv
import io
import json
import math
from pathlib import Path

import webdataset
from tqdm import tqdm

from pallava.data.training_file import TrainingFileSummary, write_training_file
from pallava.errors import PallavaError
from pallava.images import open_image
from pallava.io.files import report_os_errors, temporary_beside, whole_file, write_json
from pallava.io.hashing import hash_file
from pallava.io.processes import default_num_workers

TABLE, SHARDS = "pairs.tsv", "shards"
_COLUMNS = ("filepath", "title")  # open_clip's own names
_NOTE = "pairs.json"  # says what table and shards were made from
_PLAIN = {"encoder": False, "user": "", "group": "", "mode": 0o644, "mtime": 0}  # bytes, of nobody and of no date
_COPIED = ("jpg", "jpeg", "png", "webp")  # those that open_clip takes out of a shard


def write_pairs(source: Path, image_folder: Path, folder: Path, num_shards: int = 0) -> tuple[int, dict[str, int]]:
    """Write ``pairs.tsv``, and shards on request, unless they exist already.

    Every picture is decoded once, so that none is found broken in the middle of a training.

    Returns:
        The number of pairs, and by reason how many were left out when the table was written.

    Raises:
        PallavaError: The source is not JSON, a folder is missing, or no pair is left.
    """
    made_from = {"pairs": hash_pairs(source), "image_folder": str(image_folder.resolve())}
    note = folder / _NOTE
    content = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else {}
    if any(content.get(key) != value for key, value in made_from.items()):
        folder.mkdir(parents=True, exist_ok=True)
        summary = _write_table(source, image_folder, folder)
        left_out = {reason: count for reason, count in summary.left_out.items() if count}
        content = {**made_from, "shards": None, "num_pairs": summary.num_written, "left_out": left_out}
    if content["shards"] != num_shards:
        write_json(note, {**content, "shards": 0})  # from here on no existing shards count
        if num_shards:
            _write_shards(folder, num_shards)
            write_json(note, {**content, "shards": num_shards})
    return content["num_pairs"], content["left_out"]


def hash_pairs(source: Path) -> str:
    """Return the SHA-256 of a file of pairs; one that cannot be read is a `PallavaError`."""
    with report_os_errors(f"cannot read the pairs '{source}'"):
        return hash_file(source)


def _write_table(source: Path, image_folder: Path, folder: Path) -> TrainingFileSummary:
    """Make the table of the rows of a training file, which are checked and counted."""
    rows, root = temporary_beside(folder / TABLE), image_folder.resolve()
    workers = default_num_workers()
    try:
        summary = write_training_file(source, rows, image_folder=image_folder, decode_images=True, num_workers=workers)
        with rows.open(encoding="utf-8") as lines, whole_file(folder / TABLE, newline="") as file:
            writer = csv.writer(file, delimiter="\t")
            writer.writerow(_COLUMNS)
            for row in map(json.loads, lines):
                writer.writerow([root / row["image"], _one_line(row["conversations"][1]["value"])])
    finally:
        rows.unlink(missing_ok=True)
    return summary


def _one_line(caption: str) -> str:
    """Join the words as the tokenizer does; a single word must not look to pandas like a missing value."""
    words = caption.replace("\0", " ").split()
    return " ".join(words) if len(words) > 1 else f" {''.join(words)}"


def _write_shards(folder: Path, num_shards: int) -> None:
    shards = folder / SHARDS
    shards.mkdir(exist_ok=True)
    with (folder / TABLE).open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t"))[1:]
    sizes = {}
    with tqdm(total=len(rows), desc="shards", disable=None, mininterval=1) as bar:
        for number in range(num_shards):
            mine = range(number, len(rows), num_shards)  # in turn: neighbours are often alike
            path = shards / f"{number:05d}.tar"
            with whole_file(path, "wb") as shard, webdataset.TarWriter(shard, **_PLAIN) as tar:
                for index in mine:
                    tar.write({"__key__": f"{index:08d}", **_members(*rows[index])})
                    bar.update()
            sizes[path.name] = len(mine)
    write_json(shards / "sizes.json", sizes)  # where open_clip looks for the counts


def _members(filepath: str, caption: str) -> dict[str, bytes]:
    image, picture = Path(filepath), io.BytesIO()
    kind = image.suffix.lower().removeprefix(".")
    if kind in _COPIED:
        return {kind: image.read_bytes(), "txt": caption.encode()}
    open_image(image).save(picture, "PNG")
    return {"png": picture.getvalue(), "txt": caption.encode()}


def count_steps(num_pairs: int, parsed: argparse.Namespace, processes: int, shards: int) -> int:
    """Return the number of optimizer steps of the whole training, as the trainer will count them.

    `processes` are those on all nodes; 0 `shards` mean a table. Each reader needs a shard, and a batch of pairs.

    Raises:
        PallavaError: There are fewer pairs than a batch, for any reader of shards too, or fewer shards than readers.
    """
    batch, readers = parsed.batch_size, max(1, parsed.workers)
    if shards:
        if not parsed.dataset_resampled:
            _check_readers(num_pairs, batch, readers * processes, shards)
        batches = math.ceil(math.ceil(num_pairs / (batch * processes)) / readers) * readers
    else:
        batches = math.ceil(num_pairs / processes) // batch
    if not batches // parsed.accum_freq:
        raise PallavaError(
            f"{num_pairs} pairs are fewer than a batch: {processes} processes take {batch} each, "
            f"{parsed.accum_freq} times a step; lower --batch-size"
        )
    return int(batches // parsed.accum_freq * parsed.epochs)


def _check_readers(num_pairs: int, batch: int, readers: int, shards: int) -> None:
    """Check that each reader finds a whole batch in its own shards; without one it would search for ever."""
    if shards < readers:
        raise PallavaError(f"{shards} shards are fewer than {readers} readers; set more --shards, or lower --workers")
    size, num_larger = divmod(num_pairs, shards)
    fewest = shards // readers  # shards of a reader; in some epoch those that are smaller by one
    least = fewest * size + max(0, fewest - (shards - num_larger))
    if least < batch:
        raise PallavaError(
            f"{num_pairs} pairs in {shards} shards leave a reader only {least}, fewer than a batch of {batch}; lower "
            f"--workers or --batch-size, or set other --shards, best a multiple of {readers}"
        )
