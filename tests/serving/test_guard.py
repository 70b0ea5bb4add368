"""Around the application: bodies that do not come to an end."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from serving import guard
from serving.guard import Guard


def test_a_body_that_trickles_in_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.05)
    sent: list[Any] = []

    async def app(*_: Any) -> None:
        raise AssertionError("reached the application")

    async def receive() -> Any:
        await asyncio.sleep(0.01)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    async def scene() -> None:
        guarded = Guard(app, limit=1_000_000, release=lambda: "none")
        scope = {"type": "http", "path": "/v2", "headers": []}
        await asyncio.wait_for(guarded(scope, receive, send), timeout=10)

    asyncio.run(scene())
    assert sent[0]["status"] == 408
    assert "did not arrive" in json.loads(sent[1]["body"])["error"]
