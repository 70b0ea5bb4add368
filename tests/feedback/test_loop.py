"""`vca run` with a store: what it trains on besides, and what is written down of it."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from people import picked, willing
from stores import open_store

from vca import preflight
from vca.feedback import loop, reading
from vca.feedback.schema import dataset_snapshot
from vca.feedback.store import Store, now
from vca.progress import Quiet
from vca.settings import Settings, load


class Heard(Quiet):
    """Keeps the lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(autouse=True)
def ten_seconds_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "now", lambda: now() + timedelta(seconds=reading.LAG_S))


def settings_of(store: Store, *more: str) -> Settings:
    return load(overrides=[*sets(store), *more])


def sets(store: Store) -> list[str]:
    names = ("url", "objects", "key", "snapshots")
    return [f"feedback.{name}={getattr(store.settings, name)}" for name in names]


def test_new_pairs_become_a_source_beside_the_others_and_nothing_new_changes_nothing(store: Store) -> None:
    ann = willing(store)
    picked(store, ann)
    before = settings_of(store)

    first = loop.hear(before, progress=Quiet())
    again = loop.hear(before, progress=Quiet())

    assert first == again
    after = settings_of(store, *first.overrides)
    assert after.data.sources[:-1] == before.data.sources  # and their results keep their keys
    assert after.model_copy(update={"data": before.data}) == before
    assert preflight.prepare.watermark(after.data).endswith(f" feedback@{first.snapshot_id}")
    picked(store, ann)
    assert loop.hear(before, progress=Quiet()).snapshot_id != first.snapshot_id


@pytest.mark.parametrize("consent", [True, False])
def test_a_store_without_usable_pairs_is_told_and_changes_nothing(store: Store, consent: bool) -> None:
    if not consent:
        picked(store, store.person("ann"))
    progress = Heard()
    assert loop.hear(settings_of(store), progress=progress) == loop.Heard(overrides=(), snapshot_id=None)
    assert progress.lines[-1] == "feedback: nothing to train on yet; the run goes without"


def test_no_store_none_wanted_and_one_chosen_by_hand(tmp_path: Path) -> None:
    nothing = loop.Heard(overrides=(), snapshot_id=None)
    assert loop.hear(load(overrides=[f"feedback.url=sqlite:///{tmp_path}/none.sqlite"]), progress=Heard()) == nothing
    assert list(tmp_path.iterdir()) == []
    store = open_store(f"sqlite:///{tmp_path}/store.sqlite", tmp_path)
    picked(store, willing(store))
    assert loop.hear(settings_of(store, "feedback.train=false"), progress=Heard()) == nothing
    chosen = "data.sources=[{kind: emoji}, {kind: feedback, path: runs/x, objects: runs/y}]"
    assert loop.hear(settings_of(store, chosen), progress=Heard()) == nothing
    store.close()


def test_a_run_is_remembered_with_its_snapshot(store: Store, tmp_path: Path) -> None:
    from vca.feedback.snapshots import listed

    picked(store, willing(store))
    heard = loop.hear(settings_of(store), progress=Quiet())
    assert heard.snapshot_id is not None
    values: dict[str, Any] = {"run": tmp_path / "20270131-120000", "snapshot_id": heard.snapshot_id}
    loop.remember(store.settings, **values)
    loop.remember(store.settings, **values)
    assert [one.runs for one in listed(store)] == [("20270131-120000",)]
    with store.database.reading() as connection:
        assert connection.execute(sa.select(dataset_snapshot.c.n_pairs)).scalar_one() == 3
