"""The offline side of Feast: one Parquet file per view, to which rows are only ever added.

A row says what was known of somebody at `event_timestamp` (when the store learned of an event), and since when this
file says so (`created_timestamp`). An event that was committed late changes rows that are here already: they get
another row with the same event_timestamp and a later created_timestamp, and nobody who asks for an earlier moment sees
it. What is pushed online lies in `pushed/` until the next `update`, so that it counts from when it was pushed.

Feast reads single files only, and its joins lose rows in other stores than DuckDB (feast#6787), hence this shape.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vca.errors import DataError
from vca.feedback.feature_rows import VIEWS, Row, ViewName, rows
from vca.feedback.store import Store, now

if TYPE_CHECKING:
    import pyarrow as pa

_BATCH = 10_000
PUSHED = "pushed"


def file_of(folder: Path, view: ViewName) -> Path:
    """Where a view's rows are."""
    return folder / f"{view}.parquet"


def update(store: Store, *, at: datetime | None = None) -> dict[ViewName, int]:
    """Bring every view's file up to the store; how many rows were added to each. at: for `created_timestamp`.

    Call it alone (`store.database.alone("features")`). Raises StoreDown.
    """
    folder = store.settings.features.folder
    folder.mkdir(parents=True, exist_ok=True)
    return {view: _update(store, folder, view, at or now()) for view in VIEWS}


def keep_pushed(folder: Path, view: ViewName, some: pa.Table) -> None:
    """Keep rows that go online now for the next `update`."""
    import pyarrow.parquet as pq

    (folder / PUSHED).mkdir(parents=True, exist_ok=True)
    name = folder / PUSHED / f"{view}-{uuid.uuid4().hex}"
    pq.write_table(some, f"{name}.new")
    os.replace(f"{name}.new", f"{name}.parquet")


def forget(folder: Path, view: ViewName, keys: list[str]) -> int:
    """Drop the rows of these keys; how many there were."""
    with _rewriting(folder, view) as (database, write):
        if database is None:
            return 0
        database.execute("CREATE TEMP TABLE gone AS SELECT unnest($keys) AS key", {"keys": keys})
        (count,) = database.execute(
            f"SELECT count(*) FROM old WHERE {VIEWS[view].key} IN (SELECT key FROM gone)"
        ).fetchone()
        write(f"SELECT * FROM old WHERE {VIEWS[view].key} NOT IN (SELECT key FROM gone)")
    return int(count)


def as_of(folder: Path, asked: pa.Table) -> pa.Table:
    """What was known at each row's event_timestamp: the rows asked for, in their order, with every view's features.

    asked: a column for each entity (subject_id, dialogue_id, prompt_hmac), event_timestamp, and whatever else, which
    stays (candidate_id, say). A feature is null where nothing was known yet. Raises DataError where a row got lost.
    """
    joined = "SELECT asked.*"
    tables = "FROM asked"
    with _duckdb() as database:
        database.execute("CREATE TEMP TABLE asked AS SELECT row_number() OVER () AS n, * FROM asked")
        for view, spec in VIEWS.items():
            columns = ", ".join(f"f.{name}" for name in spec.features)
            database.execute(
                f"""
                CREATE TEMP TABLE {view} AS SELECT n, {columns}
                FROM asked JOIN read_parquet($file) AS f ON f.{spec.key} = asked.{spec.key}
                    AND f.event_timestamp <= asked.event_timestamp AND f.created_timestamp <= asked.event_timestamp
                QUALIFY row_number() OVER (PARTITION BY n ORDER BY f.event_timestamp DESC, f.created_timestamp DESC) = 1
                """,
                {"file": str(file_of(folder, view))},
            )
            joined += "".join(f", {view}.{name}" for name in spec.features)
            tables += f" LEFT JOIN {view} ON {view}.n = asked.n"
        found = database.execute(f"{joined} {tables} ORDER BY asked.n").to_arrow_table().drop_columns(["n"])
    if found.num_rows != asked.num_rows:
        raise DataError(f"{asked.num_rows} rows were asked for, {found.num_rows} came; the feature files are damaged")
    return found


def latest(folder: Path, view: ViewName) -> pa.Table:
    """The newest row of every key, all columns."""
    with _duckdb() as database:
        return database.execute(
            f"""
            SELECT * FROM read_parquet($file)
            QUALIFY row_number() OVER (
                PARTITION BY {VIEWS[view].key} ORDER BY event_timestamp DESC, created_timestamp DESC) = 1
            """,
            {"file": str(file_of(folder, view))},
        ).to_arrow_table()


def table(view: ViewName, some: Iterable[Row]) -> pa.Table:
    """Rows as the view's file has them."""
    import pyarrow as pa

    return pa.Table.from_pylist(list(some), schema=_schema(view))


def _update(store: Store, folder: Path, view: ViewName, at: datetime) -> int:
    import pyarrow.parquet as pq

    spec = VIEWS[view]
    made = folder / f"{view}.made"
    with pq.ParquetWriter(made, _schema(view)) as writer:
        coming = rows(store, view)
        while some := list(islice(coming, _BATCH)):
            writer.write_table(table(view, ({**row, "created_timestamp": at} for row in some)))
    if not file_of(folder, view).exists():
        pq.write_table(table(view, []), file_of(folder, view))
    try:
        with _rewriting(folder, view) as (database, write):
            assert database is not None
            (before,) = database.execute("SELECT count(*) FROM old").fetchone()
            same = " AND ".join(f"made.{name} IS NOT DISTINCT FROM known.{name}" for name in spec.features)
            # A row is never older than one that it corrects, whatever the clock says.
            since = "greatest(made.created_timestamp, known.created_timestamp + INTERVAL 1 MICROSECOND)"
            columns = [since if name == "created_timestamp" else f"made.{name}" for name in _schema(view).names]
            database.execute(f"CREATE VIEW made AS SELECT * FROM read_parquet('{_quoted(made)}')")
            after = write(
                f"""
                WITH known AS (SELECT * FROM old QUALIFY row_number() OVER (
                    PARTITION BY {spec.key}, event_timestamp ORDER BY created_timestamp DESC) = 1)
                SELECT {", ".join(_schema(view).names)} FROM old
                UNION ALL
                SELECT {", ".join(columns)}
                FROM made LEFT JOIN known
                    ON known.{spec.key} = made.{spec.key} AND known.event_timestamp = made.event_timestamp
                WHERE known.{spec.key} IS NULL OR NOT ({same})
                """
            )
    finally:
        made.unlink()
    return after - int(before)


@contextmanager
def _rewriting(folder: Path, view: ViewName) -> Iterator[tuple[Any, Callable[[str], int]]]:
    """A database whose view `old` is the file and what was pushed since, and a function that replaces both.

    That function takes the query for the new contents, and returns how many rows it wrote. Without a file there is no
    database.
    """
    file = file_of(folder, view)
    pushed = sorted((folder / PUSHED).glob(f"{view}-*.parquet"))
    parts = [path for path in (file, *pushed) if path.exists()]
    if not parts:
        yield None, lambda query: 0
        return
    listed = ", ".join(f"'{_quoted(path)}'" for path in parts)

    def write(query: str) -> int:
        new = file.with_suffix(".new")
        order = f"{VIEWS[view].key}, event_timestamp, created_timestamp"
        database.execute(f"COPY ({query} ORDER BY {order}) TO '{_quoted(new)}' (FORMAT parquet, COMPRESSION zstd)")
        with new.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(new, file)
        for path in pushed:
            path.unlink()
        return int(database.execute(f"SELECT count(*) FROM read_parquet('{_quoted(file)}')").fetchone()[0])

    with _duckdb() as database:
        # a kill between the two deletions above leaves rows that are in the file too: hence DISTINCT
        database.execute(f"CREATE VIEW old AS SELECT DISTINCT * FROM read_parquet([{listed}])")
        yield database, write


def _duckdb() -> Any:
    import duckdb

    database = duckdb.connect()
    database.execute("SET TimeZone = 'UTC'")  # else times come back in the machine's own
    return database


def _quoted(path: Path) -> str:
    return str(path).replace("'", "''")


def _schema(view: ViewName) -> pa.Schema:
    import pyarrow as pa

    moment = pa.timestamp("us", tz="UTC")
    types = {"BIGINT": pa.int64(), "DOUBLE": pa.float64(), "BOOLEAN": pa.bool_()}
    spec = VIEWS[view]
    return pa.schema(
        [
            (spec.key, pa.string()),
            ("event_timestamp", moment),
            ("created_timestamp", moment),
            ("as_of", pa.int64()),
            *((name, types[kind]) for name, kind in spec.features.items()),
        ]
    )
