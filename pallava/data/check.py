"""Faults of a training file that would stop a training or teach nothing, found before it starts."""

import posixpath
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pallava.data.sources.files import RowDropped, json_rows
from pallava.data.training_row import EncodingSettings, check_image, encode_turns, find_faults, read_row
from pallava.errors import PallavaError, cap_message
from pallava.images import MAX_PIXELS
from pallava.io.hashing import short_hash
from pallava.io.processes import batches, map_in_order
from pallava.io.records import Entry
from pallava.prompts import check_vocabulary

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


@dataclass
class CheckReport:
    """Number of rows, of those with a fault, and of each fault, with the positions of its first few examples."""

    num_rows: int = 0
    num_faulty: int = 0
    faults: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_REASONS, 0))
    examples: dict[str, list[str]] = field(default_factory=lambda: {reason: [] for reason in _REASONS})

    def count(self, position: str, faults: Sequence[RowDropped]) -> None:
        """Count a row; several faults of one reason count once."""
        self.num_rows += 1
        self.num_faulty += bool(faults)
        for reason, message in {fault.reason: str(fault) for fault in reversed(faults)}.items():
            self.faults[reason] += 1
            if len(self.examples[reason]) < _EXAMPLES:
                self.examples[reason].append(cap_message(f"{position}: {message}" if position else message))


def check_training_file(
    path: str | Path,
    image_folder: str | Path,
    *,
    decode_images: bool = False,
    tokenizer: str | Path | None = None,
    prompt_template: str | None = None,
    context_length: int = 2048,
    num_visual_tokens: int = 196,
    num_workers: int = 1,
) -> CheckReport:
    """Check every row of a training file and the images it names; the report does not depend on the workers.

    To decode images, as training does, finds damage behind their headers. The length is checked only with a tokenizer
    (its name or folder), by the other settings of `EncodingSettings.make`.

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
    check = _Checker(image_folder, decode_images, room)
    with tqdm(total=path.stat().st_size, unit="B", unit_scale=True, desc="check", mininterval=1, disable=None) as bar:
        rows = _read(path, lambda done: bar.update(done - bar.n) and None)
        for results in map_in_order(check, batches(rows, _BATCH), num_workers):
            for position, row_id, faults in results:
                before = position if row_id is None else first_positions.setdefault(short_hash(row_id), position)
                if before is not position:
                    faults.append(RowDropped("duplicate_id", f"the id {row_id!r} is also that of {before}"))
                report.count(position, faults)
    if not report.num_rows:
        report.count("line 1", [RowDropped("malformed", "the file has no rows")])
    return report


def _read(path: Path, progress: Callable[[int], None]) -> Iterator[Entry | RowDropped]:
    """Yield rows and broken ones; a list that breaks off ends with such a one."""
    try:
        yield from json_rows(path, progress)
    except PallavaError as error:
        yield RowDropped("malformed", str(error))


@dataclass(frozen=True)
class _Checker:
    """Finds position, id and faults of rows; is sent to worker processes."""

    image_folder: Path
    decode_images: bool
    room: tuple[str, str | None, int, int] | None  # arguments of `_open_room`

    def __call__(self, rows: list[Entry | RowDropped]) -> list[tuple[str, str | None, list[RowDropped]]]:
        return [self._check(row) for row in rows]

    def _check(self, row: Entry | RowDropped) -> tuple[str, str | None, list[RowDropped]]:
        if isinstance(row, RowDropped):
            return "", None, [row]
        row_id = row.value.get("id") if isinstance(row.value, dict) else None
        return row.position, None if row_id is None else str(row_id), list(self._find_faults(row.value))

    def _find_faults(self, value: Any) -> Iterator[RowDropped]:
        try:
            row = read_row(value)
        except RowDropped as error:
            yield error
            return
        for name in row.images:
            if fault := _image_fault(self.image_folder, name, self.decode_images):
                yield fault
        yield from find_faults(row)
        if self.room is not None:
            _, num_tokens, left = encode_turns(row, *_open_room(*self.room))
            if num_tokens > left:
                yield RowDropped("over_room", f"{num_tokens} tokens of text, and there is room for {left}")


@lru_cache(_IMAGES_REMEMBERED)
def _image_fault(folder: Path, name: str, decode_images: bool) -> RowDropped | None:
    if posixpath.isabs(name) or posixpath.normpath(name).startswith("../"):
        return RowDropped("outside_folder", f"'{name}' leaves the image folder")
    try:
        check_image(folder / name, MAX_PIXELS, decode=decode_images)
    except RowDropped as error:
        return RowDropped("missing_image" if error.reason == "missing" else "unreadable_image", str(error))
    return None


@lru_cache(1)
def _open_room(name: str, *settings: Any) -> tuple[Any, EncodingSettings]:
    """Open the tokenizer once in each process."""
    from transformers import CONFIG_MAPPING, AutoTokenizer, PretrainedConfig

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise PallavaError(f"cannot open the tokenizer '{name}': {' '.join(str(error).split())}") from None
    with suppress(OSError):  # a tokenizer may be alone
        config = PretrainedConfig.get_config_dict(name)[0]
        if "auto_map" in config and config.get("model_type") not in CONFIG_MAPPING:
            raise PallavaError(f"the language model '{name}' has code of its own, which no model folder could open")
        check_vocabulary(tokenizer, config.get("text_config", config).get("vocab_size", sys.maxsize))
    return tokenizer, EncodingSettings.make(tokenizer, *settings)
