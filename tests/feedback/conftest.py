"""Every test of the store runs on both databases: a SQLite file, and a real PostgreSQL that is started here."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from postgres import Postgres, postgres
from stores import open_store

from vca.feedback.store import Store


@pytest.fixture(scope="session")
def server() -> Iterator[Postgres]:
    """A PostgreSQL server of this session's own."""
    with postgres() as running:
        yield running


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """An empty store."""
    url = f"sqlite:///{tmp_path}/store.sqlite"
    if request.param == "postgresql":
        url = request.getfixturevalue("server").create(f"t{uuid.uuid4().hex}")
    opened = open_store(url, tmp_path)
    yield opened
    opened.close()
