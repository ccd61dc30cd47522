"""Small trees of the sets' exact shapes."""

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pallava.data.sources import open_source


def touch(root: Path, *names: str) -> None:
    """Makes files that stand for pictures, which no reader opens."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"picture")


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_lines(path: Path, rows: Iterable[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def read(name: str, root: Path, **options: Any) -> tuple[list[Any], dict[str, int]]:
    """Reads a set, and checks that every row is accounted for and every id is its own."""
    source = open_source(name, root, **options)
    records = list(source)
    tally = source.tally
    assert len({record.id for record in records}) == len(records)
    assert {record.source for record in records} <= {name}
    num_used = tally.num_records - sum(tally.dropped.values())
    assert num_used <= len(records) if options.get("image_policy") == "each" else num_used == len(records)
    assert source.num_bytes_read == source.num_bytes
    assert list(source) == records  # a second pass
    assert source.tally == tally
    return records, tally.dropped
