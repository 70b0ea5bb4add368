"""The feedback store under load: how fast it writes, and what is lost when its processes are killed.

    make bench NAME=feedback

Throughput: 8 clients write events through the store and, in turns with them, 8 connections do bare INSERT … COMMIT of
the same row into a table without anything else; the ratio of the medians counts. Then over HTTP, through the studio.
Kills: 8 clients send events through the studio, which is killed outright (SIGKILL) 25 times on SQLite; on PostgreSQL
the studio and the whole database are killed 25 times, one after the other, and at the end the database stays away for
two minutes. Every client sends an event until it is acknowledged. Afterwards each acknowledged event must be stored,
once. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

ROOT = Path(__file__).parents[1]
sys.path += [str(ROOT / "tests" / "shared"), str(ROOT / "tests" / "serving")]

from crashes import App, History, check, new_id, seen_by, settings_of, until_acknowledged, write
from postgres import postgres
from serving_process import free_ports

from vca.feedback.database import Database
from vca.feedback.events import Event, Presentation
from vca.feedback.recording import Recorder
from vca.feedback.store import Store

CLIENTS = 8
BARE = "CREATE TABLE bare (id VARCHAR(36) PRIMARY KEY, body TEXT)"


@contextmanager
def opened(url: str, folder: Path) -> Iterator[Store]:
    database = Database(url)
    database.migrate()
    database.close()
    store = Store.open(settings_of(url, folder), pool=CLIENTS)
    try:
        yield store
    finally:
        store.close()


def rate(write_one: Callable[[int], None], *, seconds: float) -> float:
    """Writes per second of CLIENTS threads, each calling `write_one` with its number."""
    counts = [0] * CLIENTS
    end = time.monotonic() + seconds

    def client(number: int) -> None:
        while time.monotonic() < end:
            write_one(number)
            counts[number] += 1

    threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.monotonic() - started)


def throughput(store: Store, *, turns: int, seconds: float) -> dict[str, Any]:
    """Medians of turns, store and bare one after the other."""
    seen = seen_by(store, CLIENTS)
    person, recorder = store.person("local"), Recorder(store)
    raw = [store.database.engine.raw_connection() for _ in range(CLIENTS)]
    for one in raw:
        one.detach()  # not the pool's any more
    mark = "?" if store.database.sqlite else "%s"
    with store.database.writing() as connection:
        connection.execute(sa.text(BARE))
    body = json.dumps({"kind": "pick", "target": list(seen[0].slots[:1])})

    def through_store(number: int) -> None:
        one = seen[number]
        sent = Event(event_id=new_id(), presentation_id=one.presentation_id, kind="pick", target=one.slots[:1])
        recorder.record(person, sent)

    def bare(number: int) -> None:
        cursor = raw[number].cursor()
        if store.database.sqlite:
            cursor.execute("BEGIN IMMEDIATE")
        cursor.execute(f"INSERT INTO bare VALUES ({mark}, {mark})", (new_id(), body))
        raw[number].commit()

    found: dict[str, list[float]] = {"store": [], "bare": []}
    for _ in range(turns):
        found["bare"].append(rate(bare, seconds=seconds))
        found["store"].append(rate(through_store, seconds=seconds))
    for one in raw:
        one.close()
    medians = {name: round(statistics.median(values)) for name, values in found.items()}
    return {**medians, "ratio": round(medians["store"] / medians["bare"], 2), "turns": found}


def over_http(app: App, seen: Sequence[Presentation], *, seconds: float) -> float:
    """Acknowledged events per second through the studio."""
    history, stop = History(), threading.Event()
    writing = threading.Thread(target=write, args=(app, seen, stop, history))
    writing.start()
    time.sleep(seconds)
    stop.set()
    writing.join()
    return len(history.acknowledged) / seconds


def killed(
    store: Store, app: App, seen: Sequence[Presentation], kills: Sequence[tuple[str, Callable[[], None]]]
) -> dict[str, Any]:
    """Kill one thing after the other under load; what was lost, and the times to the next acknowledgement."""
    history, stop = History(), threading.Event()
    writing = threading.Thread(target=write, args=(app, seen, stop, history))
    writing.start()
    times: dict[str, list[float]] = {name: [] for name, _ in kills}
    for number, (name, kill) in enumerate(kills):
        time.sleep(0.5 + number % 5 / 10)
        times[name].append(until_acknowledged(history, kill))
        print(f"  {name} killed, {number + 1} of {len(kills)}: {times[name][-1]:.2f} s", file=sys.stderr, flush=True)
    stop.set()
    writing.join()
    found = check(store, history)
    return {
        "acknowledged": len(history.acknowledged),
        "replayed": history.replayed,
        "lost": found.lost,
        "doubled": found.doubled,
        "refused": len(history.refused),
        "first_acknowledgement_s": {
            name: {"median": round(statistics.median(one), 2), "highest": round(max(one), 2), "kills": len(one)}
            for name, one in times.items()
        },
    }


def measured(
    url: str,
    kills: dict[str, Callable[[], None]],
    given: argparse.Namespace,
    last: dict[str, Callable[[], None]] | None = None,
) -> dict[str, Any]:
    """last: what is done once, after the kills."""
    with tempfile.TemporaryDirectory() as name, opened(url.format(folder=name), Path(name)) as store:
        app = App(url=url.format(folder=name), folder=Path(name), port=free_ports(1)[0])

        def app_killed() -> None:
            app.kill()
            app.start()

        found: dict[str, Any] = {"throughput": throughput(store, turns=given.turns, seconds=given.seconds)}
        print(json.dumps(found), file=sys.stderr, flush=True)
        seen = seen_by(store, CLIENTS)  # before the studio is there to draw them
        app.start()
        try:
            until_up = History()
            stop = threading.Event()
            warm = threading.Thread(target=write, args=(app, seen[:1], stop, until_up))
            warm.start()
            while not until_up.acknowledged:
                time.sleep(0.05)
            stop.set()
            warm.join()
            found["http_per_second"] = round(over_http(app, seen, seconds=given.seconds * given.turns))
            with store.database.writing() as connection:  # these were not in the history that is checked
                connection.execute(sa.text("DELETE FROM outbox"))
                connection.execute(sa.text("DELETE FROM feedback_event"))
            every = [*[("app", app_killed), *kills.items()] * given.kills, *(last or {}).items()]
            found["killed"] = killed(store, app, seen, every)
        finally:
            app.kill()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5, help="turns of store and bare connections")
    parser.add_argument("--seconds", type=float, default=2.0, help="seconds of a turn")
    parser.add_argument("--kills", type=int, default=25, help="kills of each process")
    parser.add_argument("--away", type=float, default=120.0, help="seconds that the database stays away")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    found = {"sqlite": measured("sqlite:///{folder}/store.sqlite", {}, given)}
    with postgres() as server:

        def database() -> None:
            server.kill()
            server.start()

        def away() -> None:
            server.kill()
            time.sleep(given.away)
            server.start()

        url = server.create("feedback")
        found["postgresql"] = measured(url, {"database": database}, given, last={"database_away": away})
    print(json.dumps(found))


if __name__ == "__main__":
    main()
