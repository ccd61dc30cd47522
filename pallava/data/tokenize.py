"""From training files to ids in Arrow: read, check, tokenize, cut, count what was left out, keep on disk.

A prepared folder is an Arrow data set (``datasets.load_from_disk``) with ``pallava_prepare.json`` beside it, which
says with which settings it was made and what was dropped. The cache holds such folders under a hash of the content
of the training files and the settings; ``pallava data prepare`` writes one where the user wants it.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pallava.data.encoding import Settings, encode_row, hash_of
from pallava.errors import PallavaError
from pallava.io.hashing import hash_file
from pallava.io.records import RecordFile

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

METADATA_NAME = "pallava_prepare.json"
_FORMAT = 1  # of a prepared folder; part of the cache's key
_ENDINGS = (".json", ".jsonl")

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Rows of `id`, `images`, `input_ids`, `labels`, `length` (visual tokens included), and what was counted.

    Attributes:
        rows: The rows that can be trained on.
        counts: `read`, `kept`, `cut` (an answer lost its tail) and, by reason, `dropped`.
    """

    rows: Dataset
    counts: dict[str, Any]

    def describe(self) -> str:
        """The counts as one line."""
        dropped = "; ".join(f"{count} dropped: {reason}" for reason, count in sorted(self.counts["dropped"].items()))
        line = f"{self.counts['kept']} of {self.counts['read']} rows kept, {self.counts['cut']} with a cut answer"
        return f"{line}; {dropped}" if dropped else line


def prepare(
    data_path: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    settings: Settings,
    *,
    num_proc: int = 1,
    cache_dir: str | Path | None = None,
) -> Prepared:
    """Tokenizes training files, or takes what was tokenized before: in the cache, or by ``pallava data prepare``.

    Args:
        data_path: A JSONL or JSON file, a folder of such files, or a prepared folder.
        tokenizer: The language model's.
        settings: What `Settings.make` gives for it.
        num_proc: Processes that tokenize.
        cache_dir: Where to keep the result; default: ``pallava`` in the cache of `datasets`.

    Raises:
        PallavaError: Nothing there, broken JSON, no row to train on, or a folder prepared with other settings.
    """
    path = Path(data_path)
    if is_prepared(path):
        return load_prepared(path, settings)
    files = training_files(path)
    folder = (Path(cache_dir) if cache_dir else _default_cache()) / _cache_key(files, settings)
    if not is_prepared(folder):
        write_prepared(files, folder, tokenizer, settings, num_proc=num_proc)
    return load_prepared(folder, settings)


def is_prepared(folder: Path) -> bool:
    """Whether a folder holds an Arrow data set."""
    return (folder / "dataset_info.json").is_file() and (folder / "state.json").is_file()


def training_files(path: Path) -> list[Path]:
    """The training files at a path: itself, or those in the folder, sorted by name.

    Raises:
        PallavaError: Nothing there, a file of another kind, or a folder without training files.
    """
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in _ENDINGS and file.is_file())
        if not files:
            raise PallavaError(f"no .json or .jsonl file in the folder {path}")
        return files
    if not path.exists():
        raise PallavaError(f"no training data at {path}; set data_path to a JSONL or JSON file or a folder of them")
    if path.suffix.lower() not in _ENDINGS:
        raise PallavaError(f"{path} is neither .json nor .jsonl nor a folder")
    return [path]


def write_prepared(
    files: list[Path], folder: Path, tokenizer: PreTrainedTokenizerBase, settings: Settings, *, num_proc: int = 1
) -> None:
    """Tokenizes files into a prepared folder, which appears under its name when it is whole.

    Raises:
        PallavaError: Broken JSON, or no row to train on.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f"{folder.name}.unfinished", dir=folder.parent))
    try:
        rows = _tokenize(_write_raw(files, scratch / "raw.arrow"), scratch, tokenizer, settings, num_proc)
        reasons = rows["reason"][:]
        kept = [index for index, reason in enumerate(reasons) if not reason]
        counts = {
            "read": len(rows),
            "kept": len(kept),
            "cut": sum(rows["is_cut"][:]),
            "dropped": dict(Counter(reason for reason in reasons if reason)),
        }
        prepared = Prepared(rows.select(kept).remove_columns(["reason", "is_cut"]), counts)
        logger.info("%s: %s", ", ".join(map(str, files)), prepared.describe())
        if not kept:
            raise PallavaError(f"no row to train on in {', '.join(map(str, files))}: {prepared.describe()}")
        prepared.rows.save_to_disk(scratch / "done")
        metadata = {"format": _FORMAT, "settings": dataclasses.asdict(settings), "counts": counts}
        (scratch / "done" / METADATA_NAME).write_text(json.dumps(metadata, indent=1), encoding="utf-8")
        _move_into_place(scratch / "done", folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def load_prepared(folder: Path, settings: Settings) -> Prepared:
    """Opens a prepared folder.

    Raises:
        PallavaError: It was written by something else, or with other settings.
    """
    from datasets import load_from_disk

    try:
        metadata = json.loads((folder / METADATA_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise PallavaError(
            f"{folder} holds an Arrow data set without a readable {METADATA_NAME}; write it with `pallava data prepare`"
        ) from None
    _check_settings(folder, metadata["settings"], settings)
    return Prepared(load_from_disk(str(folder)), metadata["counts"])


def _tokenize(
    raw: Dataset, scratch: Path, tokenizer: PreTrainedTokenizerBase, settings: Settings, num_proc: int
) -> Dataset:
    from datasets import Features, Sequence, Value

    ids = Sequence(Value("int32"))
    features = Features(
        id=Value("string"),
        images=Sequence(Value("string")),
        input_ids=ids,
        labels=ids,
        length=Value("int32"),
        reason=Value("string"),
        is_cut=Value("bool"),
    )
    return raw.map(
        _map_row,
        fn_kwargs={"tokenizer": tokenizer, "settings": settings},
        num_proc=min(num_proc, len(raw)) if num_proc > 1 and len(raw) > 1 else None,
        remove_columns=raw.column_names,
        features=features,
        cache_file_name=str(scratch / "tokenized.arrow"),
        new_fingerprint="tokenized",  # the default hashes the tokenizer, whose hash changes with its use
        desc="tokenizing",
    )


def _map_row(raw: dict[str, str], tokenizer: PreTrainedTokenizerBase, settings: Settings) -> dict[str, Any]:
    row = json.loads(raw["row"])
    result = {"id": raw["origin"], "images": [], "input_ids": [], "labels": [], "length": 0, "is_cut": False}
    try:
        if not isinstance(row, dict):
            raise PallavaError("not an object")
        encoded, images, is_cut = encode_row(row, tokenizer, settings)
    except PallavaError as error:
        return {**result, "reason": str(error)}
    text = len(encoded.input_ids) - len(images)
    return {
        "id": str(row.get("id", raw["origin"])),
        "images": images,
        "input_ids": encoded.input_ids,
        "labels": encoded.labels,
        "length": text + len(images) * settings.num_visual_tokens,
        "reason": "",
        "is_cut": is_cut,
    }


def _write_raw(files: list[Path], target: Path) -> Dataset:
    """Rows as their JSON text: Arrow would ask the same type of an id, or of an extra key, in every row."""
    from datasets import Dataset, Features, Value
    from datasets.arrow_writer import ArrowWriter

    features = Features(origin=Value("string"), row=Value("string"))
    with ArrowWriter(path=str(target), features=features) as writer:
        for file in files:
            for record in RecordFile(file):
                writer.write({"origin": f"{file.name}, {record.position}", "row": json.dumps(record.value)})
        writer.finalize()
    if target.stat().st_size == 0 or not (raw := Dataset.from_file(str(target))):
        raise PallavaError(f"no row in {', '.join(map(str, files))}")
    return raw


def _check_settings(folder: Path, found: Mapping[str, Any], expected: Settings) -> None:
    for key, value in dataclasses.asdict(expected).items():
        if found.get(key) == value:
            continue
        before, now = (side.get("name") if isinstance(side, Mapping) else side for side in (found.get(key), value))
        what = "another tokenizer" if key == "tokenizer" else f"{key} {before}, and this run has {now}"
        raise PallavaError(f"{folder} was prepared with {what}; run `pallava data prepare` again")


def _cache_key(files: list[Path], settings: Settings) -> str:
    return hash_of([_FORMAT, [hash_file(file) for file in files], dataclasses.asdict(settings)])[:32]


def _default_cache() -> Path:
    from datasets.config import HF_DATASETS_CACHE

    return Path(HF_DATASETS_CACHE) / "pallava"


def _move_into_place(source: Path, target: Path) -> None:
    try:
        source.rename(target)
    except OSError:
        if not is_prepared(target):  # another process may have been faster, which is as good
            raise
