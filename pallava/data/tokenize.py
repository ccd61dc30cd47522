"""From training files to ids in Arrow, kept in prepared folders.

Such a folder is an Arrow data set with ``pallava_prepare.json`` beside it, which records settings and counts. It is in
the cache, under a hash of the training files and the settings, or where ``pallava data prepare`` was to write it.
"""

import dataclasses
import json
import logging
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from datasets import Dataset, Features, Sequence, Value, config, load_from_disk
from datasets.arrow_writer import ArrowWriter
from transformers import PreTrainedTokenizerBase

from pallava.data.sources.files import RowDropped
from pallava.data.training_row import EncodingSettings, encode_row
from pallava.errors import PallavaError
from pallava.io.files import whole_folder, write_json
from pallava.io.hashing import hash_file, hash_json
from pallava.io.records import RecordFile
from pallava.prompts import Encoded

_METADATA_NAME = "pallava_prepare.json"
_FORMAT = 3  # part of the cache's key
_ENDINGS = (".json", ".jsonl")

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Rows of `id`, `images`, `input_ids`, `labels`, `length` (including visual tokens), and their counts."""

    rows: Dataset
    counts: dict[str, Any]  # "read", "kept", "cut" (an answer lost its tail), "dropped" and "examples" by reason

    def describe(self) -> str:
        """Return the counts as one line."""
        places, reasons = self.counts.get("examples", {}), sorted(self.counts["dropped"].items())
        dropped = "; ".join(
            f"{count} dropped: {reason} ({places.get(reason, 'place unknown')})" for reason, count in reasons
        )
        line = f"{self.counts['kept']} of {self.counts['read']} rows kept, {self.counts['cut']} with a cut answer"
        return f"{line}; {dropped}" if dropped else line


def prepare(
    data_path: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    settings: EncodingSettings,
    *,
    num_workers: int = 1,
    cache_dir: str | Path | None = None,
    out: str | Path | None = None,
) -> Prepared:
    """Tokenize training files, or load what was tokenized before: from the cache, or from a prepared folder.

    The data are a JSONL or JSON file, a folder of such files, or a prepared folder. The cache is ``pallava`` in that of
    `datasets` by default; a folder `out` is written instead, which must not exist.

    Raises:
        PallavaError: The data do not exist, are not JSON, have no row to train on, or were prepared with other
            settings.
        OSError: The folder cannot be written, or exists already.
    """
    path = Path(data_path)
    if _is_prepared(path) and out is None:
        return _load_prepared(path, settings)
    files = _training_files(path)
    folder = Path(out) if out else _cache_folder(files, settings, cache_dir)
    if out or not _is_prepared(folder):
        try:
            _write_prepared(files, folder, tokenizer, settings, num_workers)
        except OSError:
            if out or not _is_prepared(folder):  # another node may have been faster, which is as good
                raise
    return _load_prepared(folder, settings)


def _cache_folder(files: list[Path], settings: EncodingSettings, cache_dir: str | Path | None) -> Path:
    key = hash_json([_FORMAT, [hash_file(file) for file in files], dataclasses.asdict(settings)])[:32]
    return Path(cache_dir or Path(config.HF_DATASETS_CACHE) / "pallava") / key


def _is_prepared(folder: Path) -> bool:
    return (folder / "dataset_info.json").is_file() and (folder / "state.json").is_file()


def _training_files(path: Path) -> list[Path]:
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in _ENDINGS and file.is_file())
        if not files:
            raise PallavaError(f"the folder '{path}' must hold .json or .jsonl files, got none")
        return files
    if not path.exists():
        raise PallavaError(f"no training data at '{path}'; set data_path to a JSONL or JSON file or a folder of them")
    if path.suffix.lower() not in _ENDINGS:
        raise PallavaError(f"training data must be .json or .jsonl or a folder, got '{path}'")
    return [path]


def _write_prepared(
    files: list[Path], folder: Path, tokenizer: PreTrainedTokenizerBase, settings: EncodingSettings, num_workers: int
) -> None:
    names = ", ".join(map(str, files))
    with whole_folder(folder) as done, TemporaryDirectory(dir=done) as scratch:
        rows = _tokenize(_write_raw(files, Path(scratch)), scratch, tokenizer, settings, num_workers)
        reasons = rows["reason"][:]
        kept = [index for index, reason in enumerate(reasons) if not reason]
        counts: dict[str, Any] = {"read": len(rows), "kept": len(kept), "cut": sum(rows["is_cut"][:])}
        if dropped := Counter(filter(None, reasons)):
            counts["examples"] = {reason: rows[reasons.index(reason)]["id"] for reason in dropped}
        counts["dropped"] = dict(dropped)
        prepared = Prepared(rows.select(kept).remove_columns(["reason", "is_cut"]), counts)
        logger.info("%s: %s", names, prepared.describe())
        if not kept:
            raise PallavaError(f"no row to train on in {names}: {prepared.describe()}")
        prepared.rows.save_to_disk(done)
        metadata = {"format": _FORMAT, "settings": dataclasses.asdict(settings), "counts": counts}
        write_json(done / _METADATA_NAME, metadata, indent=1)


def _load_prepared(folder: Path, settings: EncodingSettings) -> Prepared:
    try:
        metadata = json.loads((folder / _METADATA_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise PallavaError(
            f"the Arrow data set '{folder}' lacks a readable {_METADATA_NAME}; write it with `pallava data prepare`"
        ) from None
    for key, value in dataclasses.asdict(settings).items():
        if (found := metadata["settings"].get(key)) != value:
            before, now = (side.get("name") if isinstance(side, dict) else side for side in (found, value))
            what = "another tokenizer" if key == "tokenizer" else f"{key} {before}, and this run has {now}"
            raise PallavaError(f"'{folder}' was prepared with {what}; run `pallava data prepare` again")
    return Prepared(load_from_disk(str(folder)), metadata["counts"])


def _tokenize(
    raw: Dataset, scratch: str, tokenizer: PreTrainedTokenizerBase, settings: EncodingSettings, num_workers: int
) -> Dataset:
    text, number = Value("string"), Value("int32")
    texts, numbers = Sequence(text), Sequence(number)
    kept = {"id": text, "images": texts, "input_ids": numbers, "labels": numbers, "length": number}
    features = Features(**kept, reason=text, is_cut=Value("bool"))
    return raw.map(
        _map_row,
        fn_kwargs={"tokenizer": tokenizer, "settings": settings},
        num_proc=min(num_workers, len(raw)) if num_workers > 1 and len(raw) > 1 else None,
        remove_columns=raw.column_names,
        features=features,
        cache_file_name=f"{scratch}/tokenized.arrow",
        new_fingerprint="tokenized",  # the default hashes the tokenizer, whose hash changes with its use
        desc="tokenizing",
    )


def _map_row(raw: dict[str, str], tokenizer: PreTrainedTokenizerBase, settings: EncodingSettings) -> dict[str, Any]:
    row, row_id = json.loads(raw["row"]), raw["origin"]
    encoded, images, is_cut, reason = Encoded([], []), list[str](), False, ""
    try:
        encoded, images, is_cut = encode_row(row, tokenizer, settings)
        row_id = str(row.get("id", row_id))
    except RowDropped as error:
        reason, row_id = error.reason, f"{row_id}: {error}"
    length = len(encoded.input_ids) + len(images) * (settings.num_visual_tokens - 1)
    result = {"id": row_id, "images": images, "length": length, "reason": reason, "is_cut": is_cut}
    return {**result, "input_ids": encoded.input_ids, "labels": encoded.labels}


def _write_raw(files: list[Path], scratch: Path) -> Dataset:
    """Write rows as their JSON text: Arrow requires one type of an id, or of an extra key, in all rows."""
    target = scratch / "raw.arrow"
    features = Features(origin=Value("string"), row=Value("string"))
    with ArrowWriter(path=str(target), features=features) as writer:
        for file in files:
            for record in RecordFile(file):
                writer.write({"origin": f"{file.name}, {record.position}", "row": json.dumps(record.value)})
        writer.finalize()
    if target.stat().st_size == 0 or not (raw := Dataset.from_file(str(target))):
        raise PallavaError(f"no row in {', '.join(map(str, files))}")
    return raw
