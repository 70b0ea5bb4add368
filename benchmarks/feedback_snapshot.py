"""Snapshots of a large feedback store: seconds, and peak memory over the number of events.

A SQLite store is filled with dialogues of about five rounds, four pictures each, from which people pick; some accept,
rate, change their mind or retract, and 3 % of rounds are shown again as probes. Rows are inserted in bulk, words are
encrypted with people's own keys as in earnest. Pictures are shared by many candidates, so that the disk holds a few
thousand files instead of millions; each is still looked up as often. Then processes of their own take a snapshot of
100 000 and of 1 000 000 events, each from a store of that size.

    python -m benchmarks.feedback_snapshot [--quick] [--keep FOLDER] [--profile]

The last line is one JSON object. Peak memory: the largest resident set of the process (ru_maxrss).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from vca.feedback import schema
from vca.feedback.dialogues import Words
from vca.feedback.settings import FeedbackSettings
from vca.feedback.store import Person, Store
from vca.progress import Quiet

PICTURES = 4000
CHUNK = 100  # dialogues inserted at once
TABLES = ("dialogue", "round_", "candidate", "presentation", "quality_probe", "feedback_event")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a hundredth of the work, to see that it runs")
    parser.add_argument("--keep", type=Path, help="fill stores here, or use those that are there")
    parser.add_argument("--profile", action="store_true", help="print where the time of a snapshot goes")
    parser.add_argument("--take", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.take:
        return print(json.dumps(take_alone(arguments.take, profile=arguments.profile)))
    sizes = (1_000, 10_000) if arguments.quick else (100_000, 1_000_000)
    with tempfile.TemporaryDirectory() as scratch:
        root = arguments.keep or Path(scratch)
        results = {str(events): one(root / str(events), events, profile=arguments.profile) for events in sizes}
    few, many = results.values()
    growth = round(many["peak_rss_mb"] / few["peak_rss_mb"], 3)
    print(json.dumps({"cores": os.cpu_count(), "snapshots": results, "peak_rss_growth": growth}))


def one(folder: Path, events: int, *, profile: bool) -> dict[str, Any]:
    """Fill a store where there is none, take a snapshot of it in a fresh process."""
    filled: dict[str, Any] = {}
    if not (folder / "filled").exists():
        start = time.perf_counter()
        filled = fill(folder, events=events)
        filled["fill_seconds"] = round(time.perf_counter() - start, 1)
        (folder / "filled").touch()
    command = [sys.executable, "-m", "benchmarks.feedback_snapshot", "--take", str(folder)]
    done = subprocess.run(
        [*command, *(["--profile"] if profile else [])], stdout=subprocess.PIPE, text=True, check=True
    )
    *told, last = done.stdout.splitlines()
    for line in told:
        print(line)
    result = filled | json.loads(last)
    print(f"{events:,} events: {json.dumps(result)}", flush=True)
    return result


def take_alone(folder: Path, *, profile: bool) -> dict[str, Any]:
    import cProfile
    import pstats

    from vca.feedback.snapshot import take

    store = Store.open(settings(folder))
    profiler = cProfile.Profile()
    start, cpu = time.perf_counter(), time.process_time()
    if profile:
        taken = profiler.runcall(take, store, progress=Quiet())
        pstats.Stats(profiler).sort_stats("tottime").print_stats(30)
    else:
        taken = take(store, progress=Quiet())
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    store.close()
    size = sum(file.stat().st_size for file in taken.folder.rglob("*.parquet"))
    manifest = taken.manifest
    for file in [*taken.folder.rglob("*.*")]:  # the next one writes it again
        file.unlink()
    return {
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "events": manifest.events,
        "pairs": manifest.usable,
        "excluded_pairs": manifest.excluded_pairs,
        "dialogues": sum(manifest.dialogues.values()),
        "parquet_mb": round(size / 1e6),
    }


def settings(folder: Path) -> FeedbackSettings:
    return FeedbackSettings.model_validate(
        {
            "url": f"sqlite:///{folder}/store.sqlite",
            "objects": str(folder / "pictures"),
            "key": folder / "master.key",
            "snapshots": folder / "snapshots",
        }
    )


def fill(folder: Path, *, events: int) -> dict[str, Any]:
    """A store with about that many events, of one person for every thousand of them."""
    folder.mkdir(parents=True, exist_ok=True)
    store = Store.open(settings(folder))
    people = [store.person(f"person {number}") for number in range(max(20, events // 1000))]
    for person in people[len(people) // 50 :]:  # one in fifty never agreed
        store.agree(person, {"train": True})
    pictures = [store.objects.put(f"picture {number}".encode()) for number in range(PICTURES)]
    story = Story(store, people, pictures, random.Random(0))
    seen = 0
    with store.database.engine.connect() as connection:
        connection.exec_driver_sql("DROP TRIGGER feedback_event_shown")  # what is made up here is right
        while seen < events:
            rows = story.chunk()
            seen += len(rows["feedback_event"])
            for table in TABLES:
                insert(connection, getattr(schema, table), rows[table])
            connection.commit()
    store.close()
    return {"store_mb": round((folder / "store.sqlite").stat().st_size / 1e6)}


def insert(connection: sa.Connection, table: sa.Table, rows: list[dict[str, Any]]) -> None:
    if not rows:
        return
    names = list(rows[0])
    places = ", ".join("?" for _ in names)
    statement = f'INSERT INTO "{table.name}" ({", ".join(names)}) VALUES ({places})'
    connection.exec_driver_sql(statement, [tuple(row[name] for name in names) for row in rows])


class Story:
    """Rows as the store would have written them, in the form that SQLite keeps."""

    def __init__(self, store: Store, people: list[Person], pictures: list[str], draw: random.Random) -> None:
        self.store, self.people, self.pictures, self.draw = store, people, pictures, draw
        self.clock = datetime(2024, 1, 1, tzinfo=UTC)
        self.prompts = [store.vault.hmac(f"prompt {number}") for number in range(5000)]

    def chunk(self) -> dict[str, list[dict[str, Any]]]:
        self.rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for _ in range(CHUNK):
            self._dialogue()
        return self.rows

    def _id(self) -> str:
        return uuid.UUID(int=self.draw.getrandbits(128), version=4).hex

    def _time(self, seconds: float = 0.0) -> str:
        self.clock += timedelta(seconds=seconds)
        return self.clock.strftime("%Y-%m-%d %H:%M:%S.%f")

    def _dialogue(self) -> None:
        person, dialogue_id = self.draw.choice(self.people), self._id()
        before: dict[str, Any] = {}
        rounds = list(self._rounds(person, dialogue_id, before))
        self.rows["dialogue"].append(
            {
                "dialogue_id": dialogue_id,
                "subject_id": person.subject_id.replace("-", ""),
                "head_round_id": rounds[-1],
                "request_sha256": "0" * 64,
                "source": "app",
                "status": "open",
                "created_at": self._time(),
            }
        )

    def _rounds(self, person: Person, dialogue_id: str, before: dict[str, Any]) -> Iterator[str]:
        length = self.draw.randint(3, 7)
        for depth in range(1, length + 1):
            round_id = self._id()
            words = Words(
                prompt=f"a red heart with {depth} wings, number {self.draw.randrange(5000)}, flat style",
                critique="" if depth == 1 else "make it a little larger and give it another wing",
            )
            name = str(uuid.UUID(round_id))
            self.rows["round_"].append(
                {
                    "round_id": round_id,
                    "dialogue_id": dialogue_id,
                    "parent_round_id": before.get("round"),
                    "parent_candidate_id": before.get("picture"),
                    "depth": depth,
                    "words_enc": person.key.seal(words.model_dump_json(), row=name),
                    "prompt_hmac": self.draw.choice(self.prompts),
                    "prompt_edited": False,
                    "strength": 0.8 if before else None,
                    "seed_mode": "fresh",
                    "status": "done",
                    "request_sha256": "0" * 64,
                    "attempts": 1,
                    "requested_at": self._time(20),
                    "completed_at": self._time(2),
                }
            )
            candidates = [self._candidate(round_id, idx) for idx in range(4)]
            before["picture"] = self._seen(person, dialogue_id, round_id, candidates, last=depth == length)
            before["round"] = round_id
            yield round_id

    def _candidate(self, round_id: str, idx: int) -> str:
        made = self._id()
        self.rows["candidate"].append(
            {
                "candidate_id": made,
                "round_id": round_id,
                "idx": idx,
                "seed": self.draw.getrandbits(52),
                "state": "ready",
                "image_sha256": self.draw.choice(self.pictures),
                "phash": f"{self.draw.getrandbits(64):016x}",
                "width": 64,
                "height": 64,
                "release": "0123456789abcdef",
                "safety": "pass" if self.draw.random() < 0.995 else "unknown",
                "gen_ms": 900,
            }
        )
        return made

    def _seen(self, person: Person, dialogue_id: str, round_id: str, candidates: list[str], *, last: bool) -> str:
        """The picture picked."""
        slots = self.draw.sample(candidates, 4)
        place = self._presentation(round_id, slots)
        picked = self.draw.choices(slots, weights=(30, 25, 23, 22))[0]
        about = (person, dialogue_id, round_id, place)
        event = self._event(*about, "pick", [picked])
        if self.draw.random() < 0.05:
            event = self._event(*about, "pick", [picked := self.draw.choice(slots)])
        if self.draw.random() < 0.02:
            self._event(*about, "retract", [], supersedes=event)
        if self.draw.random() < 0.10:
            self._event(*about, "rate", [picked], body=json.dumps({"style": self.draw.randint(1, 5)}))
        if last and self.draw.random() < 0.6:
            self._event(*about, "accept", [picked])
        if self.draw.random() < 0.03:
            again = self._presentation(round_id, slots[::-1])
            probe = {"probe_id": self._id(), "presentation_id": again, "of_presentation_id": place}
            self.rows["quality_probe"].append(probe | {"kind": "self_repeat"})
            answer = picked if self.draw.random() < 0.9 else self.draw.choice(slots)
            self._event(person, dialogue_id, round_id, again, "pick", [answer])
        return picked

    def _presentation(self, round_id: str, slots: list[str]) -> str:
        made = self._id()
        self.rows["presentation"].append(
            {
                "presentation_id": made,
                "round_id": round_id,
                "slots": json.dumps([str(uuid.UUID(slot)) for slot in slots]),
                "shuffle_seed": 0,
                "layout": "grid",
                "shown_at": self._time(0.1),
            }
        )
        return made

    def _event(
        self,
        person: Person,
        dialogue_id: str,
        round_id: str,
        place: str,
        kind: str,
        target: list[str],
        *,
        supersedes: str | None = None,
        body: str = "{}",
    ) -> str:
        made, at = self._id(), self._time(5)
        self.rows["feedback_event"].append(
            {
                "event_id": made,
                "subject_id": person.subject_id.replace("-", ""),
                "dialogue_id": dialogue_id,
                "round_id": round_id,
                "presentation_id": place,
                "kind": kind,
                "version": 1,
                "body": body,
                "body_sha256": "0" * 64,
                "target": json.dumps([str(uuid.UUID(one)) for one in target]),
                "supersedes": supersedes,
                "event_at": at,
                "received_at": at,
                "dwell_ms": 4000,
                "input": "mouse",
                "gates": '{"rate": "pass"}',
            }
        )
        return made


if __name__ == "__main__":
    main()
