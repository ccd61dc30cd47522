"""A store of JSON values by key in one SQLite file: written as they come, found again after a kill."""

import json
import sqlite3
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any

from pallava.errors import PallavaError
from pallava.io.files import report_os_errors, temporary_beside
from pallava.io.processes import batches

_VERSION = 1
_MAX_VARIABLES = 500  # in one query; old SQLite admits 999
_SCHEMA = """
CREATE TABLE IF NOT EXISTS scores (filter_key TEXT, item_key TEXT, value TEXT,
                                   PRIMARY KEY (filter_key, item_key)) WITHOUT ROWID;
"""


class Store(AbstractContextManager["Store"]):
    """JSON values by namespace and key; open in one process at a time.

    A namespace names what the values are and all that they depend on, such as a filter and its settings.
    """

    def __init__(self, path: str | Path) -> None:
        """Open the file, or create it with its folder; a file system without locks, as some clusters have, will do."""
        self.path = Path(path)
        with report_os_errors(f"cannot create '{self.path.parent}'"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._sqlite_errors():
            try:
                self._open(sqlite3.connect(self.path, timeout=1))
            except sqlite3.OperationalError:
                if _has_locks(self.path.parent):
                    raise
                self._open(sqlite3.connect(f"{self.path.absolute().as_uri()}?vfs=unix-none", uri=True))

    def _open(self, database: sqlite3.Connection) -> None:
        self._database = database
        # Held by one process, the log needs no shared memory, which network file systems do not give.
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        (version,) = database.execute("PRAGMA user_version").fetchone()
        (num_tables,) = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if version != _VERSION and (version or num_tables):
            database.close()
            raise PallavaError(f"'{self.path}' is not a store that this version can read; choose another output")
        database.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT;")

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; what was put is in it already."""
        self._database.close()

    def get(self, namespace: str, keys: Collection[str]) -> dict[str, Any]:
        """Return the stored values of these keys; keys without a value are left out."""
        found: dict[str, str] = {}
        with self._sqlite_errors():
            for part in batches(keys, _MAX_VARIABLES):
                marks = ", ".join("?" * len(part))
                query = f"SELECT item_key, value FROM scores WHERE filter_key = ? AND item_key IN ({marks})"
                found.update(self._database.execute(query, [namespace, *part]))
        return {key: json.loads(value) for key, value in found.items()}

    def get_all(self, namespace: str) -> dict[str, Any]:
        """Return all values of a namespace by key."""
        query = "SELECT item_key, value FROM scores WHERE filter_key = ?"
        with self._sqlite_errors():
            return {key: json.loads(value) for key, value in self._database.execute(query, [namespace])}

    def put(self, namespace: str, values: Mapping[str, Any]) -> None:
        """Store values by key, replacing older ones; they survive a kill once this returns."""
        rows = [(namespace, key, json.dumps(value, sort_keys=True)) for key, value in values.items()]
        with self._sqlite_errors(), self._database:
            self._database.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?, ?)", rows)

    @contextmanager
    def _sqlite_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            if "locked" in str(error):
                raise PallavaError(f"'{self.path}' is in use by another run; wait for it to end") from None
            if "not a database" in str(error):
                raise PallavaError(f"'{self.path}' is not a store; choose another output, or remove it") from None
            raise PallavaError(f"cannot use the store '{self.path}': {error}") from None


def _has_locks(folder: Path) -> bool:
    """Return whether SQLite can lock a new file: if not, the file system has no locks, and no other run holds them."""
    probe = temporary_beside(folder / "locks")
    try:
        with closing(sqlite3.connect(probe, timeout=0, isolation_level=None)) as database:
            database.execute("BEGIN EXCLUSIVE")
    except sqlite3.OperationalError as error:
        return "unable to open" in str(error)
    finally:
        probe.unlink(missing_ok=True)
    return True
