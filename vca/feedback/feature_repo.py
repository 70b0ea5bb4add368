"""Feast over the feature files: entities, views, push sources, the online store; and a writer that keeps time's order.

Importing Feast takes seconds, so only what needs it imports this module.
"""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, PushSource, RepoConfig, ValueType
from feast.types import Bool, Float64, Int64

from vca.errors import DataError, SettingsError
from vca.feedback.feature_rows import VIEWS, ViewName, rows, touched
from vca.feedback.features import file_of, keep_pushed, latest, table, update
from vca.feedback.online import PROJECT, redis_place, sqlite_file
from vca.feedback.outbox import Message, hand_on
from vca.feedback.settings import FeatureSettings
from vca.feedback.store import Store, now

TYPES = {"BIGINT": Int64, "DOUBLE": Float64, "BOOLEAN": Bool}


def open_feast(settings: FeatureSettings) -> FeatureStore:
    """Feast, as the settings say: no server, no feature_store.yaml."""
    folder = settings.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    config = RepoConfig(
        project=PROJECT,
        provider="local",
        registry={"registry_type": "file", "path": str(folder / "registry.db"), "cache_ttl_seconds": 0},
        offline_store={"type": "duckdb"},
        online_store=_online(settings),
        entity_key_serialization_version=3,
        repo_path=folder,
    )
    return FeatureStore(config=config)


def push_source(view: ViewName) -> str:
    return f"{view}_push"


def definitions(settings: FeatureSettings) -> list[Any]:
    """Entities and feature views. created_timestamp breaks ties, and says since when a row may be used."""
    found: list[Any] = []
    for view, spec in VIEWS.items():
        entity = Entity(name=spec.key, join_keys=[spec.key], value_type=ValueType.STRING)
        batch = FileSource(
            name=f"{view}_file",
            path=str(file_of(settings.folder.absolute(), view)),
            timestamp_field="event_timestamp",
            created_timestamp_column="created_timestamp",
        )
        source = PushSource(name=push_source(view), batch_source=batch)
        fields = [Field(name="as_of", dtype=Int64)]
        fields += [Field(name=name, dtype=TYPES[kind]) for name, kind in spec.features.items()]
        found += [entity, FeatureView(name=view, entities=[entity], schema=fields, source=source, ttl=timedelta(0))]
    return found


def apply(store: Store) -> None:
    """Make the offline files where they are missing, and tell Feast's registry and online store of the views."""
    with store.database.alone("features"):
        update(store)
        with _quiet():
            open_feast(store.settings.features).apply(definitions(store.settings.features))


def materialize(store: Store) -> dict[str, int]:
    """Bring the offline files up to the store, and every key's newest row online; rows added to each file.

    Raises DataError where a key didn't arrive online; StoreDown.
    """
    settings = store.settings.features
    with store.database.alone("features"):
        added = update(store)
        feast = open_feast(settings)
        with _quiet():
            # to the end of tomorrow: DuckDB reads times without a zone in the machine's own
            feast.materialize(datetime(1970, 1, 1, tzinfo=UTC), now() + timedelta(days=1))
        for view, spec in VIEWS.items():
            newest = latest(settings.folder, view).select([spec.key, "as_of"]).to_pydict()
            online = times(feast, view, newest[spec.key])
            behind = sum(was is None or was < due for was, due in zip(online, newest["as_of"], strict=True))
            if behind:
                raise DataError(f"{view}: {behind} of {len(online)} keys did not get their newest row online")
    return {str(view): count for view, count in added.items()}


def push(store: Store, *, most: int = 100) -> int:
    """Bring online what the oldest messages of the outbox are about; how many messages they were.

    Features are computed from the store, so a message that comes twice, or late, changes nothing. Raises StoreDown.
    """
    return hand_on(store, lambda messages: _receive(store, messages), most=most)


def historical(settings: FeatureSettings, asked: pa.Table) -> pa.Table:
    """What `vca.feedback.features.as_of` says, as Feast answers it (the order of the rows is Feast's)."""
    feast = open_feast(settings)
    features = [f"{view}:{name}" for view, spec in VIEWS.items() for name in spec.features]
    with _quiet():
        found = feast.get_historical_features(
            entity_df=asked.to_pandas(), features=features, filter_by_created_timestamp=True
        ).to_arrow()
    if found.num_rows != asked.num_rows:
        raise DataError(f"{asked.num_rows} rows were asked for, Feast answers with {found.num_rows}")
    return found


def online_rows(feast: FeatureStore, view: ViewName, keys: Sequence[str]) -> list[dict[str, Any]]:
    """What the online store knows of these keys, in their order; nulls where it knows nothing."""
    if not keys:
        return []
    spec = VIEWS[view]
    names = ["as_of", *spec.features]
    answer = feast.get_online_features(
        features=[f"{view}:{name}" for name in names], entity_rows=[{spec.key: key} for key in keys]
    ).to_dict()
    return [{name: answer[name][place] for name in (spec.key, *names)} for place in range(len(keys))]


def times(feast: FeatureStore, view: ViewName, keys: Sequence[str]) -> list[int | None]:
    """When each key's online row is from, in microseconds."""
    return [row["as_of"] for row in online_rows(feast, view, keys)]


def write_online(feast: FeatureStore, view: ViewName, fresh: pa.Table) -> None:
    """Push rows, one per key, unless the online store has a newer one: SQLite and PostgreSQL let old ones win."""
    known = times(feast, view, fresh[VIEWS[view].key].to_pylist())
    newer = [was is None or was <= new for was, new in zip(known, fresh["as_of"].to_pylist(), strict=True)]
    if any(newer):
        feast.push(push_source(view), fresh.filter(pa.array(newer)).to_pandas())


def _receive(store: Store, messages: list[Message]) -> None:
    settings = store.settings.features
    with store.database.alone("features"):
        feast = open_feast(settings)
        keys = touched(store, [message.payload["event_id"] for message in messages])
        for view, spec in VIEWS.items():
            newest = {row[spec.key]: row for row in rows(store, view, keys=keys[view])}  # the last row of each key
            if not newest:
                continue
            fresh = table(view, ({**row, "created_timestamp": now()} for row in newest.values()))
            keep_pushed(settings.folder, view, fresh)
            with _quiet():
                write_online(feast, view, fresh)


def _online(settings: FeatureSettings) -> dict[str, Any]:
    if settings.online == "sqlite":
        return {"type": "sqlite", "path": str(sqlite_file(settings).absolute())}
    if settings.online.startswith("redis"):
        place = redis_place(settings.online)
        address = f"{place['host']}:{place['port']},db={place['db']}"
        if place["password"]:
            address += f",password={place['password']}"
        # Feast's own guard also refuses a corrected row of the same moment; ours doesn't
        return {"type": "redis", "connection_string": address, "skip_dedup": True}
    from psycopg.conninfo import conninfo_to_dict

    place = conninfo_to_dict(settings.online)
    if not place.get("dbname") or not place.get("host"):
        raise SettingsError(f"feedback.features.online {settings.online}: postgresql://USER@HOST/NAME needs all three")
    return {
        "type": "postgres",
        "host": place["host"],
        "port": int(place.get("port") or 5432),
        "database": place["dbname"],
        "user": place.get("user") or "postgres",
        "password": place.get("password") or os.environ.get("PGPASSWORD", ""),
        "sslmode": place.get("sslmode") or "prefer",
    }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Feast prints what it does, and warns of what it is about to drop."""
    hidden = io.StringIO()
    with contextlib.redirect_stdout(hidden), contextlib.redirect_stderr(hidden), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
