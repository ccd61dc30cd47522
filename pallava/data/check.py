"""Faults of a training file that would stop a training or teach nothing, found before it starts."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pallava.data.sources.files import RowDropped, json_rows
from pallava.data.training_row import EncodingSettings, Fault, check_image, encode_turns, find_faults, read_row
from pallava.errors import PallavaError
from pallava.images import MAX_PIXELS
from pallava.io.hashing import short_hash
from pallava.io.processes import batches, map_in_order
from pallava.io.records import Entry

_REASONS = (
    "malformed",
    "duplicate_id",
    "outside_folder",
    "missing_image",
    "unreadable_image",
    "lost_marker",
    "not_alternating",
    "empty_answer",
    "over_room",
)
_BATCH = 64
_EXAMPLES = 3
_IMAGES_REMEMBERED = 1 << 14  # several questions are asked about one image

_Room = tuple[str, str, int, int]  # arguments of `_open_room`


@dataclass
class CheckReport:
    """Number of rows, of those with a fault, and of each fault, with the positions of its first few examples."""

    num_rows: int = 0
    num_faulty: int = 0
    faults: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_REASONS, 0))
    examples: dict[str, list[str]] = field(default_factory=lambda: {reason: [] for reason in _REASONS})

    def count(self, position: str, faults: Sequence[Fault]) -> None:
        """Count a row; several faults of one reason count once."""
        self.num_rows += 1
        self.num_faulty += bool(faults)
        for reason, message in {fault.reason: fault.message for fault in reversed(faults)}.items():
            self.faults[reason] += 1
            if len(self.examples[reason]) < _EXAMPLES:
                self.examples[reason].append(f"{position}: {message}" if position else message)


def check_training_file(
    path: str | Path,
    image_folder: str | Path,
    *,
    decode_images: bool = False,
    tokenizer: str | Path | None = None,
    prompt_template: str = "llama3_chat",
    context_length: int = 2048,
    num_visual_tokens: int = 196,
    num_workers: int = 1,
) -> CheckReport:
    """Check every row of a training file and the images it names; the report does not depend on the workers.

    Args:
        path: A JSONL file or JSON list of ``{"id", "image", "conversations"}``.
        image_folder: The folder that image names are relative to.
        decode_images: Whether to decode each image as training does, which finds damage behind its header.
        tokenizer: Name or folder of the language model's tokenizer; None leaves out the check of the length.
        prompt_template: Name of the chat template.
        context_length: Largest number of tokens in a sample, including visual ones.
        num_visual_tokens: Largest number of visual tokens that the model makes of one image.
        num_workers: Number of processes.

    Raises:
        PallavaError: The file, the folder, the tokenizer or the template does not exist.
    """
    path, image_folder = Path(path), Path(image_folder)
    if not path.is_file():
        raise PallavaError(f"the training file '{path}' does not exist")
    if not image_folder.is_dir():
        raise PallavaError(f"the image folder '{image_folder}' is not a folder")
    room = (str(tokenizer), prompt_template, context_length, num_visual_tokens) if tokenizer else None
    if room is not None:
        _open_room(*room)
    report, first_positions = CheckReport(), dict[bytes, str]()  # ids as eight bytes, since there are millions
    check = partial(_check_batch, image_folder=image_folder, decode_images=decode_images, room=room)
    with tqdm(total=path.stat().st_size, unit="B", unit_scale=True, desc="check", mininterval=1, disable=None) as bar:
        rows = _read(path, lambda done: bar.update(done - bar.n) and None)
        for results in map_in_order(check, batches(rows, _BATCH), num_workers):
            for position, row_id, faults in results:
                before = position if row_id is None else first_positions.setdefault(short_hash(row_id), position)
                if before is not position:
                    faults.append(Fault("duplicate_id", f"the id {row_id!r} is also that of {before}"))
                report.count(position, faults)
    if not report.num_rows:
        report.count("line 1", [Fault("malformed", "the file has no rows")])
    return report


def _read(path: Path, progress: Callable[[int], None]) -> Iterator[Entry | str]:
    """Yield rows, and messages about broken ones; a list that breaks off ends with such a message."""
    try:
        for row in json_rows(path, progress):
            yield str(row) if isinstance(row, RowDropped) else row
    except PallavaError as error:
        yield str(error)


def _check_batch(
    rows: list[Entry | str], image_folder: Path, decode_images: bool, room: _Room | None
) -> list[tuple[str, str | None, list[Fault]]]:
    """Return position, id and faults of each row."""
    results: list[tuple[str, str | None, list[Fault]]] = []
    for row in rows:
        if isinstance(row, str):
            results.append(("", None, [Fault("malformed", row)]))
            continue
        row_id = row.value.get("id") if isinstance(row.value, dict) else None
        faults = list(_row_faults(row.value, image_folder, decode_images, room))
        results.append((row.position, None if row_id is None else str(row_id), faults))
    return results


def _row_faults(value: Any, image_folder: Path, decode_images: bool, room: _Room | None) -> Iterator[Fault]:
    try:
        row = read_row(value)
    except RowDropped as error:
        yield Fault(error.reason, str(error))
        return
    yield from filter(None, (_image_fault(image_folder, name, decode_images) for name in row.images))
    yield from find_faults(row)
    if room is not None:
        tokenizer, settings = _open_room(*room)
        _, num_tokens = encode_turns(row, tokenizer, settings.prompt_template)
        left = settings.text_room(len(row.images))
        if num_tokens > left:
            yield Fault("over_room", f"{num_tokens} tokens of text, and there is room for {left}")


@lru_cache(_IMAGES_REMEMBERED)
def _image_fault(folder: Path, name: str, decode_images: bool) -> Fault | None:
    if posixpath.isabs(name) or posixpath.normpath(name).startswith("../"):
        return Fault("outside_folder", f"'{name}' leaves the image folder")
    try:
        check_image(folder / name, MAX_PIXELS, decode=decode_images)
    except RowDropped as error:
        return Fault("missing_image" if error.reason == "missing" else "unreadable_image", str(error))
    return None


@lru_cache(1)
def _open_room(name: str, prompt_template: str, *lengths: int) -> tuple[Any, EncodingSettings]:
    """Open the tokenizer once in each process."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise PallavaError(f"cannot open the tokenizer '{name}': {' '.join(str(error).split())}") from None
    return tokenizer, EncodingSettings.make(tokenizer, prompt_template, *lengths)
