"""Deleting from Feast's online store, which Feast itself can't: the rows of given keys, in each kind of store.

Needs no Feast, whose import takes seconds. A row is found by its entity key as Feast writes it (version 3): the number
of join keys, their names, then their values, each string after its type and length.
"""

from __future__ import annotations

import os
import sqlite3
import struct
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from vca.feedback.errors import StoreDown
from vca.feedback.feature_rows import VIEWS, ViewName
from vca.feedback.settings import FeatureSettings

PROJECT = "vca"
_STRING = 2  # feast's ValueType.STRING
_MANY = 500


def entity_key(name: str, value: str) -> bytes:
    """The key of a row about one entity."""
    joined, held = name.encode(), value.encode()
    return b"".join(
        (
            struct.pack("<III", 1, _STRING, len(joined)),
            joined,
            struct.pack("<II", _STRING, len(held)),
            held,
        )
    )


def delete(settings: FeatureSettings, keys: Mapping[ViewName, Sequence[str]]) -> None:
    """Delete the rows of these keys of these views; those that aren't there are no error. Raises StoreDown."""
    for view, values in keys.items():
        rows = [entity_key(VIEWS[view].key, value) for value in values]
        for start in range(0, len(rows), _MANY):
            some = rows[start : start + _MANY]
            if settings.online == "sqlite":
                _sqlite(sqlite_file(settings), view, some)
            elif settings.online.startswith("redis"):
                _redis(settings.online, some)
            else:
                _postgresql(settings.online, view, some)


def sqlite_file(settings: FeatureSettings) -> Path:
    """The embedded online store."""
    return settings.folder / "online.sqlite"


def redis_place(url: str) -> dict[str, Any]:
    """host, port, db and password of redis://HOST:PORT/DB."""
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    return {
        "host": parts.hostname or "localhost",
        "port": parts.port or 6379,
        "db": int(parts.path.strip("/") or 0),
        "password": os.environ.get("REDIS_PASSWORD") or None,
    }


def table_of(view: ViewName) -> str:
    """What Feast calls a view's table."""
    return f"{PROJECT}_{view}"


def _sqlite(file: Path, view: ViewName, rows: list[bytes]) -> None:
    if not file.exists():
        return
    with closing(sqlite3.connect(file, timeout=10)) as connection, connection:
        connection.execute("PRAGMA secure_delete = ON")
        known = connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (table_of(view),)).fetchone()
        if known:
            marks = ",".join("?" * len(rows))
            connection.execute(f'DELETE FROM "{table_of(view)}" WHERE entity_key IN ({marks})', rows)


def _redis(url: str, rows: list[bytes]) -> None:
    import redis

    client = redis.Redis(**redis_place(url), socket_timeout=10)
    try:
        client.delete(*(row + PROJECT.encode() for row in rows))
    except redis.RedisError as error:
        raise StoreDown(f"the online store {url} can't be reached ({error}); try again") from error
    finally:
        client.close()


def _postgresql(url: str, view: ViewName, rows: list[bytes]) -> None:
    import psycopg
    from psycopg import sql

    try:
        with psycopg.connect(url, connect_timeout=10) as connection:
            known = connection.execute("SELECT to_regclass(%s)", (table_of(view),)).fetchone()
            if known and known[0]:
                statement = sql.SQL("DELETE FROM {} WHERE entity_key = ANY(%s)").format(sql.Identifier(table_of(view)))
                connection.execute(statement, (rows,))
    except psycopg.OperationalError as error:
        raise StoreDown(
            f"the online store can't be reached ({' '.join(str(error).split())[:200]}); try again"
        ) from error
