"""The connection to the database: transactions, time limits, and failures told as `StoreDown`.

A transaction that ended without an error is on disk (SQLite: WAL, synchronous=FULL; PostgreSQL: synchronous_commit).
One that failed may be or not: whoever sent it sends it again under the same id.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from vca.errors import ArtifactError, SettingsError
from vca.feedback.errors import StoreDown

WAIT_S = 2.5  # for a lock, a connection, a statement: callers learn within 3.5 s that the store is down


class Database:
    """Thread-safe. `url` as in FeedbackSettings."""

    def __init__(self, url: str, *, pool: int = 8) -> None:
        """pool: connections kept open."""
        self.sqlite = url.startswith("sqlite")
        if self.sqlite:
            file = url.removeprefix("sqlite:///")
            if not file:
                raise SettingsError(f"feedback.url {url}: name a file, as in sqlite:///runs/feedback/store.sqlite")
            Path(file).parent.mkdir(parents=True, exist_ok=True)
            connect: dict[str, Any] = {"timeout": WAIT_S}
        else:
            url = url.replace("postgresql://", "postgresql+psycopg://", 1)
            limit = int(WAIT_S * 1000)
            connect = {
                "connect_timeout": 2,
                "options": f"-c statement_timeout={limit} -c lock_timeout={limit} -c timezone=UTC",
                "tcp_user_timeout": limit,
                "keepalives_idle": 5,
            }
        self.engine = sa.create_engine(
            url,
            pool_size=pool,
            max_overflow=0,
            pool_timeout=WAIT_S,
            pool_pre_ping=not self.sqlite,
            connect_args=connect,
        )
        if self.sqlite:
            sa.event.listen(self.engine, "connect", _sqlite_connected)
            sa.event.listen(self.engine, "begin", _sqlite_begin)

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A transaction that only reads, and sees one state throughout. Raises StoreDown."""
        options: dict[str, Any] = {"reads": True} if self.sqlite else {"isolation_level": "REPEATABLE READ"}
        with _told(), self.engine.connect().execution_options(**options) as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """A transaction: committed at the end, or nothing of it is there. Raises StoreDown."""
        with _told(), self.engine.begin() as connection:
            yield connection

    def ping(self) -> None:
        """Raises StoreDown where the database doesn't answer."""
        with self.reading() as connection:
            connection.execute(sa.text("SELECT 1"))

    def close(self) -> None:
        self.engine.dispose()

    # Schema

    def migrate(self) -> None:
        """Bring the tables to this code's version; does nothing where they are."""
        with self.writing() as connection:
            if not self.sqlite:  # two replicas that start at once
                connection.execute(sa.text("SELECT pg_advisory_xact_lock(8420)"))
            config = _alembic()
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def check_version(self) -> None:
        """Raises ArtifactError where the tables are of another version of this code."""
        with self.reading() as connection:
            found = MigrationContext.configure(connection).get_current_revision()
        wanted = ScriptDirectory.from_config(_alembic()).get_current_head()
        if found != wanted:
            raise ArtifactError(
                f"the feedback store's tables are at version {found or 'none'}, this code wants {wanted}; "
                "run `vca feedback migrate`"
            )


def _alembic() -> Config:
    config = Config()
    config.set_main_option("script_location", str(files("vca.feedback") / "migrations"))
    return config


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except (sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.TimeoutError) as error:
        raise StoreDown(f"the feedback store can't be reached or written ({_reason(error)}); try again") from error
    except sa.exc.DBAPIError as error:
        if not error.connection_invalidated:
            raise
        raise StoreDown(f"the feedback store went away ({_reason(error)}); try again") from error


def _reason(error: sa.exc.SQLAlchemyError) -> str:
    cause = getattr(error, "orig", None) or error
    return " ".join(str(cause).split())[:200]


def _sqlite_connected(connection: sqlite3.Connection, record: Any) -> None:
    connection.isolation_level = None  # transactions are begun by `_sqlite_begin`, not by sqlite3's guesses
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA secure_delete = ON")  # erased rows are overwritten


def _sqlite_begin(connection: sa.Connection) -> None:
    # A write begun as a read can't wait for another writer, it fails at once: so writers say what they are.
    reads = connection.get_execution_options().get("reads", False)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")
