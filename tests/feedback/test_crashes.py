"""Kills of the app and of PostgreSQL under load: what was acknowledged is stored, once (benchmarks/feedback.py)."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from crashes import App, History, check, seen_by, settings_of, write
from postgres import postgres
from serving_process import free_ports

from vca.feedback.database import Database
from vca.feedback.store import Store

KILLS = 3


@pytest.mark.slow
@pytest.mark.parametrize("back_end", ["sqlite", "postgresql"])
def test_what_was_acknowledged_is_there_once_however_often_things_are_killed(tmp_path: Path, back_end: str) -> None:
    if back_end == "sqlite":
        _killed(tmp_path, f"sqlite:///{tmp_path}/store.sqlite", kills={})
        return
    with postgres() as server:

        def database() -> None:
            server.kill()
            server.start()

        _killed(tmp_path, server.create("crashes"), kills={"database": database})


def _killed(folder: Path, url: str, *, kills: dict[str, object]) -> None:
    database = Database(url)
    database.migrate()
    database.close()
    store = Store.open(settings_of(url, folder))
    seen = seen_by(store, 4)
    app = App(url=url, folder=folder, port=free_ports(1)[0])
    history, stop = History(), threading.Event()

    def app_killed() -> None:
        app.kill()
        app.start()

    app.start()
    writing = threading.Thread(target=write, args=(app, seen, stop, history))
    writing.start()
    try:
        _more(history)
        for _ in range(KILLS):
            for kill in (app_killed, *kills.values()):
                before = len(history.acknowledged)
                kill()  # type: ignore[operator]
                _more(history, than=before)
    finally:
        stop.set()
        writing.join()
        code = app.stop()
    found = check(store, history)
    store.close()
    assert (found.lost, found.doubled, history.refused) == (0, 0, [])
    assert found.stored >= len(history.acknowledged) > 20
    assert code == 0


def _more(history: History, *, than: int = 0) -> None:
    """Until more events are acknowledged."""
    while len(history.acknowledged) < than + 10:
        threading.Event().wait(0.05)
