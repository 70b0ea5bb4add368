"""What a caller may send, how much and how often; and what every response tells the browser."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import orjson

from serving.refusal import Refused
from vca.service import StudioSettings

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

CSP = (
    "default-src 'self'; img-src 'self' blob:; connect-src 'self'; style-src 'self'; script-src 'self'; "
    "object-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
)
SECURITY = {
    "content-security-policy": CSP,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",  # "no-referrer" has browsers send forms with the origin "null"
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}
_PEOPLE = 100_000


class Buckets:
    """A token bucket per person: `per_minute` on average, as many at once."""

    def __init__(self, *, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_minute, self._clock = per_minute, clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, person: str) -> None:
        """Raises Refused with 429 and the time after which it works again."""
        at = self._clock()
        left, last = self._left.pop(person, (float(self.per_minute), at))
        left = min(float(self.per_minute), left + (at - last) * self.per_minute / 60)
        self._left[person] = (left - 1 if left >= 1 else left, at)
        if len(self._left) > _PEOPLE:
            self._left.popitem(last=False)
        if left < 1:
            wait = max(1, round((1 - left) * 60 / self.per_minute))
            raise Refused(
                f"more than {self.per_minute} a minute; slow down", status=429, code="too_many", retry_after=wait
            )


def invalid(errors: Sequence[Any]) -> Refused:
    """The first thing that is wrong with what was sent. Never repeats what that was."""
    first = errors[0]
    name = ".".join(str(part) for part in first["loc"] if part != "body")
    message = str(first["msg"]).removeprefix("Value error, ")
    return Refused(f"{name}: {message}" if name else message, status=422, param=name or None)


class Guard:
    """Around the application: foreign pages and hosts, too much data, and the headers of every response."""

    def __init__(self, app: Application, *, settings: StudioSettings) -> None:
        self.app, self.settings = app, settings
        self.most = settings.max_body_kb * 1000

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_safe(message: Message) -> None:
            if message["type"] == "http.response.start":
                named = {name.lower() for name, _ in message["headers"]}
                extra = [(n.encode(), v.encode()) for n, v in SECURITY.items() if n.encode() not in named]
                if b"cache-control" not in named:
                    extra.append((b"cache-control", b"no-store"))
                message["headers"] = [*message["headers"], *extra]
            await send(message)

        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            self._same_site(scope, headers)
            body = await self._body(headers, receive)
        except Refused as refusal:
            await _refuse(refusal, send_safe)
            return

        sent = False

        async def replay() -> Message:
            nonlocal sent
            if sent:
                return await receive()
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, replay, send_safe)

    def _same_site(self, scope: Message, headers: dict[str, str]) -> None:
        """DNS rebinding and cross-site requests: the host is one of ours, and what changes something comes from it."""
        host = headers.get("host", "")
        name = urlsplit(f"//{host}").hostname if host.isascii() else None
        if "*" not in self.settings.hosts and name not in self.settings.hosts:
            raise Refused(
                f"host {host[:60]!r} is not served here; allowed (studio.hosts): {', '.join(self.settings.hosts)}",
                status=421,
                code="wrong_host",
            )
        if scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return
        site, origin = headers.get("sec-fetch-site", "same-origin"), headers.get("origin")
        foreign = origin is not None and urlsplit(origin).netloc != host
        if site not in ("same-origin", "none") or foreign:
            raise Refused("this was sent by another page; open the studio itself", status=403, code="cross_site")

    async def _body(self, headers: dict[str, str], receive: Receive) -> bytes:
        if headers.get("content-encoding", "identity") != "identity":
            raise Refused("compressed bodies are not taken", status=415, code="unsupported_encoding")
        too_large = Refused(f"more than {self.settings.max_body_kb} kB; say it shorter", status=413, code="too_large")
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > self.most:
            raise too_large
        parts, size, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Refused("the caller has gone", status=400, code="gone")
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            more = message.get("more_body", False)
            if size > self.most:
                raise too_large
        return b"".join(parts)


def error_body(refusal: Refused) -> dict[str, Any]:
    return {"error": {"message": refusal.message, "code": refusal.code, "field": refusal.param}}


async def _refuse(refusal: Refused, send: Send) -> None:
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": orjson.dumps(error_body(refusal))})
