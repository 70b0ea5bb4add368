from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.refusal import Refused
from serving.studio.limits import CSP, Buckets, Guard
from vca.service import StudioSettings


@given(st.lists(st.floats(0, 100), max_size=200))
def test_nobody_gets_more_than_their_rate_and_a_bucketful(pauses: list[float]) -> None:
    clock = [0.0]
    buckets = Buckets(per_minute=6, clock=lambda: clock[0])
    refusals: list[Refused] = []
    for pause in pauses:
        clock[0] += pause
        try:
            buckets.take("ann")
        except Refused as refused:
            refusals.append(refused)
    assert len(pauses) - len(refusals) <= 6 + clock[0] * 6 / 60 + 1e-6
    assert all(refused.status == 429 and (refused.retry_after or 0) >= 1 for refused in refusals)


def test_people_have_buckets_of_their_own_and_wait_as_long_as_they_are_told() -> None:
    clock = [0.0]
    buckets = Buckets(per_minute=6, clock=lambda: clock[0])
    for _ in range(6):
        buckets.take("ann")
    with pytest.raises(Refused) as refused:
        buckets.take("ann")
    buckets.take("bob")
    clock[0] += refused.value.retry_after or 0
    buckets.take("ann")


async def _echo(scope: Any, receive: Any, send: Any) -> None:
    body = (await receive())["body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


def call(*chunks: bytes, method: str = "POST", **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers, body of a request through the guard."""
    given = {"host": "127.0.0.1:8090", **{name.replace("_", "-"): value for name, value in headers.items()}}
    scope = {
        "type": "http",
        "method": method,
        "path": "/v1/x",
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
    }
    incoming = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    incoming.append({"type": "http.request", "body": b"", "more_body": False})
    sent: list[Any] = []

    async def receive() -> Any:
        return incoming.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(Guard(_echo, settings=StudioSettings(max_body_kb=1))(scope, receive, send))
    found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], found, sent[1]["body"]


def test_a_body_passes_whole_up_to_its_limit() -> None:
    assert call(b"a" * 600, b"b" * 400)[::2] == (200, b"a" * 600 + b"b" * 400)
    assert call(b"a" * 600, b"b" * 401)[0] == 413
    assert call(content_length="1001")[0] == 413
    assert call(b"x", content_encoding="gzip")[0] == 415


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"origin": "http://127.0.0.1:8090"}, 200),
        ({"host": "localhost:8090", "origin": "http://localhost:8090"}, 200),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://127.0.0.1:9999"}, 403),
        ({"sec_fetch_site": "cross-site"}, 403),
        ({"sec_fetch_site": "same-site"}, 403),
        ({"host": "evil.example:8090"}, 421),
        ({"host": ""}, 421),
    ],
)
def test_only_our_own_pages_change_anything(headers: dict[str, str], status: int) -> None:
    assert call(**headers)[0] == status


def test_every_response_tells_the_browser_what_it_may_do() -> None:
    for answer in (call(), call(origin="http://evil.example")):
        headers = answer[1]
        assert headers["content-security-policy"] == CSP
        assert (headers["x-content-type-options"], headers["cache-control"]) == ("nosniff", "no-store")
    assert "unsafe" not in CSP
