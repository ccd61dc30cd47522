"""Records come one by one, from lists and from lines, and every fault has its position."""

import json
import tracemalloc
from pathlib import Path

import pytest

from pallava.errors import PallavaError
from pallava.io import records
from pallava.io.records import BadEntry, Entry, RecordFile

ROWS = [{"image": f"{i}.png", "caption": f'Glands "{i}" [é, 𝛼] {{x}} \\ \n' * (i % 4)} for i in range(40)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pairs.json"


def values(path: Path) -> list:
    return [record.value for record in RecordFile(path)]


def error(path: Path, content: str | bytes) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(PallavaError) as caught:
        values(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("chunk", [1, 7, 1000, 1 << 20])
@pytest.mark.parametrize("is_ascii", [True, False])
@pytest.mark.parametrize("indent", [None, 2])
def test_list_in_stretches_of_any_size(path: Path, monkeypatch, chunk: int, is_ascii: bool, indent):
    monkeypatch.setattr(records, "_CHUNK_BYTES", chunk)
    mixed = [*ROWS, 12345678901234567890, -1.5e-300, "text", None, True, [[]], float("-inf")]
    path.write_text(f" \r\n{json.dumps(mixed, ensure_ascii=is_ascii, indent=indent)}\n ", encoding="utf-8")
    assert values(path) == mixed


def test_lines_blank_lines_and_byte_order_mark(path: Path):
    lines = "\r\n\n".join(json.dumps(row) for row in ROWS)
    path.write_text(lines, encoding="utf-8-sig")
    assert values(path) == ROWS
    path.write_text(json.dumps(ROWS), encoding="utf-8-sig")
    assert values(path) == ROWS
    path.write_text("[]")
    assert values(path) == []


def test_positions(path: Path):
    path.write_text('\n{"a": 1}\n\n{"a": 2}')
    assert [(r.index, r.position) for r in RecordFile(path)] == [(0, "line 2"), (1, "line 4")]
    path.write_text('[{"a":\n 1}, {"a": 2},\n  3]')
    assert [r.position for r in RecordFile(path)] == [
        "record 1 (line 1, column 2)",
        "record 2 (line 2, column 6)",
        "record 3 (line 3, column 3)",
    ]


@pytest.mark.parametrize("chunk", [1, 1 << 20])
@pytest.mark.parametrize(
    ("content", "position"),
    [
        ("", "is empty"),
        (" \n ", "is empty"),
        ("hello", "line 1, column 1"),
        ('{"a": 1}\n{"a": \n', "line 2, column 7"),
        ('{"a": 1}\n{"a": 1} x', "line 2, column 10"),
        ('[{"a": 1},\n {"a" 1},' + " " * 99 + '{"a": 1}]', "record 2, line 2, column 7"),
        ('[{"a": 1},\n {"a": "b', "record 2, line 2, column 8"),
        ('[{"a": 1}\n {"a": 1}]', "line 2, column 2: not JSON (found '{' where ',' is due)"),
        ('[{"a": 1}\n', "line 2, column 1: not JSON (the text ends where ',' is due)"),
        ('[{"a": 1},\n]', "record 2, line 2, column 1"),
        ('[{"a": 1}]\n[]', "line 2, column 1: text after the end"),
        (b'{"a": 1}\n{"a": "\xff"}', "line 2, byte 8: not UTF-8"),
        (b'[{"a": "\xff"}]', "byte 9: not UTF-8"),
        (b'\xef\xbb\xbf[{"a": "\xff"}]', "byte 12: not UTF-8"),
        ("[" + "1" * 5000 + "]", "record 1, line 1, column 2: unreadable"),
        ("[" * 200_000, "record 1, line 1, column 2: unreadable"),
    ],
)
def test_faults_have_their_position(path: Path, monkeypatch, content, position: str, chunk: int):
    if len(content) < 1000:
        monkeypatch.setattr(records, "_CHUNK_BYTES", chunk)
    message = error(path, content)
    assert position in message
    assert "expected a JSON list" in message


def test_tolerant_reading_costs_the_broken_lines_alone(path: Path):
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\n{broken\n\n{"a": "\xff"}\n' + b"[" * 100_000 + b"\n2")
    entries = list(RecordFile(path).tolerant())
    assert [(entry.index, entry.value) for entry in entries if isinstance(entry, Entry)] == [(0, {"a": 1}), (4, 2)]
    places = [str(entry).partition(":")[0] for entry in entries if isinstance(entry, BadEntry)]
    assert places == ["line 2, column 2", "line 4, byte 8", "line 5"]
    path.write_text('[{"a": 1}, {]')
    with pytest.raises(PallavaError, match="record 2"):
        list(RecordFile(path).tolerant())
    path.write_text("")
    assert list(RecordFile(path).tolerant()) == []


def test_marks_between_lines_and_other_encodings(path: Path):
    path.write_bytes(b'{"a": 1}\n\xef\xbb\xbf\n\xef\xbb\xbf{"a": 2}\n\xef\xbb\xbf')
    assert [(entry.position, entry.value) for entry in RecordFile(path)] == [("line 1", {"a": 1}), ("line 3", {"a": 2})]
    for encoding in ("utf-16", "utf-32"):
        for text in ('{"a": 1}', '[{"a": 1}]'):
            assert encoding.upper() in error(path, text.encode(encoding))


@pytest.mark.parametrize("form", ["{}", "[{}]"])
def test_nesting_has_a_limit_that_does_not_depend_on_the_caller(path: Path, form: str):
    value = json.loads("[" * 99 + "0" + "]" * 99)
    path.write_text(form.format(json.dumps({"a": value})))
    assert values(path) == [{"a": value}]
    assert "100 levels" in error(path, form.format(json.dumps({"a": [value]})))


def test_missing_file_and_folder(tmp_path: Path):
    with pytest.raises(PallavaError, match="No such file"):
        RecordFile(tmp_path / "none.json")
    with pytest.raises(PallavaError, match="Is a directory"):
        values(tmp_path)


def test_forgotten_quote_does_not_swallow_the_file(path: Path, monkeypatch):
    monkeypatch.setattr(records, "_CHUNK_BYTES", 100)
    monkeypatch.setattr(records, "_MAX_RECORD", 1000)
    assert "line 1, column 2: a record of more than 1000" in error(path, '[{"a": "' + "b" * 5000)
    assert "line 1: longer than 1000 bytes" in error(path, '{"a": "' + "b" * 5000)
    path.write_text('{"a": "' + "b" * 5000 + '\n{"a": 2}')
    too_long, entry = RecordFile(path).tolerant()
    assert (str(too_long).partition(":")[0], entry.value) == ("line 1", {"a": 2})


@pytest.mark.parametrize("is_list", [True, False])
def test_memory_is_flat_and_progress_reaches_the_end(path: Path, is_list: bool):
    row = json.dumps({"image": "a.png", "caption": "x" * 1000})
    count = 10_000  # 10 MB
    path.write_text("[" + ",\n".join([row] * count) + "]" if is_list else "\n".join([row] * count))
    reader = RecordFile(path)
    tracemalloc.start()
    assert sum(1 for _ in reader) == count
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6e6
    assert reader.num_bytes_read == reader.num_bytes == path.stat().st_size
