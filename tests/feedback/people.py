"""People who let us train, and whole stores of what they said."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from stores import say, shown

from vca.feedback import reading, snapshot
from vca.feedback.events import Presentation
from vca.feedback.recording import Recorded
from vca.feedback.snapshot import Snapshot
from vca.feedback.store import Person, Store, now
from vca.progress import Quiet


def willing(store: Store, name: str = "ann") -> Person:
    person = store.person(name)
    store.agree(person, {"train": True})
    return person


def picked(store: Store, person: Person, slot: int = 0, prompt: str = "red heart") -> tuple[Presentation, Recorded]:
    """A new dialogue, and the pick in it."""
    seen = shown(store, person, prompt)
    return seen, say(store, person, seen, "pick", slot)


def take(store: Store, monkeypatch: pytest.MonkeyPatch, as_of: datetime | None = None) -> Snapshot:
    """A snapshot of what was said until now, as if the ten seconds had passed."""
    monkeypatch.setattr(reading, "now", lambda: now() + timedelta(seconds=reading.LAG_S))
    return snapshot.take(store, as_of=as_of, progress=Quiet())


def rows(folder: Path, kind: str) -> list[dict]:  # type: ignore[type-arg]
    return [row for file in sorted((folder / kind).glob("*.parquet")) for row in pq.read_table(file).to_pylist()]
