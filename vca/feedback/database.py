"""The connection to the database: transactions, time limits, and failures told as `StoreDown`.

A transaction that ended without an error is on disk (SQLite: WAL, synchronous=FULL; PostgreSQL: synchronous_commit).
One that failed may be or not: whoever sent it sends it again under the same id.
"""

from __future__ import annotations

import fcntl
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from vca.errors import ArtifactError, ResourceError, SettingsError
from vca.feedback.errors import NotFound, StoreDown

MIGRATIONS = Path(str(files("vca.feedback") / "migrations"))
# files are called NUMBER_what_it_does.py
HEAD = max(path.name.partition("_")[0] for path in (MIGRATIONS / "versions").glob("[0-9]*.py"))
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
            try:
                Path(file).parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ResourceError(f"the feedback store can't be kept in {file} ({error.strerror})") from None
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
    def reading(self, *, long: bool = False) -> Iterator[sa.Connection]:
        """A transaction that only reads, and sees one state throughout. Raises StoreDown.

        long: a statement may take as long as it takes, for work that goes over everything.
        """
        options: dict[str, Any] = {"reads": True} if self.sqlite else {"isolation_level": "REPEATABLE READ"}
        with _told(), self.engine.connect().execution_options(**options) as connection:
            if long and not self.sqlite:
                connection.execute(sa.text("SET LOCAL statement_timeout = 0"))
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """A transaction: committed at the end, or nothing of it is there. Raises StoreDown."""
        with _told(), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def alone(self, work: str, *, wait_s: float = 60.0) -> Iterator[None]:
        """One process at a time does `work`, on whatever machine; a lock goes with the process that holds it.

        Raises StoreDown where another one still has it after `wait_s`.
        """
        deadline = time.monotonic() + wait_s
        with _told(), self._lock(work) as taken:
            while not taken():
                if time.monotonic() > deadline:
                    raise StoreDown(f"another process has been busy with {work} for {wait_s:g} s; try again later")
                time.sleep(0.05)
            yield

    @contextmanager
    def _lock(self, work: str) -> Iterator[Callable[[], bool]]:
        """A function that says whether the lock is ours by now."""
        if self.sqlite:
            with open(f"{self.engine.url.database}.{work}.lock", "w") as file:

                def locked() -> bool:
                    try:
                        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    except BlockingIOError:
                        return False
                    return True

                yield locked
            return
        statement = sa.text("SELECT pg_try_advisory_lock(8421, hashtext(:work))")
        with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            try:
                yield lambda: bool(connection.execute(statement, {"work": work}).scalar_one())
            finally:
                connection.detach()  # closed rather than given back to the pool: the lock ends with it

    def forget(self) -> None:
        """See to it that deleted rows leave no bytes behind. Raises StoreDown where others read for too long.

        SQLite overwrites what it deletes, but its write-ahead log keeps the old pages until it is cut. PostgreSQL's
        dead rows go with VACUUM, what its own log still holds when that is recycled.
        """
        with _told():
            if self.sqlite:
                with self.engine.connect().execution_options(reads=True) as connection:
                    raw = connection.connection.dbapi_connection
                    assert raw is not None
                    busy = raw.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
                if busy:
                    raise StoreDown("the store's write-ahead log can't be cut while others read it; try again")
            else:
                with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                    connection.execute(sa.text("SET statement_timeout = 0"))
                    connection.execute(sa.text("VACUUM"))
                    connection.detach()

    def ping(self) -> None:
        """Raises StoreDown where the database doesn't answer."""
        with self.reading() as connection:
            connection.execute(sa.text("SELECT 1"))

    def close(self) -> None:
        self.engine.dispose()

    # Schema. Alembic is imported where there is something to do: a studio that was killed starts again sooner.

    def migrate(self) -> None:
        """Bring the tables to this code's version; does nothing where they are."""
        if self._version() == HEAD:
            return
        from alembic import command
        from alembic.config import Config

        with self.writing() as connection:
            if not self.sqlite:  # two replicas that start at once
                connection.execute(sa.text("SELECT pg_advisory_xact_lock(8420)"))
            config = Config()
            config.set_main_option("script_location", str(MIGRATIONS))
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def check_version(self) -> None:
        """Raises ArtifactError where the tables are of another version of this code."""
        if (found := self._version()) != HEAD:
            raise ArtifactError(
                f"the feedback store's tables are at version {found or 'none'}, this code wants {HEAD}; "
                "run `vca feedback migrate`"
            )

    def _version(self) -> str | None:
        with self.reading() as connection:
            if not sa.inspect(connection).has_table("alembic_version"):
                return None
            version: str | None = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()
            return version


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except (sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.TimeoutError) as error:
        raise StoreDown(f"the feedback store can't be reached or written ({_reason(error)}); try again") from error
    except sa.exc.IntegrityError as error:
        if not _orphan(error):
            raise
        raise NotFound("what this belongs to was erased meanwhile") from error
    except sa.exc.DBAPIError as error:
        if not error.connection_invalidated:
            raise
        raise StoreDown(f"the feedback store went away ({_reason(error)}); try again") from error


def _orphan(error: sa.exc.IntegrityError) -> bool:
    """Whether a row refers to one that is gone."""
    return getattr(error.orig, "sqlstate", None) == "23503" or "FOREIGN KEY" in str(error.orig)


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
