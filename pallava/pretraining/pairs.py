"""From pairs of image and caption to what open_clip's trainer reads: a table, or WebDataset shards."""

import csv
import io
import json
import tarfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pallava.data.training_file import TrainingFileSummary, write_training_file
from pallava.errors import PallavaError
from pallava.images import open_image
from pallava.io.hashing import hash_file
from pallava.io.processes import default_num_workers

TABLE, SHARDS = "pairs.tsv", "shards"
COLUMNS = ("filepath", "title")
"""open_clip's own names of the columns."""
_NOTE = "pairs.json"  # says what table and shards were made from
_COPIED_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}  # those that open_clip takes out of a shard


def write_pairs(source: Path, image_folder: Path, folder: Path, num_shards: int = 0) -> int:
    """Writes ``pairs.tsv``, and shards if asked for; does nothing where they stand already.

    Every picture is decoded once, so that none is found broken in the middle of a training.

    Args:
        source: A JSON list or JSONL of ``{"image", "caption"}``.
        image_folder: What the image names are relative to.
        folder: Where to write.
        num_shards: Shards to deal the pairs to in turn; 0 for the table alone.

    Returns:
        Number of pairs.

    Raises:
        PallavaError: The source is not JSON, a folder is missing, or no pair is left.
    """
    made_from = {
        "pairs": hash_of(source),
        "image_folder": str(image_folder.resolve()),
    }
    note = folder / _NOTE
    content = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else {}
    if any(content.get(key) != value for key, value in made_from.items()):
        folder.mkdir(parents=True, exist_ok=True)
        summary = _write_table(source, image_folder, folder)
        left_out = {reason: count for reason, count in summary.left_out.items() if count}
        content = {**made_from, "shards": None, "num_pairs": summary.num_written, "left_out": left_out}
    if content["shards"] != num_shards:
        _write_note(folder, {**content, "shards": 0})  # whatever shards there are, they do not count from here on
        if num_shards:
            _write_shards(folder, num_shards)
            _write_note(folder, {**content, "shards": num_shards})
    return int(content["num_pairs"])


def _write_note(folder: Path, content: dict[str, Any]) -> None:
    _replace(folder / _NOTE, (json.dumps(content, indent=2) + "\n").encode())


def left_out(folder: Path) -> dict[str, int]:
    """How many pairs were left out for which reason, when the table was written."""
    counts: dict[str, int] = json.loads((folder / _NOTE).read_text(encoding="utf-8"))["left_out"]
    return counts


def hash_of(source: Path) -> str:
    """SHA-256 of the pairs, to tell whether they are the same.

    Raises:
        PallavaError: The file cannot be read.
    """
    try:
        return hash_file(source)
    except OSError as error:
        raise PallavaError(f"cannot read the pairs '{source}': {error.strerror}") from None


def _write_table(source: Path, image_folder: Path, folder: Path) -> TrainingFileSummary:
    """The rows of a training file are the pairs that can be used, checked and counted: they become the table's."""
    rows = folder / f".{TABLE}.{uuid.uuid4().hex[:8]}.rows"
    unfinished = rows.with_suffix(".unfinished")
    root = image_folder.resolve()
    try:
        workers = default_num_workers()
        summary = write_training_file(source, rows, image_folder=image_folder, decode_images=True, num_workers=workers)
        with rows.open(encoding="utf-8") as lines, unfinished.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter="\t")
            writer.writerow(COLUMNS)
            for line in lines:
                row = json.loads(line)
                writer.writerow([root / row["image"], _plain(row["conversations"][1]["value"])])
        unfinished.replace(folder / TABLE)
    finally:
        rows.unlink(missing_ok=True)
        unfinished.unlink(missing_ok=True)
    return summary


def _plain(caption: str) -> str:
    """One line, as the tokenizer reads it; a single word never looks to pandas like a missing value."""
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
            unfinished = path.with_suffix(f".{uuid.uuid4().hex[:8]}.unfinished")
            with tarfile.open(unfinished, "w") as tar:
                for index in mine:
                    for name, content in _members(index, *rows[index]):
                        member = tarfile.TarInfo(name)
                        member.size = len(content)
                        tar.addfile(member, io.BytesIO(content))
                    bar.update()
            unfinished.replace(path)
            sizes[path.name] = len(mine)
    _replace(shards / "sizes.json", json.dumps(sizes).encode())  # where open_clip looks for the counts


def _members(index: int, filepath: str, caption: str) -> Iterator[tuple[str, bytes]]:
    image = Path(filepath)
    suffix = image.suffix.lower()
    if suffix in _COPIED_SUFFIXES:
        yield f"{index:08d}{suffix}", image.read_bytes()
    else:
        picture = io.BytesIO()
        open_image(image).save(picture, "PNG")
        yield f"{index:08d}.png", picture.getvalue()
    yield f"{index:08d}.txt", caption.encode()


def _replace(path: Path, content: bytes) -> None:
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.unfinished")
    unfinished.write_bytes(content)
    unfinished.replace(path)
