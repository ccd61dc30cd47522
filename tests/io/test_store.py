import sqlite3
import subprocess
import sys

import pytest

from pallava.errors import PallavaError
from pallava.io.store import Store


def test_scores_come_back_by_filter_and_item(tmp_path):
    with Store(tmp_path / "s.sqlite") as store:
        store.put("a", {"x": {"number": 0.1 + 0.2}, "y": {"none": None}})
        store.put("b", {"x": {"text": "é"}})
    with Store(tmp_path / "s.sqlite") as store:
        assert store.get("a", {"x", "y", "z"}) == {"x": {"number": 0.1 + 0.2}, "y": {"none": None}}
        assert store.get("b", ["x"]) == {"x": {"text": "é"}}
        assert store.get("c", ["x"]) == {}


def test_more_keys_than_a_query_holds(tmp_path):
    keys = [str(number) for number in range(1234)]
    with Store(tmp_path / "s.sqlite") as store:
        store.put("a", {key: {"k": key} for key in keys})
        assert store.get("a", keys) == {key: {"k": key} for key in keys}


@pytest.mark.posix
def test_a_killed_process_leaves_what_it_stored(tmp_path):
    code = (
        "import os, signal, pathlib; from pallava.io.store import Store;"
        f"store = Store(pathlib.Path({str(tmp_path / 's.sqlite')!r})); store.put('a', {{'x': {{}}}});"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    with Store(tmp_path / "s.sqlite") as store:
        assert store.get("a", ["x"]) == {"x": {}}


def test_two_at_a_time_are_refused(tmp_path):
    with Store(tmp_path / "s.sqlite"), pytest.raises(PallavaError, match="another run"):
        Store(tmp_path / "s.sqlite")


@pytest.mark.parametrize("message", ["database is locked", "disk I/O error"])
def test_a_file_system_without_locks_will_do(tmp_path, monkeypatch, message):
    """SQLite takes one kind of refusal for a lock of another process, the other for a broken disk."""

    class Unlockable(sqlite3.Connection):
        def execute(self, sql, *values):
            raise sqlite3.OperationalError(message)

    def connect(database, uri=False, **options):
        kind = sqlite3.Connection if uri else Unlockable
        return sqlite3_connect(database, uri=uri, factory=kind, **options)

    sqlite3_connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", connect)
    path = tmp_path / "a %20?#" / "s.sqlite"
    with Store(path) as store:
        store.put("a", {"x": 1})
    with Store(path) as store:
        assert store.get_all("a") == {"x": 1}
    assert [each.name for each in path.parent.iterdir()] == ["s.sqlite"]


@pytest.mark.parametrize("content", [b"no database", b"x" * 5000])
def test_another_file_is_refused(tmp_path, content):
    (tmp_path / "s.sqlite").write_bytes(content)
    with pytest.raises(PallavaError, match="s.sqlite"):
        Store(tmp_path / "s.sqlite")
    assert (tmp_path / "s.sqlite").read_bytes() == content


def test_a_foreign_database_is_refused(tmp_path):
    with sqlite3.connect(tmp_path / "s.sqlite") as database:
        database.execute("CREATE TABLE mine (a)")
    database.close()
    with pytest.raises(PallavaError, match="another output"):
        Store(tmp_path / "s.sqlite")


def test_all_values_of_a_namespace(tmp_path):
    with Store(tmp_path / "new" / "s.sqlite") as store:
        store.put("a", {"x": 1, "y": [2]})
        store.put("b", {"x": 3})
        assert store.get_all("a") == {"x": 1, "y": [2]}
        assert store.get_all("c") == {}
