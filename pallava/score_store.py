"""Scores on disk, of cleaning filters and of judges: written as they come, found again after a kill."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pallava.errors import PallavaError

Score = dict[str, Any]
"""What was found out about one item, as JSON holds it."""

_VERSION = 1
_MAX_VARIABLES = 500  # in one query; old SQLite admits 999
_SCHEMA = """
CREATE TABLE IF NOT EXISTS scores (filter_key TEXT, item_key TEXT, value TEXT,
                                   PRIMARY KEY (filter_key, item_key)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS run (name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
"""


class ScoreStore:
    """A SQLite file of scores and of what is known of the run; one process at a time has it open."""

    def __init__(self, path: Path) -> None:
        """Opens the file, or makes it.

        Raises:
            PallavaError: It cannot be opened, is no such file, or another process has it open.
        """
        self.path = path
        with self._told():
            self._database = sqlite3.connect(path, timeout=1)
            # Held by one process, the log needs no shared memory, which network file systems do not give.
            self._database.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = NORMAL")
            self._open_tables()

    def __enter__(self) -> ScoreStore:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; what was put is in it already."""
        self._database.close()

    def get(self, filter_key: str, item_keys: Collection[str]) -> dict[str, Score]:
        """Looks scores up.

        Args:
            filter_key: Names the filter or judge, with all that its scores depend on.
            item_keys: Of the items; each once.

        Returns:
            The scores that are there, by item key.
        """
        keys = list(item_keys)
        found: dict[str, str] = {}
        with self._told():
            for start in range(0, len(keys), _MAX_VARIABLES):
                part = keys[start : start + _MAX_VARIABLES]
                query = f"SELECT item_key, value FROM scores WHERE filter_key = ? AND item_key IN ({_marks(part)})"
                found.update(self._database.execute(query, [filter_key, *part]))
        return {key: json.loads(value) for key, value in found.items()}

    def put(self, filter_key: str, scores: Mapping[str, Score]) -> None:
        """Stores scores by item key; they are on disk when this returns."""
        rows = [(filter_key, key, json.dumps(score, sort_keys=True)) for key, score in scores.items()]
        with self._told(), self._database:
            self._database.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?, ?)", rows)

    def read(self, name: str) -> Any:
        """Gives what `write` stored under a name, None if nothing."""
        with self._told():
            row = self._database.execute("SELECT value FROM run WHERE name = ?", [name]).fetchone()
        return None if row is None else json.loads(row[0])

    def write(self, name: str, value: Any) -> None:
        """Stores a JSON value on the run."""
        with self._told(), self._database:
            self._database.execute("INSERT OR REPLACE INTO run VALUES (?, ?)", [name, json.dumps(value)])

    def add_scores_of(self, path: Path) -> None:
        """Takes over all scores of another store; those that are here already stay.

        Raises:
            PallavaError: It cannot be read.
        """
        with self._told(path):
            self._database.execute("ATTACH ? AS other", [str(path)])
            try:
                with self._database:
                    self._database.execute("INSERT OR IGNORE INTO scores SELECT * FROM other.scores")
            finally:
                self._database.execute("DETACH other")

    def _open_tables(self) -> None:
        (version,) = self._database.execute("PRAGMA user_version").fetchone()
        (num_tables,) = self._database.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if version != _VERSION and (version or num_tables):
            self._database.close()
            raise PallavaError(f"'{self.path}' holds no scores that this version can read; use another output folder")
        self._database.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT;")

    @contextmanager
    def _told(self, path: Path | None = None) -> Iterator[None]:
        """Makes one sentence of what SQLite says."""
        try:
            yield
        except sqlite3.Error as error:
            path = path or self.path
            if "locked" in str(error):
                raise PallavaError(f"'{path}' is in use; is another run at work in this folder?") from None
            raise PallavaError(f"cannot use the store of scores '{path}': {error}") from None


def _marks(values: Collection[str]) -> str:
    return ", ".join("?" * len(values))
