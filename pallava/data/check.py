"""Faults of a training file that would stop a training or teach nothing, found before it starts."""

from __future__ import annotations

import hashlib
import os
import posixpath
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pallava.data.sources.base import RowDropped
from pallava.data.sources.files import json_rows
from pallava.errors import PallavaError
from pallava.images import MAX_PIXELS, ImageError, image_size, open_image
from pallava.io.processes import batches, map_in_order
from pallava.io.records import Entry
from pallava.prompts import IMAGE_TOKEN, encode_conversation, get_template, turns_from_conversations

REASONS = (
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
"""What can be wrong with a row."""

_BATCH = 64
_EXAMPLES = 3
_IMAGES_REMEMBERED = 1 << 14  # several questions are asked about one image

_Fault = tuple[str, str]  # reason and message


@dataclass(frozen=True)
class Room:
    """The context that a row's text must fit into, beside the visual tokens of its images.

    Attributes:
        tokenizer: Name or folder of the language model's tokenizer.
        prompt_template: Name of the chat template.
        context_length: Most tokens of a sample, visual ones included.
        num_visual_tokens: What one image takes of them.
    """

    tokenizer: str
    prompt_template: str = "llama3_chat"
    context_length: int = 2048
    num_visual_tokens: int = 196


@dataclass
class CheckReport:
    """What is wrong with a training file.

    Attributes:
        num_rows: Rows read.
        num_faulty: Rows with at least one fault.
        faults: Count of rows, for each of `REASONS`.
        examples: The first few of each reason, with their positions.
    """

    num_rows: int = 0
    num_faulty: int = 0
    faults: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REASONS, 0))
    examples: dict[str, list[str]] = field(default_factory=lambda: {reason: [] for reason in REASONS})

    def to_dict(self) -> dict[str, Any]:
        """Gives the counts and examples as JSON holds them."""
        return asdict(self)


@dataclass(frozen=True)
class _Settings:
    image_folder: Path
    is_decoding: bool
    room: Room | None


def check_training_file(
    path: str | Path,
    image_folder: str | Path,
    *,
    is_decoding: bool = False,
    room: Room | None = None,
    num_workers: int = 1,
) -> CheckReport:
    """Checks every row of a training file and the images it names.

    Args:
        path: A JSONL file or JSON list of ``{"id", "image", "conversations"}``.
        image_folder: What image names are relative to.
        is_decoding: Decodes each image as training does, which finds damage behind its header.
        room: Counts the tokens of each row, if given.
        num_workers: Processes; the report does not depend on it.

    Returns:
        Counts and first examples of each fault.

    Raises:
        PallavaError: The file or the folder is not there, or there is no such tokenizer or template.
    """
    path, image_folder = Path(path), Path(image_folder)
    if not path.is_file():
        raise PallavaError(f"there is no training file '{path}'")
    if not image_folder.is_dir():
        raise PallavaError(f"the image folder '{image_folder}' is not a folder")
    if room is not None:
        _open_room(room)
    report, ids = CheckReport(), _Ids()
    check = partial(_check_rows, settings=_Settings(image_folder, is_decoding, room))
    with tqdm(total=path.stat().st_size, unit="B", unit_scale=True, desc="check", mininterval=1, disable=None) as bar:
        rows = _read(path, lambda done: bar.update(done - bar.n) and None)
        for results in map_in_order(check, batches(rows, _BATCH), num_workers):
            for position, row_id, faults in results:
                _count(report, position, [*faults, *ids.take(row_id, position)])
    if not report.num_rows:
        _count(report, "line 1", [("malformed", "the file holds no row")])
    return report


def _read(path: Path, progress: Callable[[int], None]) -> Iterator[Entry | str]:
    """Rows, and messages about what is none; a list that breaks off ends with such a message."""
    try:
        for row in json_rows(path, progress):
            yield str(row) if isinstance(row, RowDropped) else row
    except PallavaError as error:
        yield str(error)


def _count(report: CheckReport, position: str, faults: Sequence[_Fault]) -> None:
    report.num_rows += 1
    report.num_faulty += bool(faults)
    first: dict[str, str] = {}
    for reason, message in faults:
        first.setdefault(reason, message)
    for reason, message in first.items():
        report.faults[reason] += 1
        if len(report.examples[reason]) < _EXAMPLES:
            report.examples[reason].append(f"{position}: {message}" if position else message)


class _Ids:
    """The ids so far, as eight bytes each."""

    def __init__(self) -> None:
        self._places: dict[bytes, str] = {}

    def take(self, row_id: str | None, position: str) -> list[_Fault]:
        """Remembers an id, or tells where it was before."""
        if row_id is None:
            return []
        key = hashlib.blake2b(row_id.encode(errors="surrogatepass"), digest_size=8).digest()
        before = self._places.setdefault(key, position)
        return [] if before is position else [("duplicate_id", f"the id {row_id!r} is that of {before}, too")]


def _check_rows(rows: list[Entry | str], settings: _Settings) -> list[tuple[str, str | None, list[_Fault]]]:
    """Position, id and faults of each row."""
    results: list[tuple[str, str | None, list[_Fault]]] = []
    for row in rows:
        if isinstance(row, str):
            results.append(("", None, [("malformed", row)]))
            continue
        row_id = row.value.get("id") if isinstance(row.value, dict) else None
        results.append((row.position, None if row_id is None else str(row_id), _check_row(row.value, settings)))
    return results


def _check_row(value: Any, settings: _Settings) -> list[_Fault]:
    try:
        images, messages = _image_names(value), _messages(value)
    except PallavaError as error:
        return [("malformed", str(error))]
    faults = [fault for name in images if (fault := _image_fault(settings.image_folder, name, settings.is_decoding))]
    faults += _message_faults(messages, len(images))
    if settings.room is not None:
        faults += _room_faults(messages, len(images), settings.room)
    return faults


def _image_names(value: Any) -> list[str]:
    if not isinstance(value, dict):
        raise PallavaError(f"a row is an object, not {type(value).__name__}")
    found = value.get("image") or []
    names = [found] if isinstance(found, str) else found
    if not isinstance(names, list) or not all(isinstance(name, str) and name and "\0" not in name for name in names):
        raise PallavaError("'image' is neither a name nor a list of names")
    return names


def _messages(value: Mapping[str, Any]) -> list[tuple[str, str]]:
    conversations = value.get("conversations")
    if not isinstance(conversations, list) or not conversations:
        raise PallavaError(f"the row has no conversations; its keys are {', '.join(map(str, value))[:80]}")
    turns_from_conversations(conversations)  # says what is wrong with a message
    return [(message["from"], message["value"]) for message in conversations]


@lru_cache(_IMAGES_REMEMBERED)
def _image_fault(folder: Path, name: str, is_decoding: bool) -> _Fault | None:
    if posixpath.isabs(name) or posixpath.normpath(name).startswith("../"):
        return "outside_folder", f"'{name}' leaves the image folder"
    path = folder / name
    try:
        if is_decoding:
            open_image(path)
            return None
        width, height = image_size(path)
    except ImageError as error:
        return ("unreadable_image" if os.path.lexists(path) else "missing_image"), str(error)
    too_large = f"image '{path}' is too large: {width} x {height} pixels, at most {MAX_PIXELS} are allowed"
    return ("unreadable_image", too_large) if width * height > MAX_PIXELS else None


def _message_faults(messages: Sequence[tuple[str, str]], num_images: int) -> Iterator[_Fault]:
    if messages[0][0] == "system":
        messages = messages[1:]
    speakers = [speaker for speaker, _ in messages]
    if not speakers or len(speakers) % 2 or speakers != ["human", "gpt"] * (len(speakers) // 2):
        yield "not_alternating", f"the speakers are {', '.join(speakers) or 'none'}; expected human, gpt, human, gpt"
    num_markers = sum(text.count(IMAGE_TOKEN) for speaker, text in messages if speaker == "human")
    if num_markers != num_images:
        yield "lost_marker", f"{num_markers} image markers for {num_images} images"
    if any(IMAGE_TOKEN in text for speaker, text in messages if speaker == "gpt"):
        yield "lost_marker", "an image marker stands in an answer"
    if any(not text.strip() for speaker, text in messages if speaker == "gpt"):
        yield "empty_answer", "an answer is empty"


def _room_faults(messages: Sequence[tuple[str, str]], num_images: int, room: Room) -> list[_Fault]:
    turns = turns_from_conversations([{"from": speaker, "value": text} for speaker, text in messages])
    turns = [turn for turn in turns if turn.answer is not None]
    tokenizer, template = _open_room(room)
    num_markers = sum(turn.question.count(IMAGE_TOKEN) for turn in turns)
    num_tokens = len(encode_conversation(turns, tokenizer, template).input_ids) - num_markers
    left = room.context_length - num_images * room.num_visual_tokens
    return [("over_room", f"{num_tokens} tokens of text, and there is room for {left}")] if num_tokens > left else []


@lru_cache(1)
def _open_room(room: Room) -> tuple[Any, Any]:
    """The tokenizer and the template, once in each process."""
    template = get_template(room.prompt_template)
    if room.context_length <= room.num_visual_tokens:
        raise PallavaError(
            f"the context length is {room.context_length}, and one image takes {room.num_visual_tokens} tokens of it: "
            "no room for text"
        )
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(room.tokenizer, trust_remote_code=False), template
    except (OSError, ValueError) as error:
        raise PallavaError(f"no tokenizer at {room.tokenizer}: {' '.join(str(error).split())}") from None
