"""What has to be remembered about all records, on disk instead of in memory."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path


def _database(path: Path) -> sqlite3.Connection:
    """A scratch database: its content is worthless after a crash, so nothing is synchronised to disk."""
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode=OFF")
    db.execute("PRAGMA synchronous=OFF")
    db.execute("PRAGMA cache_size=-8000")  # KiB: bounded, however large the file grows
    db.execute("PRAGMA locking_mode=EXCLUSIVE")
    db.execute("BEGIN")
    return db


def _text(value: str) -> bytes:
    return value.encode("utf-8", "surrogatepass")  # JSON may hold lone surrogates, which SQLite's text can't


class Ledger:
    """Ids seen so far, and for sources that declare their split the side of each key."""

    def __init__(self, path: Path) -> None:
        self._db = _database(path)
        self._db.execute("CREATE TABLE ids (id BLOB PRIMARY KEY) WITHOUT ROWID")
        self._db.execute("CREATE TABLE sides (key BLOB PRIMARY KEY, side TEXT) WITHOUT ROWID")

    def first_time(self, record_id: str) -> bool:
        """True the first time this id comes."""
        return self._db.execute("INSERT OR IGNORE INTO ids VALUES (?)", (_text(record_id),)).rowcount == 1

    def keeps_side(self, keys: set[str], side: str) -> bool:
        """False if one of the keys has come on the other side before; otherwise they are all on `side` from now on."""
        rows = [(_text(key), side) for key in sorted(keys)]
        for key, _ in rows:
            known = self._db.execute("SELECT side FROM sides WHERE key = ?", (key,)).fetchone()
            if known and known[0] != side:
                return False
        self._db.executemany("INSERT OR IGNORE INTO sides VALUES (?, ?)", rows)
        return True

    def close(self) -> None:
        self._db.close()


class Spool:
    """A multimap on disk: for annotation files whose lines have to be grouped, or looked up, before they are used."""

    def __init__(self, path: Path) -> None:
        self._db = _database(path)
        self._db.execute("CREATE TABLE lines (number INTEGER PRIMARY KEY, key BLOB, value BLOB)")

    def add(self, key: str, value: str) -> None:
        self._db.execute("INSERT INTO lines (key, value) VALUES (?, ?)", (_text(key), _text(value)))

    def index(self) -> None:
        """Call once, after the last `add` and before the first lookup."""
        self._db.execute("CREATE INDEX by_key ON lines (key, number)")

    def get(self, key: str) -> list[str]:
        """The key's values in the order they were added."""
        rows = self._db.execute("SELECT value FROM lines WHERE key = ? ORDER BY number", (_text(key),))
        return [value.decode("utf-8", "surrogatepass") for (value,) in rows]

    def groups(self) -> Iterator[tuple[str, list[str]]]:
        """Every key with its values, ordered by key."""
        rows = self._db.execute("SELECT key, value FROM lines ORDER BY key, number")
        for key, lines in groupby(rows, key=lambda row: row[0]):
            yield key.decode("utf-8", "surrogatepass"), [value.decode("utf-8", "surrogatepass") for _, value in lines]

    def close(self) -> None:
        self._db.close()
