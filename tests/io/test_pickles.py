"""Pickles give builtin values, and never run anything."""

import collections
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pallava.data.sources import open_source
from pallava.errors import PallavaError
from pallava.io.pickles import load_plain

PLAIN = {
    "list": [1, -(2**70), 1.5, float("inf"), None, True, "é𝛼", b"bytes"],
    "tuple": ((), (1,), ((2, 3), {"deep": {}})),
    "twice": [["same"]] * 2,
    5: "a number as a key",
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "foreign.pkl"


def refusal(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(PallavaError) as error:
        load_plain(path)
    assert str(path) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_plain_values(path: Path, protocol: int):
    path.write_bytes(pickle.dumps(PLAIN, protocol=protocol))
    assert load_plain(path) == PLAIN


@pytest.mark.parametrize("protocol", range(6))
def test_sets_and_old_protocols(path: Path, protocol: int):
    for value in ({1, 2}, frozenset(["a"]), {"x": [set()]}, [1.5 - 2j], [1, "a", {"b": 2.5}], (1, "é")):
        path.write_bytes(pickle.dumps(value, protocol=protocol))
        assert load_plain(path) == value


def test_text_of_python_2(path: Path):
    path.write_bytes(b"(dp0\nS'answer'\np1\nU\x02\xc3\xa9p2\ns.")
    assert load_plain(path) == {"answer": "é"}


def test_a_set_of_python_2(path: Path):
    path.write_bytes(b"\x80\x02c__builtin__\nset\nq\x00]q\x01(K\x01K\x02e\x85q\x02Rq\x03.")
    assert load_plain(path) == {1, 2}


def test_one_list_made_a_set_again_and_again(path: Path):
    """Each would take as much memory as the list, for a few bytes of the pickle."""
    numbers = b"]q\x00(" + b"".join(b"J" + struct.pack("<i", number) for number in range(1000)) + b"e"
    again = b"cbuiltins\nset\nh\x00\x85R"
    content = b"\x80\x02" + numbers + b"(" + again * 100 + b"l."
    assert len(pickle.loads(content)) == 100
    assert "more elements than it holds" in refusal(path, content)


class Attack:
    """Leaves a file behind where it is unpickled freely."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (open, (str(self.target), "w"))


@pytest.mark.parametrize("protocol", range(6))
def test_code_is_not_run(path: Path, protocol: int):
    target = path.parent / "pwned"
    content = pickle.dumps([{"question": "what?"}, Attack(target)], protocol=protocol)
    message = refusal(path, content)
    assert "asks for io.open" in message
    assert "dicts, lists" in message
    assert not target.exists()
    pickle.loads(content)  # the attack is one
    assert target.exists()


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (collections.OrderedDict(a=1), "collections.OrderedDict"),
        (np.float64(1.5), "numpy"),
        (print, "builtins.print"),
        (PallavaError("x"), "pallava.errors.PallavaError"),
        (Path("/etc"), "pathlib"),
    ],
)
def test_objects_are_named(path: Path, value: Any, name: str):
    assert f"asks for {name}" in refusal(path, pickle.dumps(value))


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"cos\nsystem\n(S'true'\ntR.", "os.system"),
        (b"(S'true'\nios\nsystem\n.", "os.system"),
        (b"(cos\nsystem\nS'true'\no.", "os.system"),
        (b"\x80\x02\x82\x01.", "by its code in a registry"),
        (b"\x80\x02\x84\x01\x00\x00\x00.", "by its code in a registry"),
        (b"Pname\n.", "kept elsewhere"),
        (b"\x80\x02K\x01Q.", "kept elsewhere"),
        (b"\x80\x05\x97.", "kept elsewhere"),
        (b"\x80\x02]r" + struct.pack("<I", 2**31 - 1) + b".", "place 2147483647 of its memory"),
        (b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b".", "readable pickle"),
        (b"\x80\x04B" + struct.pack("<I", 2**31) + b"a.", "readable pickle"),
    ],
)
def test_codes_that_are_refused(path: Path, content: bytes, what: str):
    message = refusal(path, content)
    assert any(part in message for part in what.split("|"))


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04", b"\x80\x09.", b"<html>", b"\x80\x04]", b"\x80\x02]]s.", b"]]s."]
)
def test_damage(path: Path, content: bytes):
    assert "readable pickle" in refusal(path, content)


def test_a_reduce_of_plain_values_is_an_error(path: Path):
    assert "readable pickle" in refusal(path, b"S'text'\n(tR.")


def test_missing_and_too_large(path: Path, monkeypatch):
    with pytest.raises(PallavaError, match="cannot read .*No such file"):
        load_plain(path)
    monkeypatch.setattr("pallava.io.pickles._MAX_BYTES", 3)
    assert "4 bytes" in refusal(path, b"1234")


def test_the_reader_of_path_vqa_refuses_an_attack(tmp_path: Path):
    path = tmp_path / "qas" / "train_vqa.pkl"
    path.parent.mkdir()
    path.write_bytes(pickle.dumps([Attack(tmp_path / "pwned")]))
    with pytest.raises(PallavaError, match=r"io\.open"):
        list(open_source("path-vqa", tmp_path))
    assert not (tmp_path / "pwned").exists()
