"""Has the generator draw what is queued. One task per round, one call per picture: the generator batches them.

The queue belongs to the store, so any number of studios share it, and a round outlives the process that draws it.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import logging
import os
import socket
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
from PIL import Image

from vca.feedback import queue
from vca.feedback.erasure import discard
from vca.feedback.errors import Conflict, StoreDown
from vca.feedback.phash import phash
from vca.feedback.queue import Drawn, Job
from vca.feedback.store import Store
from vca.service import StudioSettings

logger = logging.getLogger(__name__)

PREVIEW_PX = 128
KEPT_PREVIEWS = 256
HEARTBEAT_S = 1.0  # how soon a cancelled round lets go of the device
FAILED = {"moderation_blocked": "hidden", "unchecked": "unchecked", "empty_picture": "empty"}


class Previews:
    """The last preview of each picture that is being drawn. Bounded; losing one costs nothing."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[int, bytes]] = OrderedDict()

    def put(self, candidate_id: str, data: bytes) -> None:
        number = self.number(candidate_id) + 1
        self._kept[candidate_id] = (number, data)
        self._kept.move_to_end(candidate_id)
        while len(self._kept) > KEPT_PREVIEWS:
            self._kept.popitem(last=False)

    def number(self, candidate_id: str) -> int:
        """How many there were; 0 for none."""
        return self._kept[candidate_id][0] if candidate_id in self._kept else 0

    def get(self, candidate_id: str) -> bytes | None:
        return self._kept[candidate_id][1] if candidate_id in self._kept else None

    def drop(self, candidate_id: str) -> None:
        self._kept.pop(candidate_id, None)


class Drawing:
    """Draws until it is stopped. `changed` is called, in the event loop, with the id of a round that moved on."""

    def __init__(self, store: Store, settings: StudioSettings, *, changed: Callable[[str], None]) -> None:
        self.store, self.settings, self.changed = store, settings, changed
        self.previews = Previews()
        self.name = f"{socket.gethostname()}-{os.getpid()}-{os.urandom(4).hex()}"[-64:]
        self._wake = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        # previews and pictures take their time; that a generator is gone is noticed by connecting
        self._client = httpx.AsyncClient(
            base_url=settings.generator_url, timeout=httpx.Timeout(settings.patience_s, connect=3.0), trust_env=False
        )

    def wake(self) -> None:
        """Something was queued here. Any thread may say so."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._wake.set)

    async def run(self) -> None:
        """Until cancelled; what is under way then goes back into the queue."""
        self._loop = asyncio.get_running_loop()
        running: set[asyncio.Task[None]] = set()
        try:
            while True:
                job = None
                if len(running) < self.settings.rounds_at_once:
                    try:
                        job = await asyncio.to_thread(queue.claim, self.store, worker=self.name)
                    except StoreDown as error:
                        logger.warning("%s", error)
                if job is not None:
                    running.add(task := asyncio.create_task(self._round(job)))
                    task.add_done_callback(running.discard)
                    task.add_done_callback(lambda _: self._wake.set())
                    continue
                with contextlib.suppress(TimeoutError):  # another studio's round may have been left behind
                    await asyncio.wait_for(self._wake.wait(), timeout=1.0)
                self._wake.clear()
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            await self._client.aclose()

    async def _round(self, job: Job) -> None:
        """Draw what a round still lacks, for as long as it is ours."""
        self.changed(job.round_id)
        image = None
        drawing: asyncio.Future[Any] | None = None
        try:
            if job.image_sha256 is not None:
                image = await asyncio.to_thread(self.store.objects.get, job.image_sha256)
            deadline = time.monotonic() + self.settings.patience_s
            drawing = asyncio.gather(
                *(self._picture(job, image, deadline, one) for one in job.waiting), return_exceptions=False
            )
            while not drawing.done():
                await asyncio.wait([drawing], timeout=HEARTBEAT_S)
                try:
                    ours = await asyncio.to_thread(queue.renew, self.store, round_id=job.round_id, worker=self.name)
                except StoreDown:  # what is being drawn is worth keeping until the store is back
                    continue
                if not ours:
                    break  # cancelled, or all of it is there
            if drawing.done():
                drawing.result()
        except asyncio.CancelledError:
            with contextlib.suppress(StoreDown):
                queue.give_back(self.store, round_id=job.round_id, worker=self.name)
            raise
        except (Conflict, StoreDown) as error:  # the lease runs out, and the round is drawn again
            logger.warning("round %s: %s", job.round_id, error)
        except Exception:
            logger.exception("round %s failed", job.round_id)
        finally:
            if drawing is not None:
                drawing.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await drawing
            for candidate_id, *_ in job.waiting:
                self.previews.drop(candidate_id)
            self.changed(job.round_id)

    async def _picture(
        self, job: Job, image: bytes | None, deadline: float, wanted: tuple[str, int, int, float | None]
    ) -> None:
        candidate_id, _, seed, strength = wanted
        order: dict[str, Any] = {
            "prompt": job.words.prompt,
            "seed": seed,
            "refine": False,
            "stream": True,
            "partial_images": self.settings.previews,
        }
        path = "/openai/v1/images/generations"
        if job.image_sha256 is not None:
            path = "/openai/v1/images/edits"
            order |= {
                "image": base64.b64encode(image or b"").decode(),
                "previous_prompt": job.previous_prompt,
                "strength": strength,
            }
        if job.image_sha256 is not None and image is None:
            drawn = Drawn(state="failed", safety="unknown", reason="picture_gone")
        else:
            drawn = await self._drawn(job, candidate_id, path, order, deadline)
        while True:
            try:
                await asyncio.to_thread(
                    queue.put,
                    self.store,
                    round_id=job.round_id,
                    worker=self.name,
                    candidate_id=candidate_id,
                    drawn=drawn,
                )
                break
            except Conflict:  # cancelled or erased meanwhile: a picture that nobody knows of must not stay
                if drawn.image_sha256 is not None:
                    await asyncio.to_thread(discard, self.store, [drawn.image_sha256])
                raise
            except StoreDown as error:
                logger.warning("round %s: %s", job.round_id, error)
                await asyncio.sleep(1.0)
        self.previews.drop(candidate_id)
        self.changed(job.round_id)

    async def _drawn(self, job: Job, candidate_id: str, path: str, order: dict[str, Any], deadline: float) -> Drawn:
        """Ask until there is an answer, or patience ends."""
        while True:
            started = time.monotonic()
            try:
                async with self._client.stream("POST", path, json=order) as response:
                    if response.status_code != 200:
                        await response.aread()
                        drawn, wait = _refused(response)
                    else:
                        drawn, wait = None, 1.0
                        async for event in _events(response):
                            kind = event.get("type", "")
                            if kind.endswith(".partial_image"):
                                await self._preview(job, candidate_id, event)
                            elif kind.endswith(".completed"):
                                took = int(1000 * (time.monotonic() - started))
                                return await asyncio.to_thread(self._kept, event, took)
                            elif kind == "error":
                                drawn, wait = _error(event.get("error") or {}), 1.0
            except httpx.HTTPError as error:
                logger.info("generator: %r", error)
                drawn, wait = None, 1.0
            if drawn is not None:
                return drawn
            if time.monotonic() + wait > deadline:
                return Drawn(state="failed", safety="unknown", reason="no_generator")
            await asyncio.sleep(wait)

    async def _preview(self, job: Job, candidate_id: str, event: dict[str, Any]) -> None:
        self.previews.put(candidate_id, await asyncio.to_thread(_small, base64.b64decode(event["b64_json"])))
        self.changed(job.round_id)

    def _kept(self, event: dict[str, Any], took: int) -> Drawn:
        data = base64.b64decode(event["b64_json"])
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            image.load()
            return Drawn(
                state="ready",
                safety="pass",
                image_sha256=self.store.objects.put(data),
                phash=phash(image),
                width=image.width,
                height=image.height,
                release=str(event["release"])[:128],
                gen_ms=took,
            )


def _refused(response: httpx.Response) -> tuple[Drawn | None, float]:
    """What a refusal means for the picture: nothing yet (and how long to wait), or that there won't be one."""
    try:
        error = response.json()["error"]
    except (ValueError, KeyError, TypeError):
        error = {}
    if response.status_code in (429, 503) and error.get("code") != "unchecked":
        asked = response.headers.get("retry-after", "1")
        return None, min(float(asked) if asked.isdigit() else 1.0, 10.0)
    return _error(error), 0.0


def _error(error: dict[str, Any]) -> Drawn:
    """Hidden by the filter is one thing, a filter that is out of order another, a fault a third."""
    code = error.get("code") if isinstance(error, dict) else None
    reason = FAILED.get(code or "", "generator_fault")
    if code == "moderation_blocked":
        return Drawn(state="blocked", safety="fail", reason=reason)
    return Drawn(state="blocked" if code == "unchecked" else "failed", safety="unknown", reason=reason)


async def _events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """Server-sent events whose data is one line of JSON."""
    async for line in response.aiter_lines():
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))


def _small(data: bytes) -> bytes:
    """A preview that weighs little."""
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        image.thumbnail((PREVIEW_PX, PREVIEW_PX))
        file = io.BytesIO()
        image.save(file, "PNG")
        return file.getvalue()
