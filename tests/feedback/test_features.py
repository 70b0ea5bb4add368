"""Features on disk and online, through a real Feast. Its import takes seconds, so the module shares one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from stores import new_id, open_store, redis_server, say, shown

from vca.errors import DataError
from vca.feedback import feature_repo, online
from vca.feedback.erasure import erase
from vca.feedback.feature_rows import VIEWS, rows
from vca.feedback.features import as_of, file_of, forget, latest, table, update
from vca.feedback.outbox import Message, hand_on
from vca.feedback.schema import outbox
from vca.feedback.settings import FeatureSettings
from vca.feedback.store import Person, Store, now

pytestmark = pytest.mark.slow
START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture(params=["sqlite", "redis", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty online store of each kind."""
    if request.param == "sqlite":
        return "sqlite"
    if request.param == "redis":
        url = str(request.getfixturevalue("redis"))
        import redis

        client = redis.Redis(**online.redis_place(url))
        client.flushall()
        client.close()
        return url
    return str(request.getfixturevalue("server").create(f"f{uuid.uuid4().hex}"))


@pytest.fixture
def fed(tmp_path: Path, place: str) -> Iterator[tuple[Store, Person]]:
    """A store with one person who agrees to training, and its features set up."""
    features = {"folder": tmp_path / "features", "online": place}
    store = open_store(f"sqlite:///{tmp_path}/store.sqlite", tmp_path, features=features)
    ann = store.person("ann")
    store.agree(ann, {"train": True})
    feature_repo.apply(store)
    yield store, ann
    store.close()


def picks(store: Store, person: Person, count: int) -> None:
    for _ in range(count):
        say(store, person, shown(store, person), "pick", 0)


def known(store: Store, person: Person) -> dict[str, Any]:
    feast = feature_repo.open_feast(store.settings.features)
    (row,) = feature_repo.online_rows(feast, "subject_stats", [person.subject_id])
    return row


def put(settings: FeatureSettings, view: Any, some: list[dict[str, Any]]) -> None:
    """Replace a view's file, as `update` does: DuckDB would answer from what it remembers of one written over."""
    file = file_of(settings.folder, view)
    pq.write_table(table(view, some), file.with_suffix(".new"))
    os.utime(file.with_suffix(".new"), (1, 1))  # as if the clock stood still
    os.replace(file.with_suffix(".new"), file)


# Offline


def test_a_late_event_corrects_rows_for_later_questions_only(fed: tuple[Store, Person]) -> None:
    store, ann = fed
    picks(store, ann, 3)
    with store.database.writing() as connection:  # the second one is committed late
        held = connection.execute(sa.text("SELECT * FROM feedback_event ORDER BY received_at")).all()
        connection.execute(sa.text("DELETE FROM feedback_event WHERE event_id = :e"), {"e": held[1].event_id})
    early, late = now(), now() + timedelta(hours=1)
    assert update(store, at=early)["subject_stats"] == 2
    with store.database.writing() as connection:
        row = held[1]._mapping
        columns = ", ".join(row)
        connection.execute(sa.text(f"INSERT INTO feedback_event ({columns}) VALUES (:{', :'.join(row)})"), dict(row))
    assert update(store, at=late)["subject_stats"] == 2  # itself, and the third one's correction
    assert update(store, at=late + timedelta(hours=1))["subject_stats"] == 0

    folder = store.settings.features.folder
    moments = [early - timedelta(hours=1), early, late]
    asked = pa.table(
        {
            "subject_id": [ann.subject_id] * 3,
            "dialogue_id": ["-"] * 3,
            "prompt_hmac": ["-"] * 3,
            "event_timestamp": pa.array(moments, pa.timestamp("us", "UTC")),
        }
    )
    assert as_of(folder, asked)["picks_30d"].to_pylist() == [None, 2, 3]
    assert latest(folder, "subject_stats").to_pylist()[0]["picks_30d"] == 3


def test_features_of_a_forgotten_person_are_gone_offline(fed: tuple[Store, Person]) -> None:
    store, ann = fed
    picks(store, ann, 2)
    update(store)
    folder = store.settings.features.folder

    assert forget(folder, "subject_stats", [ann.subject_id]) == 2
    assert forget(folder, "subject_stats", [ann.subject_id]) == 0
    assert pq.read_table(file_of(folder, "subject_stats")).num_rows == 0
    assert pq.read_table(file_of(folder, "dialogue_stats")).num_rows == 2


MINUTES = st.integers(0, 6).map(lambda minutes: START + timedelta(minutes=minutes))
KEY = st.sampled_from(["a", "b", "c"])
VALUES = {"BIGINT": st.integers(0, 9), "DOUBLE": st.sampled_from([None, 0.25, 0.5]), "BOOLEAN": st.booleans()}


@st.composite
def files(draw: st.DrawFn) -> dict[str, list[dict[str, Any]]]:
    """Rows of every view: same moments, rows that came late, keys without any. A view holds a key's row once."""
    made = {}
    for view, spec in VIEWS.items():
        row = st.fixed_dictionaries(
            {
                spec.key: KEY,
                "event_timestamp": MINUTES,
                "created_timestamp": MINUTES,
                "as_of": st.just(0),
                **{name: VALUES[kind] for name, kind in spec.features.items()},
            }
        )
        unique = st.lists(
            row, max_size=8, unique_by=lambda r, key=spec.key: (r[key], r["event_timestamp"], r["created_timestamp"])
        )
        made[view] = draw(unique)
    return made


ASKED = st.lists(
    st.fixed_dictionaries(
        {
            "subject_id": KEY,
            "dialogue_id": st.sampled_from(["a", "b", "nobody's"]),
            "prompt_hmac": KEY,
            "event_timestamp": MINUTES,
        }
    ),
    min_size=1,
    max_size=6,
)


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> FeatureSettings:
    """Feast over files that a test writes anew each time."""
    settings = FeatureSettings(folder=tmp_path_factory.mktemp("offline"))
    for view in VIEWS:
        put(settings, view, [])
    feature_repo.open_feast(settings).apply(feature_repo.definitions(settings))
    return settings


@hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(made=files(), asked=ASKED, candidates=st.integers(1, 3))
def test_our_join_is_feasts(
    offline: FeatureSettings, made: dict[Any, Any], asked: list[dict[str, Any]], candidates: int
) -> None:
    for view, some in made.items():
        put(offline, view, some)
    every = [{**row, "candidate_id": f"{n}-{slot}"} for n, row in enumerate(asked) for slot in range(candidates)]
    schema = pa.schema([(name, pa.string()) for name in ("candidate_id", *(spec.key for spec in VIEWS.values()))])
    rows_asked = pa.Table.from_pylist(
        every, schema=schema.append(pa.field("event_timestamp", pa.timestamp("us", "UTC")))
    )

    ours = as_of(offline.folder, rows_asked)
    theirs = feature_repo.historical(offline, rows_asked).sort_by("candidate_id")

    assert ours.num_rows == theirs.num_rows == len(every)
    names = [name for spec in VIEWS.values() for name in spec.features]
    mine = {row["candidate_id"]: [row[name] for name in names] for row in ours.to_pylist()}
    for row in theirs.to_pylist():
        found = [None if row[name] != row[name] else row[name] for name in names]  # pandas' NaN
        assert mine[row["candidate_id"]] == found
    for row in ours.to_pylist():  # and nothing later than the moment, by the slow way
        for view, spec in VIEWS.items():
            seen = [
                one
                for one in made[view]
                if one[spec.key] == row[spec.key]
                and max(one["event_timestamp"], one["created_timestamp"]) <= row["event_timestamp"]
            ]
            best = max(seen, key=lambda one: (one["event_timestamp"], one["created_timestamp"]), default={})
            assert [row[name] for name in spec.features] == [best.get(name) for name in spec.features]


def test_a_store_that_loses_rows_is_noticed(offline: FeatureSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    from feast import FeatureStore, RepoConfig

    def losing(settings: FeatureSettings) -> FeatureStore:
        """Feast's own default, whose join merges rows of one key and moment (feast#6787)."""
        config = feast.config.model_dump() | {"offline_store": {"type": "file"}, "registry": {"path": registry}}
        config = {name: config[name] for name in ("project", "provider", "registry", "offline_store")}
        return FeatureStore(config=RepoConfig(**config, entity_key_serialization_version=3, repo_path=settings.folder))

    feast = feature_repo.open_feast(offline)
    registry = str(offline.folder / "registry.db")
    some = {"event_timestamp": START, "created_timestamp": START, "as_of": 0}
    for view, spec in VIEWS.items():
        row = {spec.key: "a", **some, **dict.fromkeys(spec.features)}
        put(offline, view, [row])
    keys = {spec.key: ["a", "a", "a"] for spec in VIEWS.values()}
    moments = pa.array([START + timedelta(1)] * 3, pa.timestamp("us", "UTC"))
    asked = pa.table({"candidate_id": ["1", "2", "3"], **keys, "event_timestamp": moments})
    assert feature_repo.historical(offline, asked).num_rows == 3

    monkeypatch.setattr(feature_repo, "open_feast", losing)
    with pytest.raises(DataError, match="rows were asked for"):
        feature_repo.historical(offline, asked)


# Online


def test_pushed_features_are_online_once_however_often_they_come(fed: tuple[Store, Person]) -> None:
    store, ann = fed
    picks(store, ann, 3)
    messages = _messages(store)

    assert feature_repo.push(store, most=2) == 2
    assert feature_repo.push(store) == 1
    assert feature_repo.push(store) == 0
    row = known(store, ann)
    feature_repo._receive(store, messages)  # all of them once more, the oldest first

    assert row == known(store, ann)
    assert (row["picks_30d"], row["trust"]) == (3, 0.75)
    assert row["as_of"] == list(rows(store, "subject_stats"))[-1]["as_of"]
    # what was pushed counts from then on
    folder = store.settings.features.folder
    later = now()
    update(store, at=later + timedelta(days=1))
    pushed = latest(folder, "subject_stats").to_pylist()[0]
    assert pushed["created_timestamp"] < later


def test_an_older_row_does_not_replace_a_newer_one(fed: tuple[Store, Person]) -> None:
    store, ann = fed
    feast = feature_repo.open_feast(store.settings.features)

    def write(minute: int, count: int) -> None:
        at = START + timedelta(minutes=minute)
        row = {"subject_id": ann.subject_id, "event_timestamp": at, "created_timestamp": at, "as_of": minute}
        row |= {"picks_30d": count, "agreement": None, "trust": 1.0}
        feature_repo.write_online(feast, "subject_stats", table("subject_stats", [row]))

    write(5, 50)
    write(4, 40)
    assert known(store, ann)["picks_30d"] == 50
    write(5, 51)  # the same moment, corrected
    assert known(store, ann)["picks_30d"] == 51
    write(6, 60)
    assert known(store, ann)["picks_30d"] == 60


def test_materialize_brings_all_online_and_never_back(fed: tuple[Store, Person]) -> None:
    store, ann = fed
    picks(store, ann, 2)
    assert feature_repo.materialize(store)["subject_stats"] == 2
    assert known(store, ann)["picks_30d"] == 2
    picks(store, ann, 1)
    feature_repo.push(store)
    feature_repo.materialize(store)  # pushed rows are newer than what the file had
    assert known(store, ann)["picks_30d"] == 3


def test_an_erased_person_is_gone_online_and_offline(fed: tuple[Store, Person], tmp_path: Path) -> None:
    store, ann = fed
    bob = store.person("bob")
    store.agree(bob, {"train": True})
    picks(store, ann, 2)
    picks(store, bob, 1)
    feature_repo.push(store)
    messages = [Message(seq=1, key=new_id(), payload={"event_id": new_id()})]

    done = erase(store, subject_id=ann.subject_id, runs=tmp_path / "runs")
    feature_repo._receive(store, messages)  # a consumer that was killed before, and comes again

    assert done.receipts["features"]["offline_rows"]["subject_stats"] == 1
    assert known(store, ann)["as_of"] is None
    assert known(store, bob)["picks_30d"] == 1
    folder = store.settings.features.folder
    feature_repo.materialize(store)
    assert latest(folder, "subject_stats")["subject_id"].to_pylist() == [bob.subject_id]
    assert known(store, ann)["as_of"] is None
    assert [path for path in folder.rglob("*") if path.is_file() and ann.subject_id.encode() in path.read_bytes()] == []


def test_keys_are_feasts() -> None:
    from feast.infra.key_encoding_utils import serialize_entity_key
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value

    key = EntityKey(join_keys=["subject_id"], entity_values=[Value(string_val="é1")])
    assert online.entity_key("subject_id", "é1") == serialize_entity_key(key, entity_key_serialization_version=3)


# The outbox

KILLED = """
import os, signal, sys
from pathlib import Path
from stores import open_store
from vca.feedback import outbox

store = open_store(sys.argv[1], Path(sys.argv[2]))
log = open(Path(sys.argv[2]) / "received", "a")

def receiver(messages):
    for number, message in enumerate(messages):
        if number == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        log.write(f"{message.key} {message.payload['event_id']}\\n")
        log.flush()

outbox.hand_on(store, receiver, most=5)
"""


def test_a_consumer_killed_in_the_middle_gets_all_again_in_order(store: Store, tmp_path: Path) -> None:
    ann = store.person("ann")
    seen = [shown(store, ann) for _ in range(2)]
    said = [say(store, ann, seen[number % 2], "pick", 0).event_id for number in range(12)]
    paths = [str(Path(online.__file__).parents[2]), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    for _ in range(2):
        command = [sys.executable, "-c", KILLED, store.settings.url, str(tmp_path)]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert ended.returncode == -signal.SIGKILL, ended.stderr

    received = [line.split()[1] for line in (tmp_path / "received").read_text().splitlines()]
    assert received == said[:3] * 2
    while hand_on(store, lambda messages: received.extend(m.payload["event_id"] for m in messages), most=5):
        pass

    assert list(dict.fromkeys(received)) == said  # every one, in order, once the receiver drops what it had
    assert _messages(store) == []


def test_a_receiver_that_fails_keeps_the_messages(store: Store) -> None:
    ann = store.person("ann")
    say(store, ann, shown(store, ann), "pick", 0)

    def fails(messages: list[Message]) -> None:
        raise DataError("no")

    with pytest.raises(DataError):
        hand_on(store, fails)
    assert len(_messages(store)) == 1


def test_one_at_a_time(store: Store) -> None:
    from vca.feedback.errors import StoreDown

    with store.database.alone("features"):
        started = time.monotonic()
        with pytest.raises(StoreDown, match="busy with features"), store.database.alone("features", wait_s=0.2):
            pass
        assert time.monotonic() - started >= 0.2
        with store.database.alone("outbox-feedback", wait_s=0.2):
            pass
    with store.database.alone("features", wait_s=0.2):
        pass


def _messages(store: Store) -> list[Message]:
    with store.database.reading() as connection:
        found = connection.execute(sa.select(outbox).order_by(outbox.c.seq)).all()
    return [Message(seq=row.seq, key=row.key, payload=row.payload) for row in found]


def test_the_commands_apply_push_and_materialize(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from vca.cli_feedback import app

    store = open_store(f"sqlite:///{tmp_path}/store.sqlite", tmp_path)
    ann = store.person("ann")
    store.agree(ann, {"train": True})
    named = store.settings.model_dump(mode="json", include={"url", "objects", "key", "snapshots"})
    sets = [
        *(f"feedback.{key}={value}" for key, value in named.items()),
        f"feedback.features.folder={tmp_path}/features",
    ]

    def run(command: str) -> str:
        answer = CliRunner().invoke(app, ["features", command, *(part for one in sets for part in ("--set", one))])
        assert answer.exit_code == 0, answer.output
        return answer.output

    assert run("apply").startswith("Feast knows subject_stats")
    picks(store, ann, 2)
    assert run("push") == "2 events pushed\n"
    assert known(store, ann)["picks_30d"] == 2
    assert run("apply") == run("apply")
    assert run("materialize") == "subject_stats: 0 new rows, dialogue_stats: 0 new rows, prompt_stats: 0 new rows\n"
    store.close()
