"""From pairs of image and caption to the JSONL that training reads.

Each row depends on its record, its number and the seed alone, so that any number of workers writes the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from tqdm import tqdm

from pallava.errors import PallavaError
from pallava.images import ImageError, image_size, open_image
from pallava.io.files import real_path
from pallava.io.processes import batches, map_in_order
from pallava.io.records import Entry, RecordFile
from pallava.prompts import CAPTION_PROMPTS, IMAGE_TOKEN

MAX_PIXELS = 16_777_216
"""Images of more pixels are left out, as PA-LLaVA left them out."""

REASONS = ("missing", "unreadable", "too_large", "empty_caption", "outside_folder", "malformed")
"""Why a record can be left out."""

_BATCH = 256
_ENCODER = json.JSONEncoder(ensure_ascii=False)  # made once, since json.dumps makes one for each row
_EXAMPLES = 3


@dataclass
class Summary:
    """What became of the records.

    Attributes:
        num_records: Records read.
        num_written: Rows written.
        left_out: Count of records left out, for each of `REASONS`.
        examples: The first few of each reason, with their positions.
    """

    num_records: int = 0
    num_written: int = 0
    left_out: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REASONS, 0))
    examples: dict[str, list[str]] = field(default_factory=lambda: {reason: [] for reason in REASONS})

    def to_dict(self) -> dict[str, Any]:
        """Gives the counts and examples as JSON holds them."""
        return {**vars(self)}


class _Reject(NamedTuple):
    reason: str
    position: str
    detail: str


class _LeftOut(Exception):
    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class _Settings:
    root: str  # the image folder without links, with a closing separator
    prompts: tuple[str, ...]
    seed: int
    max_pixels: int
    id_prefix: str
    decodes: bool


def write_training_file(
    source: str | Path,
    image_folder: str | Path,
    output: str | Path,
    *,
    prompts: Sequence[str] = CAPTION_PROMPTS,
    seed: int = 0,
    max_pixels: int = MAX_PIXELS,
    num_workers: int = 1,
    id_prefix: str | None = None,
    decodes: bool = False,
    left_out: str | Path | None = None,
) -> Summary:
    """Writes a training file from a JSON list or JSONL of ``{"image", "caption"}``.

    Of the images only the headers are read, unless they are decoded. The output appears complete or not at all.

    Args:
        source: The pairs.
        image_folder: What the records' image names are relative to.
        output: The JSONL to write; a file that is there is replaced at the end.
        prompts: Wordings of the question, one of which is drawn for each row.
        seed: Of the draws.
        max_pixels: Larger images are left out.
        num_workers: Processes that read images; the output does not depend on it.
        id_prefix: What ids begin with; the stem of the source's name if None.
        decodes: Whether to find damage behind the header too, at some hundred times the cost.
        left_out: JSONL to write, with reason, position and detail of every record that is left out, be it all of them.

    Returns:
        Counts of what was written and left out.

    Raises:
        PallavaError: The source is not JSON (with the position), a folder is missing, or no row is left.
    """
    source, image_folder, output = Path(source), Path(image_folder), Path(output).resolve()
    rejects = None if left_out is None else Path(left_out).resolve()
    _check_arguments(source, image_folder, output, prompts, num_workers)
    _check_rejects(rejects, source, output)
    prefix = f"{source.stem}-" if id_prefix is None else id_prefix
    root = str(image_folder.resolve()).rstrip(os.sep) + os.sep
    settings = _Settings(root, tuple(prompts), seed, max_pixels, prefix, decodes)
    with _replacing(output) as rows:
        with _replacing(rejects) if rejects else nullcontext() as rejects_file:
            summary = _write(RecordFile(source), rows, rejects_file, settings, num_workers)
        if not summary.num_written:
            raise PallavaError(f"no row to write from '{source}': {_describe(summary)}")
    return summary


def read_prompts(path: str | Path) -> tuple[str, ...]:
    """Reads question wordings, one a line.

    Raises:
        PallavaError: The file cannot be read, holds no wording, or a wording holds an image marker.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise PallavaError(f"cannot read the prompts file '{path}': {error}") from None
    for number, line in enumerate(lines, 1):
        if IMAGE_TOKEN in line:
            raise PallavaError(f"'{path}', line {number}: {IMAGE_TOKEN} is added by itself; leave it out")
    prompts = tuple(line.strip() for line in lines if line.strip())
    if not prompts:
        raise PallavaError(f"the prompts file '{path}' holds no prompt; expected one a line")
    return prompts


def _check_arguments(source: Path, image_folder: Path, output: Path, prompts: Sequence[str], num_workers: int) -> None:
    if not image_folder.is_dir():
        raise PallavaError(f"the image folder '{image_folder}' is not a folder")
    if output.is_dir():
        raise PallavaError(f"the output '{output}' is a folder; give the name of a file")
    if output.exists() and source.exists() and output.samefile(source):
        raise PallavaError(f"input and output are the same file, '{output}'; give the output another name")
    if not prompts:
        raise PallavaError("there is no prompt to draw from")
    if num_workers < 1:
        raise PallavaError(f"the number of workers is {num_workers}; expected 1 or more")


def _check_rejects(rejects: Path | None, source: Path, output: Path) -> None:
    if rejects is None:
        return
    if rejects.is_dir():
        raise PallavaError(f"the list of what is left out, '{rejects}', is a folder; give the name of a file")
    if rejects in (source.resolve(), output):
        raise PallavaError(f"the list of what is left out would replace '{rejects}'; give it another name")


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """Opens a file that appears complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        with unfinished.open("xb") as file:
            yield file
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _write(
    records: RecordFile, file: BinaryIO, rejects: BinaryIO | None, settings: _Settings, num_workers: int
) -> Summary:
    summary = Summary()
    desc = "pictures" if settings.decodes else "dataformat"
    bar = tqdm(total=records.num_bytes, unit="B", unit_scale=True, desc=desc, mininterval=1)
    with bar:
        make_rows = partial(_make_rows, settings=settings)
        for results in map_in_order(make_rows, batches(records, _BATCH), num_workers):
            for result in results:
                _count(summary, result)
                if isinstance(result, bytes):
                    file.write(result)
                elif rejects is not None:
                    rejects.write(_reject_line(result))
            bar.set_postfix(rows=summary.num_written, refresh=False)
            bar.update(records.num_bytes_read - bar.n)
    return summary


def _make_rows(batch: list[Entry], settings: _Settings) -> list[bytes | _Reject]:
    """Makes of each record its line, or says why it is left out."""
    results: list[bytes | _Reject] = []
    for record in batch:
        try:
            results.append(_make_row(record, settings))
        except _LeftOut as left_out:
            results.append(_Reject(left_out.reason, record.position, str(left_out)))
    return results


def _make_row(record: Entry, settings: _Settings) -> bytes:
    image, caption = _fields(record.value)
    name = _name_in_folder(image, settings)
    if not caption:
        raise _LeftOut("empty_caption", f"the caption of '{image}' is empty")
    _check_image(settings.root + name, settings.max_pixels, decodes=settings.decodes)
    row = {
        "id": f"{settings.id_prefix}{record.index:08d}",
        "image": name,
        "conversations": [
            {"from": "human", "value": _question(record.index, settings)},
            {"from": "gpt", "value": caption},
        ],
    }
    return _ENCODER.encode(row).encode() + b"\n"


def _fields(value: Any) -> tuple[str, str]:
    """Takes image name and caption out of a record."""
    if not isinstance(value, dict):
        raise _LeftOut("malformed", f"a record is an object with image and caption, not {type(value).__name__}")
    for key in ("image", "caption"):
        if key not in value:
            raise _LeftOut("malformed", f"the record has no '{key}'; its keys are {sorted(value)[:8]}")
    image, caption = value["image"], "" if value["caption"] is None else value["caption"]
    for key, text in (("image", image), ("caption", caption)):
        if not isinstance(text, str):
            raise _LeftOut("malformed", f"'{key}' is text, not {type(text).__name__}")
    if not image or "\0" in image or _printable(image) != image:
        raise _LeftOut("malformed", f"{image!r} is not the name of a file")
    return image, _printable(caption).strip()


def _printable(text: str) -> str:
    """Replaces halves of surrogate pairs, which JSON can hold and a file cannot."""
    return text.encode(errors="replace").decode()


def _name_in_folder(image: str, settings: _Settings) -> str:
    """Gives the image's name relative to the folder, and refuses what leaves it, by a link too."""
    path = os.path.normpath(os.path.join(settings.root, image))  # noqa: PTH118 - a tenth of the time of Path
    real = real_path(path)
    if not real.startswith(settings.root):
        raise _LeftOut("outside_folder", f"'{image}' leaves the image folder")
    return (path if path.startswith(settings.root) else real).removeprefix(settings.root)


def _check_image(path: str, max_pixels: int, *, decodes: bool) -> None:
    try:
        width, height = image_size(path)
        if width * height > max_pixels:
            raise _LeftOut("too_large", f"'{path}' has {width} x {height} pixels, more than {max_pixels}")
        if decodes:
            open_image(path)
    except ImageError as error:
        raise _LeftOut("unreadable" if os.path.exists(path) else "missing", str(error)) from None  # noqa: PTH110


def _reject_line(reject: _Reject) -> bytes:
    return _ENCODER.encode(reject._asdict()).encode(errors="replace") + b"\n"


def _question(index: int, settings: _Settings) -> str:
    digest = hashlib.blake2b(f"{settings.seed}:{index}".encode(), digest_size=8).digest()
    draw, is_image_first = divmod(int.from_bytes(digest, "big"), 2)
    prompt = settings.prompts[draw % len(settings.prompts)]
    return f"{IMAGE_TOKEN}\n{prompt}" if is_image_first else f"{prompt}\n{IMAGE_TOKEN}"


def _count(summary: Summary, result: bytes | _Reject) -> None:
    summary.num_records += 1
    if isinstance(result, bytes):
        summary.num_written += 1
        return
    summary.left_out[result.reason] += 1
    if len(summary.examples[result.reason]) < _EXAMPLES:
        summary.examples[result.reason].append(f"{result.position}: {result.detail}")


def _describe(summary: Summary) -> str:
    if not summary.num_records:
        return "it holds no record"
    counts = ", ".join(f"{count} {reason}" for reason, count in summary.left_out.items() if count)
    first = next(message for messages in summary.examples.values() for message in messages)
    return f"of {summary.num_records} records all are left out ({counts}); {first}"
