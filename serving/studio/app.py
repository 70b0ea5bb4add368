"""The studio's HTTP API: dialogues, rounds, what people say of them, their pictures and their consent.

Every route asks who is calling, then the store, which knows nothing that is somebody else's. Answers come after the
store's commit; while it is down they are 503, and what was sent can be sent again under the same ids.
"""

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

import httpx
from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import ValidationError

from serving.refusal import Refused
from serving.studio import identity, limits, wire
from serving.studio.drawing import Drawing
from serving.studio.refining import refine
from vca.feedback import dialogues, events, queue, sharing
from vca.feedback.dialogues import OPEN, RoundRequest, Words
from vca.feedback.errors import StoreDown
from vca.feedback.events import Event, Gate
from vca.feedback.recording import Recorder
from vca.feedback.store import Person, Store
from vca.service import StudioSettings

logger = logging.getLogger(__name__)

DWELL_FLOOR_MS = 300  # nobody looks at four pictures in less


class Studio:
    """What the routes share."""

    def __init__(self, store: Store, settings: StudioSettings) -> None:
        self.store, self.settings = store, settings
        self.sign_in = identity.sign_in(settings.sign_in)
        self.recorder = Recorder(store)
        self.changes = Changes()
        self.drawing = Drawing(store, settings, changed=self.changes.tell)
        self.generator = httpx.AsyncClient(base_url=settings.generator_url, timeout=5.0, trust_env=False)
        self.events_per_person = limits.Buckets(per_minute=settings.events_per_minute)
        self.rounds_per_person = limits.Buckets(per_minute=settings.rounds_per_minute)
        self._task: asyncio.Task[None] | None = None

    def person(self, request: Request) -> Person:
        """Who is asking. Raises Refused with 401."""
        return self.store.person(self.sign_in.identity(request.headers.get("authorization")))

    def view(self, person: Person) -> wire.View:
        return wire.View(store=self.store, person=person, settings=self.settings, previews=self.drawing.previews)

    def tree(self, person: Person, dialogue_id: str) -> dict[str, Any]:
        token = sharing.shared(self.store, person, dialogue_id)
        return self.view(person).tree(dialogue_id, share=token and f"/s/{token}")

    @contextlib.asynccontextmanager
    async def running(self, _: FastAPI) -> AsyncIterator[None]:
        """Draws what is queued while the application lives."""
        task = asyncio.create_task(self.drawing.run())
        try:
            yield
        finally:
            self.changes.close()
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await self.generator.aclose()


class Changes:
    """Wakes whoever follows a round. What it looks like now they read from the store."""

    def __init__(self) -> None:
        self._followers: dict[str, set[asyncio.Event]] = {}
        self.closed = False

    def tell(self, round_id: str) -> None:
        for event in self._followers.get(round_id, ()):
            event.set()

    def close(self) -> None:
        """The server stops: followers end, and connect to the next one."""
        self.closed = True
        for round_id in self._followers:
            self.tell(round_id)

    @contextlib.contextmanager
    def follow(self, round_id: str) -> Any:
        event = asyncio.Event()
        self._followers.setdefault(round_id, set()).add(event)
        try:
            yield event
        finally:
            self._followers[round_id].discard(event)
            if not self._followers[round_id]:
                del self._followers[round_id]


def routes(studio: Studio) -> APIRouter:
    """The JSON API, below /v1."""
    store, settings = studio.store, studio.settings
    router = APIRouter(prefix="/v1")
    Caller = Annotated[Person, Depends(studio.person)]

    @router.get("/dialogues/{dialogue_id}")
    def get_tree(dialogue_id: events.Uuid, person: Caller) -> Any:
        return studio.tree(person, dialogue_id)

    @router.post("/dialogues")
    async def begin(sent: wire.NewDialogue, person: Caller) -> Response:
        studio.rounds_per_person.take(person.subject_id)
        truncated = await refine(studio.generator, prompt=sent.prompt, feedback="", history=[], patient=False)
        words = _words(prompt=sent.prompt, truncated=truncated["truncated"] if truncated else ())
        first = RoundRequest(round_id=sent.round_id, words=words, pictures=settings.pictures)
        new = await asyncio.to_thread(
            dialogues.begin, store, person, dialogue_id=sent.dialogue_id, first=first, locale=sent.locale
        )
        studio.drawing.wake()
        url = f"/d/{sent.dialogue_id}/r/{sent.round_id}"
        body = {"dialogue_id": sent.dialogue_id, "round_id": sent.round_id, "url": url}
        return JSONResponse(body, status_code=201 if new else 200)

    @router.post("/dialogues/{dialogue_id}/refinements")
    async def refinements(dialogue_id: events.Uuid, sent: wire.Critique, person: Caller) -> Any:
        tree = await asyncio.to_thread(dialogues.tree, store, person, dialogue_id)
        path = tree.path(sent.parent_round_id)
        before = path[-1].words.prompt
        history = [(one.words.critique, one.words.prompt) for one in path]
        made = await refine(studio.generator, prompt=before, feedback=sent.feedback(), history=history, patient=True)
        assert made is not None
        lost = [part for part in sent.keep if part.lower() not in made["refined_prompt"].lower()]
        return {
            "prompt": made["refined_prompt"],
            "before": before,
            **{name: made[name] for name in ("kept", "changed", "action", "notice", "truncated")},
            "warnings": [f"“{part}” should stay, but is no longer in the words below." for part in lost],
        }

    @router.post("/dialogues/{dialogue_id}/rounds")
    def ask(dialogue_id: events.Uuid, sent: wire.NewRound, person: Caller) -> Response:
        studio.rounds_per_person.take(person.subject_id)
        try:
            request = sent.request(settings)
        except ValidationError as error:
            raise limits.invalid(error.errors()) from None
        new = dialogues.ask(store, person, dialogue_id=dialogue_id, request=request)
        studio.drawing.wake()
        body = {"round_id": sent.round_id, "url": f"/d/{dialogue_id}/r/{sent.round_id}"}
        return JSONResponse(body, status_code=202 if new else 200)

    @router.put("/dialogues/{dialogue_id}/head")
    def head(dialogue_id: events.Uuid, sent: wire.Head, person: Caller) -> Any:
        dialogues.go_to(store, person, dialogue_id=dialogue_id, round_id=sent.round_id)
        return {"head": sent.round_id}

    @router.post("/dialogues/{dialogue_id}/share")
    def share(dialogue_id: events.Uuid, person: Caller) -> Any:
        token, end = sharing.share(store, person, dialogue_id=dialogue_id, days=settings.share_days)
        return {"url": f"/s/{token}", "expires_at": end.isoformat()}

    @router.delete("/dialogues/{dialogue_id}/share")
    def unshare(dialogue_id: events.Uuid, person: Caller) -> Any:
        sharing.revoke(store, person, dialogue_id=dialogue_id)
        return {}

    @router.get("/rounds/{round_id}")
    def get_round(round_id: events.Uuid, person: Caller) -> Any:
        return studio.view(person).round(dialogues.dialogue_of(store, person, round_id), round_id)

    @router.post("/rounds/{round_id}/cancel")
    def cancel(round_id: events.Uuid, person: Caller) -> Any:
        return {"status": queue.cancel(store, person, round_id=round_id)}

    @router.post("/rounds/{round_id}/presentations")
    def compare(round_id: events.Uuid, sent: wire.Comparison, person: Caller) -> Any:
        seen = events.present(
            store, person, round_id=round_id, layout=sent.layout, only=sent.pictures, viewport=sent.viewport
        )
        return {"presentation_id": seen.presentation_id, "slots": list(seen.slots)}

    @router.get("/rounds/{round_id}/events")
    async def follow(round_id: events.Uuid, person: Caller) -> Response:
        dialogue_id = await asyncio.to_thread(dialogues.dialogue_of, store, person, round_id)
        stream = _followed(studio, person, dialogue_id, round_id)
        return StreamingResponse(stream, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})

    @router.post("/events")
    def record(sent: Event, person: Caller) -> Response:
        studio.events_per_person.take(person.subject_id)
        recorded = studio.recorder.record(person, sent, gates=gates(sent))
        body = {
            "event_id": recorded.event_id,
            "received_at": recorded.received_at.isoformat(),
            "replayed": recorded.replayed,
        }
        return JSONResponse(body, status_code=200 if recorded.replayed else 201)

    @router.get("/pictures/{candidate_id}")
    def picture(candidate_id: events.Uuid, person: Caller, download: bool = False) -> Response:
        return picture_response(store, dialogues.picture(store, person, candidate_id), download=download)

    @router.get("/pictures/{candidate_id}/preview")
    def preview(candidate_id: events.Uuid, person: Caller) -> Response:
        dialogues.picture(store, person, candidate_id)
        data = studio.drawing.previews.get(candidate_id)
        if data is None:
            raise Refused("no preview of that picture", status=404, code="not_found")
        return Response(data, media_type="image/png", headers={"Cache-Control": "private, max-age=60"})

    @router.get("/me")
    def me(person: Caller) -> Any:
        return {"name": "you", "consent": store.consent(person)}

    @router.put("/me/consent")
    def consent(sent: wire.Consent, person: Caller) -> Any:
        store.agree(person, {"train": sent.train})
        return {"consent": store.consent(person)}

    @router.delete("/me")
    def leave(sent: wire.Farewell, person: Caller) -> Response:
        from vca.feedback.erasure import erase

        receipt = erase(store, subject_id=person.subject_id)
        return JSONResponse({"receipt": receipt.id}, status_code=202)

    return router


def gates(sent: Event, checks: dict[str, Callable[[Event], Gate]] | None = None) -> dict[str, Gate]:
    """What checks for abuse make of an event. One that fails itself says "unknown": nobody is bad for its outage."""
    found: dict[str, Gate] = {}
    for name, check in (checks or {"dwell": _dwell}).items():
        try:
            found[name] = check(sent)
        except Exception:
            logger.exception("the check %s is out of order", name)
            found[name] = "unknown"
    return found


def _dwell(sent: Event) -> Gate:
    if sent.dwell_ms is None:
        return "unknown"
    return "pass" if sent.dwell_ms >= DWELL_FLOOR_MS else "fail"


def picture_response(store: Store, digest: str | None, *, download: bool = False) -> Response:
    """The file as the generator made it, signed and marked."""
    data = None if digest is None else store.objects.get(digest)
    if data is None:
        raise Refused("no such picture", status=404, code="not_found")
    headers = {"Cache-Control": "private, max-age=31536000, immutable", "X-Content-Type-Options": "nosniff"}
    if download:
        headers["Content-Disposition"] = f'attachment; filename="picture-{str(digest)[:8]}.png"'
    return Response(data, media_type="image/png", headers=headers)


def _words(**fields: Any) -> Words:
    try:
        return Words(**fields)
    except ValidationError as error:
        raise limits.invalid(error.errors()) from None


async def _followed(studio: Studio, person: Person, dialogue_id: str, round_id: str) -> AsyncIterator[bytes]:
    """The whole round each time it changes: who missed some states misses nothing. Another studio may draw it, so the
    store is asked again now and then."""
    sent: str | None = None
    number = 0
    with studio.changes.follow(round_id) as changed:
        while not studio.changes.closed:
            changed.clear()
            try:
                state = await asyncio.to_thread(studio.view(person).round, dialogue_id, round_id)
            except StoreDown:
                yield b": the store is away\n\n"
            else:
                text = json.dumps(state)
                if text != sent:
                    sent, number = text, number + 1
                    yield f"event: round\nid: {number}\ndata: {text}\n\n".encode()
                else:
                    yield b": still here\n\n"
                if state["status"] not in OPEN:
                    yield b"event: end\ndata: {}\n\n"
                    return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), timeout=2.0)
            await asyncio.sleep(0.05)  # four pictures that finish together are one state
