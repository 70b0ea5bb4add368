"""Around the application: bodies that do not come to an end, and whose release an answer names."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from serving import guard
from serving.guard import Guard
from serving.model import Call


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


def test_an_answer_names_the_release_that_gave_it_and_not_the_one_that_serves_by_now() -> None:
    call = Call(request_id="mine", deadline=0, release="old")
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(name.encode(), value.encode()) for name, value in call.headers().items()]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

    messages = iter([{"type": "http.request", "body": b"", "more_body": False}])

    async def receive() -> Any:
        for message in messages:
            return message
        await asyncio.Event().wait()  # the caller stays

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "path": "/v2", "headers": [(b"x-request-id", b"mine")]}
    asyncio.run(Guard(app, limit=1, release=lambda: "new")(scope, receive, send))
    assert sorted(sent[0]["headers"]) == [(b"x-request-id", b"mine"), (b"x-vca-release", b"old")]
