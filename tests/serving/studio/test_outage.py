"""The store is away, full or read-only: people are told so at once, nothing is lost, and it comes back by itself."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa
from crashes import App, new_id, seen_by, settings_of
from postgres import Postgres, postgres
from serving_process import free_ports

from vca.feedback.database import Database
from vca.feedback.errors import StoreDown
from vca.feedback.events import Event, Presentation
from vca.feedback.recording import record
from vca.feedback.schema import feedback_event, outbox
from vca.feedback.store import Store


@pytest.fixture
def server() -> Iterator[Postgres]:
    with postgres() as running:
        yield running


def started(url: str, folder: Path) -> tuple[App, Presentation]:
    """A studio that is up, and something that was shown in it."""
    database = Database(url)
    database.migrate()
    database.close()
    store = Store.open(settings_of(url, folder))
    seen = seen_by(store, 1)[0]
    store.close()
    app = App(url=url, folder=folder, port=free_ports(1)[0])
    app.start()
    while True:
        try:
            if httpx.get(f"{app.address}/readyz", trust_env=False).status_code == 200:
                return app, seen
        except httpx.HTTPError:
            time.sleep(0.1)


def pick(seen: Presentation) -> dict[str, object]:
    return {
        "event_id": new_id(),
        "presentation_id": seen.presentation_id,
        "kind": "pick",
        "target": [seen.slots[0]],
    }


def recovered(http: httpx.Client, sent: dict[str, object]) -> httpx.Response:
    while (answer := http.post("/v1/events", json=sent)).status_code == 503:
        time.sleep(0.2)
    return answer


def test_while_postgresql_is_away_the_answer_is_503_and_then_all_goes_on(server: Postgres, tmp_path: Path) -> None:
    app, seen = started(server.create("outage"), tmp_path)
    sent = pick(seen)
    try:
        with httpx.Client(base_url=app.address, timeout=30, trust_env=False) as http:
            assert http.post("/v1/events", json=pick(seen)).status_code == 201
            server.kill()
            answers = [http.post("/v1/events", json=sent) for _ in range(12)]  # more than the pool has connections
            assert {answer.status_code for answer in answers} == {503}
            assert {answer.headers["retry-after"] for answer in answers} == {"2"}
            assert "try again" in answers[0].json()["error"]["message"]
            assert (http.get("/readyz").status_code, http.get("/healthz").status_code) == (503, 200)
            server.start()
            assert recovered(http, sent).status_code == 201
            assert http.get("/readyz").status_code == 200
    finally:
        assert app.stop() == 0


def test_a_locked_database_is_not_waited_for_forever(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/store.sqlite"
    app, seen = started(url, tmp_path)
    sent = pick(seen)
    try:
        with httpx.Client(base_url=app.address, timeout=30, trust_env=False) as http:
            blocker = sqlite3.connect(tmp_path / "store.sqlite", isolation_level=None)
            blocker.execute("BEGIN EXCLUSIVE")
            assert http.post("/v1/events", json=sent).status_code == 503
            blocker.execute("ROLLBACK")
            assert recovered(http, sent).status_code == 201
    finally:
        app.kill()


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path) -> None:
    """SQLite's own limit stands for the disk's: the error is the same, SQLITE_FULL."""
    url = f"sqlite:///{tmp_path}/store.sqlite"
    database = Database(url)
    database.migrate()
    database.close()
    store = Store.open(settings_of(url, tmp_path))
    seen = seen_by(store, 1)[0]
    person = store.person("local")

    def limited(connection: sqlite3.Connection, *_: object) -> None:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")

    def fill() -> None:
        for _ in range(1000):
            record(store, person, Event.model_validate({**pick(seen), "kind": "critique", "text": "x" * 4000}))

    sa.event.listen(store.database.engine, "checkout", limited)
    with pytest.raises(StoreDown, match="full"):
        fill()
    with store.database.reading() as connection:
        stored, told = (
            connection.execute(sa.select(sa.func.count()).select_from(table)).scalar()
            for table in (feedback_event, outbox)
        )
    assert stored == told
    store.close()
