"""Clients that write feedback through a studio while its processes are killed; and what became of their events.

Jepsen's shape: concurrent clients, a recorded history, kills, and a check of the history against what is stored. A
client that got no answer sends the same event again until it is acknowledged.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import sqlalchemy as sa

from vca.feedback import dialogues, events, queue
from vca.feedback.dialogues import RoundRequest, Words
from vca.feedback.queue import Drawn
from vca.feedback.schema import feedback_event, outbox
from vca.feedback.settings import FeedbackSettings
from vca.feedback.store import Store

ROOT = Path(__file__).parents[2]


def new_id() -> str:
    return str(uuid.uuid4())


def settings_of(url: str, folder: Path) -> FeedbackSettings:
    return FeedbackSettings.model_validate(
        {"url": url, "objects": str(folder / "pictures"), "key": folder / "master.key", "snapshots": folder / "snaps"}
    )


def seen_by(store: Store, number: int, *, identity: str = "local") -> list[events.Presentation]:
    """So many dialogues with four (made-up) pictures each that the person was shown."""
    person = store.person(identity)
    found = []
    for _ in range(number):
        request = RoundRequest(round_id=new_id(), words=Words(prompt="red heart"))
        dialogues.begin(store, person, dialogue_id=new_id(), first=request)
        job = queue.claim(store, worker="test")
        assert job is not None
        for candidate_id, *_ in job.waiting:
            drawn = Drawn(state="ready", safety="pass", image_sha256="0" * 64, phash="0" * 16, release="r")
            queue.put(store, round_id=job.round_id, worker="test", candidate_id=candidate_id, drawn=drawn)
        found.append(events.present(store, person, round_id=request.round_id))
    return found


@dataclass
class App:
    """The studio's process; nothing is drawn in these tests."""

    url: str
    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        settings = settings_of(self.url, self.folder)
        sets = [f"feedback.{name}={getattr(settings, name)}" for name in ("url", "objects", "key", "snapshots")]
        sets += ["studio.events_per_minute=100000000", "studio.generator_url=http://127.0.0.1:9"]
        with (self.folder / "app.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "serving.studio", f"--port={self.port}", *(f"--set={one}" for one in sets)],
                cwd=ROOT,
                stdout=log,
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(60)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@dataclass
class History:
    """acknowledged: event id to the moment of its first acknowledgement. refused: answers that should not be."""

    acknowledged: dict[str, float] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    unavailable: int = 0
    replayed: int = 0


def write(app: App, seen: Sequence[events.Presentation], stop: threading.Event, history: History) -> None:
    """A client per presentation, each sending picks one after the other until told to stop, the last one too."""
    lock = threading.Lock()

    def client(presentation: events.Presentation) -> None:
        with httpx.Client(base_url=app.address, timeout=10, trust_env=False) as http:
            while not stop.is_set():
                sent = {
                    "event_id": new_id(),
                    "presentation_id": presentation.presentation_id,
                    "kind": "pick",
                    "target": [presentation.slots[0]],
                }
                _until_acknowledged(http, sent, history, lock)

    threads = [threading.Thread(target=client, args=(one,)) for one in seen]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _until_acknowledged(http: httpx.Client, sent: dict[str, Any], history: History, lock: threading.Lock) -> None:
    while True:
        try:
            answer = http.post("/v1/events", json=sent)
        except httpx.HTTPError:
            time.sleep(0.05)
            continue
        with lock:
            if answer.status_code in (200, 201):
                history.acknowledged[sent["event_id"]] = time.monotonic()
                history.replayed += answer.status_code == 200
                return
            if answer.status_code != 503:
                history.refused.append(f"{answer.status_code} {answer.text[:200]}")
                return
            history.unavailable += 1
        time.sleep(0.1)


@dataclass(frozen=True)
class Found:
    """lost: acknowledged and not stored. doubled: stored more than once, in the outbox too."""

    stored: int
    lost: int
    doubled: int


def check(store: Store, history: History) -> Found:
    with store.database.reading() as connection:
        stored = [row[0] for row in connection.execute(sa.select(feedback_event.c.event_id))]
        told = [row[0]["event_id"] for row in connection.execute(sa.select(outbox.c.payload))]
    lost = len(set(history.acknowledged) - set(stored)) + len(set(history.acknowledged) - set(told))
    doubled = len(stored) - len(set(stored)) + len(told) - len(set(told))
    return Found(stored=len(stored), lost=lost, doubled=doubled)


def until_acknowledged(history: History, kill: Callable[[], None]) -> float:
    """Kill and start again; how long it took from the kill until the next acknowledgement, in seconds."""
    started = time.monotonic()
    kill()
    back = time.monotonic()  # what is acknowledged from now on comes from the process that was started
    while True:
        later = [moment for moment in list(history.acknowledged.values())[-100:] if moment > back]
        if later:
            return min(later) - started
        time.sleep(0.01)
