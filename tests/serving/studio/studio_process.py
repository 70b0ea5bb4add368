"""The studio in a process of its own, as `vca studio` starts it, and dialogues in it over HTTP."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from serving_process import ROOT, START_SECONDS, free_ports


def new_id() -> str:
    return str(uuid.uuid4())


@dataclass
class Studio:
    """A running studio. `start` after `kill` starts it again on the same store and port."""

    folder: Path
    generator: str
    sets: tuple[str, ...] = ()
    port: int = field(default_factory=lambda: free_ports(1)[0])
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def settings(self) -> list[str]:
        """Where the store is, as `--set`s."""
        return [
            f"feedback.url=sqlite:///{self.folder}/store.sqlite",
            f"feedback.objects={self.folder}/pictures",
            f"feedback.key={self.folder}/master.key",
            f"feedback.snapshots={self.folder}/snapshots",
            f"studio.generator_url={self.generator}",
            "studio.events_per_minute=100000",
            "studio.rounds_per_minute=100000",
            *self.sets,
        ]

    @property
    def log(self) -> str:
        return (self.folder / "studio.log").read_text()

    def start(self, *, wait: bool = True) -> None:
        command = [sys.executable, "-m", "serving.studio", f"--port={self.port}"]
        with (self.folder / "studio.log").open("ab") as out:
            self.process = subprocess.Popen(
                [*command, *(f"--set={one}" for one in self.settings)],
                cwd=ROOT,
                stdout=out,
                stderr=out,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        if wait:
            self.wait()

    def wait(self) -> None:
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            assert self.process is not None
            assert self.process.poll() is None, self.log[-3000:]
            try:
                if httpx.get(f"{self.url}/readyz", trust_env=False).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.1)
        raise AssertionError(f"not ready: {self.log[-3000:]}")

    def kill(self) -> None:
        """SIGKILL."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(60)

    def client(self, **headers: str) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, trust_env=False, headers=headers)


@contextmanager
def studio_of(folder: Path, generator: str, *sets: str) -> Iterator[Studio]:
    running = Studio(folder=folder, generator=generator, sets=sets)
    running.start()
    try:
        yield running
    finally:
        if running.process is not None and running.process.poll() is None:
            running.kill()


def begin(client: httpx.Client, prompt: str = "red heart") -> tuple[str, str]:
    """A new dialogue: its id and its round's."""
    sent = {"dialogue_id": new_id(), "round_id": new_id(), "prompt": prompt}
    answer = client.post("/v1/dialogues", json=sent)
    assert answer.status_code == 201, answer.text
    return sent["dialogue_id"], sent["round_id"]


def finished(client: httpx.Client, round_id: str) -> dict[str, Any]:
    """The round once it is drawn."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        answer = client.get(f"/v1/rounds/{round_id}")
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        if found["status"] not in ("queued", "running"):
            return found
        time.sleep(0.05)
    raise AssertionError(f"never finished: {found}")


def event(seen: dict[str, Any], kind: str, *slots: int, **more: Any) -> dict[str, Any]:
    """About the pictures in these slots of a presentation."""
    target = [seen["slots"][slot] for slot in slots]
    return {"event_id": new_id(), "presentation_id": seen["presentation_id"], "kind": kind, "target": target, **more}


def next_round(client: httpx.Client, dialogue_id: str, parent: dict[str, Any], critique: str, **more: Any) -> str:
    """Ask for another round from the first picture of `parent`; its id."""
    picture = parent["presentation"]["slots"][0]
    asked = {"parent_round_id": parent["round_id"], "parent_candidate_id": picture, "critique": critique}
    refined = client.post(f"/v1/dialogues/{dialogue_id}/refinements", json=asked)
    assert refined.status_code == 200, refined.text
    prompt = refined.json()["prompt"]
    sent = {"round_id": new_id(), **asked, "prompt": prompt, "prompt_refined": prompt, "strength": 0.6, **more}
    answer = client.post(f"/v1/dialogues/{dialogue_id}/rounds", json=sent)
    assert answer.status_code == 202, answer.text
    return sent["round_id"]
