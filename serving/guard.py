"""Around the whole application: what a request may weigh, who asked, and what happens when the caller leaves.

KServe's handlers know nothing of a caller that has gone: their work is cancelled here, and the device lets go of it
before its next step.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import orjson

from serving.model import RELEASE, REQUEST_ID, request_id
from serving.refusal import Refused

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

BODY_SECONDS = 30  # for a request to arrive whole; what trickles in longer holds a connection for nothing
_STATUS = {413: "body_too_large", 415: "unsupported_encoding", 408: "too_slow"}


class Guard:
    """An ASGI application around another one. limit: bytes of a request's body. release: who answers now."""

    def __init__(self, app: Application, *, limit: int, release: Callable[[], str]) -> None:
        self.app, self.limit, self.release = app, limit, release

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        name = request_id(headers.get(REQUEST_ID))
        # what handlers read is the checked id, so that answer, log and metric agree
        scope["headers"] = [pair for pair in scope["headers"] if pair[0].lower() != REQUEST_ID.encode()]
        scope["headers"].append((REQUEST_ID.encode(), name.encode()))

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept = [pair for pair in message.get("headers", []) if pair[0].lower() != REQUEST_ID.encode()]
                if not any(pair[0].lower() == RELEASE.encode() for pair in kept):  # a refusal, or a probe
                    kept.append((RELEASE.encode(), self.release().encode()))
                message["headers"] = [*kept, (REQUEST_ID.encode(), name.encode())]
            await send(message)

        try:
            body = await self._body(headers, receive)
        except Refused as refusal:
            await _refuse(refusal, send_named, openai=scope["path"].startswith("/openai/"))
            return
        if body is not None:
            await self._until_gone(scope, body, receive, send_named)

    async def _body(self, headers: MutableMapping[str, str], receive: Receive) -> bytes | None:
        """The whole body; None where the caller left before it was there."""
        if headers.get("content-encoding", "identity") != "identity":
            raise _refusal(415, f"Content-Encoding {headers['content-encoding'][:20]!r}: send the body as it is")
        told = headers.get("content-length", "0")
        if not told.isdigit() or int(told) > self.limit:
            raise _refusal(413, f"a body of {told[:20]} bytes; at most {self.limit} are allowed")
        parts, size = [], 0
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > self.limit:
                        raise _refusal(413, f"a body of more than {self.limit} bytes, which is what is allowed")
                    if not message.get("more_body"):
                        return b"".join(parts)
        except TimeoutError:
            raise _refusal(408, f"the body did not arrive within {BODY_SECONDS} seconds") from None

    async def _until_gone(self, scope: Message, body: bytes, receive: Receive, send: Send) -> None:
        given, gone = False, asyncio.Event()

        async def replay() -> Message:
            nonlocal given
            if not given:
                given = True
                return {"type": "http.request", "body": body, "more_body": False}
            await gone.wait()
            return {"type": "http.disconnect"}

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            gone.set()

        answering = asyncio.ensure_future(self.app(scope, replay, send))
        watching = asyncio.ensure_future(watch())
        try:
            await asyncio.wait({answering, watching}, return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                answering.cancel()
                await asyncio.wait({answering})
                return
            await answering
        finally:
            watching.cancel()
            answering.cancel()


def _refusal(status: int, message: str) -> Refused:
    return Refused(message, status=status, code=_STATUS[status])


async def _refuse(refusal: Refused, send: Send, *, openai: bool) -> None:
    content = orjson.dumps(refusal.body(openai=openai))
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(content)).encode()),
        (b"connection", b"close"),  # the rest of the body is not read
    ]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
