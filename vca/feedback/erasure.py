"""Erasing a person: their key, their words, their pictures, and whatever was made of them on disk.

The first transaction destroys the key and the rows, makes every snapshot that they are in invalid, and writes down
what is left to do. From then on nothing about them can be read or trained on; the rest is cleaning up, step by step,
each with a receipt. Killed anywhere, the same call (or the next erasure of anybody) goes on where it stopped.

What stays is the request itself, under the person's random number. Trained releases stay too, and are listed: whether
to train anew without the person is for people to decide.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from vca.feedback import online
from vca.feedback.errors import NotFound
from vca.feedback.feature_rows import VIEWS
from vca.feedback.features import forget
from vca.feedback.schema import (
    candidate,
    dataset_snapshot,
    dialogue,
    erasure_request,
    feedback_event,
    outbox,
    round_,
    snapshot_subject,
    store_state,
    subject,
    training_run,
)
from vca.feedback.store import Store, new_id, now
from vca.feedback.traces import Traces, find

DUE = timedelta(days=30)  # GDPR, article 12 (3): within one month
ERASED = "erased"
_MANY = 500  # digests in one question to the database


@dataclass(frozen=True, kw_only=True)
class Erasure:
    """receipts: per store what was done there, and when. releases: what was trained on the person and still exists."""

    id: str
    subject_id: str
    requested_at: datetime
    due_at: datetime
    completed_at: datetime | None
    receipts: dict[str, Any]
    snapshots: tuple[str, ...]
    releases: tuple[dict[str, Any], ...]


@dataclass(kw_only=True)
class _Work:
    """A request on its way: what its steps read, and what they find."""

    store: Store
    runs: Path
    todo: dict[str, Any]
    snapshots: list[str]
    releases: list[dict[str, Any]] = field(default_factory=list)


def erase(store: Store, *, subject_id: str, runs: Path = Path("runs")) -> Erasure:
    """Erase a person, or answer with the receipts where that was done. runs: where trained results are looked for.

    Raises NotFound where nobody has this number; StoreDown where a store can't be reached, and then the same call, or
    `finish`, goes on later.
    """
    begin(store, subject_id=subject_id)
    finish(store, runs=runs)
    return receipt(store, subject_id=subject_id)


def subject_of(store: Store, identity: str) -> str:
    """The number of the person who signs in as `identity`. Raises NotFound; once erased, nobody is."""
    with store.database.reading() as connection:
        found = connection.execute(
            sa.select(subject.c.subject_id).where(subject.c.auth_hmac == store.vault.hmac(f"identity {identity}"))
        ).scalar()
    if found is None:
        raise NotFound("nobody has that identity; after an erasure only the person's number (--subject) is known")
    return str(found)


def receipt(store: Store, *, subject_id: str) -> Erasure:
    """How far the person's erasure is. Raises NotFound where there is none."""
    with store.database.reading() as connection:
        row = connection.execute(sa.select(erasure_request).where(erasure_request.c.subject_id == subject_id)).first()
    if row is None:
        raise NotFound(f"no person {subject_id}")
    return Erasure(
        id=row.id,
        subject_id=row.subject_id,
        requested_at=row.requested_at,
        due_at=row.due_at,
        completed_at=row.completed_at,
        receipts={name: part for name, part in row.receipts.items() if name != "todo"},
        snapshots=tuple(row.snapshots_hit),
        releases=tuple(row.releases_hit),
    )


def begin(store: Store, *, subject_id: str) -> None:
    """The transaction after which the person is gone. Does nothing where it was done. Raises NotFound, StoreDown."""
    with store.database.writing() as connection:
        if not store.database.sqlite:
            connection.execute(sa.text("SET LOCAL statement_timeout = 0"))  # a lifetime of events may take seconds
        # Whoever is writing about this person is waited for, whoever comes later finds them gone: in the order in
        # which the writers lock.
        who = sa.select(subject.c.subject_id).where(subject.c.subject_id == subject_id)
        if connection.execute(who.with_for_update()).first() is None:
            done = sa.select(erasure_request.c.id).where(erasure_request.c.subject_id == subject_id)
            if connection.execute(done).first() is None:
                raise NotFound(f"no person {subject_id}")
            return
        mine = sa.select(dialogue.c.dialogue_id).where(dialogue.c.subject_id == subject_id)
        dialogues = list(connection.execute(mine.with_for_update()).scalars())
        rounds = connection.execute(
            sa.select(round_.c.prompt_hmac, round_.c.depth)
            .where(round_.c.dialogue_id.in_(mine))
            .order_by(round_.c.round_id)
            .with_for_update()
        ).all()
        pictures = connection.execute(
            sa.select(candidate.c.image_sha256)
            .join(round_, round_.c.round_id == candidate.c.round_id)
            .where(round_.c.dialogue_id.in_(mine), candidate.c.image_sha256.is_not(None))
            .distinct()
        ).scalars()
        todo = {
            "pictures": sorted(pictures),
            "features": {
                "subject_stats": [subject_id],
                "dialogue_stats": sorted(dialogues),
                "prompt_stats": sorted({row.prompt_hmac for row in rounds}),
            },
        }
        events = connection.execute(
            sa.select(sa.func.count()).select_from(feedback_event).where(feedback_event.c.subject_id == subject_id)
        ).scalar_one()
        connection.execute(sa.delete(outbox).where(outbox.c.key.in_(mine)))
        for depth in range(max((row.depth for row in rounds), default=0), 0, -1):  # SQLite nests cascades 1000 deep
            connection.execute(sa.delete(round_).where(round_.c.dialogue_id.in_(mine), round_.c.depth == depth))
        connection.execute(sa.delete(subject).where(subject.c.subject_id == subject_id))  # and all that refers to it
        # A snapshot that is being registered now holds this row: then it is found here, else it finds its epoch gone.
        connection.execute(
            sa.update(store_state).where(store_state.c.name == "erasure_epoch").values(value=store_state.c.value + 1)
        )
        hit = sa.select(snapshot_subject.c.snapshot_id).where(snapshot_subject.c.subject_id == subject_id)
        snapshots = sorted(connection.execute(hit).scalars())
        moment = now()
        connection.execute(
            sa.update(dataset_snapshot)
            .where(dataset_snapshot.c.snapshot_id.in_(hit))
            .values(invalid_at=moment, invalid_reason=ERASED)
        )
        rows = {"dialogues": len(dialogues), "rounds": len(rounds), "events": events, "key": "destroyed"}
        connection.execute(
            sa.insert(erasure_request).values(
                id=new_id(),
                subject_id=subject_id,
                requested_at=moment,
                due_at=moment + DUE,
                receipts={"database": _at(rows), "todo": todo},
                snapshots_hit=snapshots,
                releases_hit=[],
            )
        )


def finish(store: Store, *, runs: Path = Path("runs")) -> int:
    """Go on with every erasure that is not complete; how many there were. Raises StoreDown."""
    with store.database.alone("erasure"):
        waiting = sa.select(erasure_request).where(erasure_request.c.completed_at.is_(None))
        with store.database.reading() as connection:
            rows = connection.execute(waiting.order_by(erasure_request.c.requested_at)).all()
        for row in rows:
            _finish(store, row, runs)
    return len(rows)


def discard(store: Store, pictures: Iterable[str]) -> tuple[int, int]:
    """Delete pictures that no candidate refers to; how many are gone, and how many somebody still has."""
    digests = iter(pictures)
    gone = kept = 0
    while some := list(islice(digests, _MANY)):
        with store.database.reading() as connection:
            used = set(
                connection.execute(
                    sa.select(candidate.c.image_sha256).where(candidate.c.image_sha256.in_(some)).distinct()
                ).scalars()
            )
        for digest in some:
            if digest not in used:
                store.objects.delete(digest)
        gone, kept = gone + len(some) - len(used), kept + len(used)
    return gone, kept


def remove_quotes(runs: Path, snapshots: Iterable[str]) -> list[Path]:
    """Remove data, evaluations and reports below `runs` that were made of these snapshots; what was removed."""
    quoting = find(runs, snapshots).quoting
    for path in quoting:
        _remove(path)
    return quoting


def _finish(store: Store, row: sa.Row[Any], runs: Path) -> None:
    receipts = dict(row.receipts)
    work = _Work(store=store, runs=runs, todo=dict(receipts.pop("todo")), snapshots=list(row.snapshots_hit))
    work.releases = list(row.releases_hit)
    for name, step in STEPS.items():
        if name in receipts:
            continue
        receipts[name] = _at(step(work))
        work.todo.pop(name, None)
        _update(store, row.id, receipts={**receipts, "todo": work.todo}, releases_hit=work.releases)
    _update(store, row.id, receipts={**receipts, "todo": {}}, completed_at=now())


def _update(store: Store, request_id: str, **values: Any) -> None:
    with store.database.writing() as connection:
        connection.execute(sa.update(erasure_request).where(erasure_request.c.id == request_id).values(**values))


def _at(receipt: dict[str, Any]) -> dict[str, Any]:
    return {**receipt, "at": now().isoformat(timespec="seconds")}


# Steps: each may run again after it was killed


def _pictures(work: _Work) -> dict[str, Any]:
    gone, kept = discard(work.store, work.todo["pictures"])
    return {"deleted": gone, "kept_for_others": kept}


def _snapshots(work: _Work) -> dict[str, Any]:
    from vca.feedback.snapshot import _alone as snapshots_alone
    from vca.feedback.snapshot import clean
    from vca.feedback.snapshot_files import FILE_NAME, hollow_out

    place = work.store.settings.snapshots
    with snapshots_alone(place):  # nobody registers one between the question and what is removed
        with work.store.database.reading() as connection:
            rows = connection.execute(sa.select(dataset_snapshot.c.snapshot_id, dataset_snapshot.c.folder)).all()
        registered = {row.snapshot_id for row in rows}
        folders = [Path(row.folder) for row in rows if row.snapshot_id in work.snapshots]
        clean(place)
        for folder in folders:
            hollow_out(folder)
        left = [path.parent for path in place.glob(f"*/{FILE_NAME}") if path.parent.name not in registered]
        for folder in left:  # of an attempt that was killed before it could register
            shutil.rmtree(folder)
    return {"erased": work.snapshots, "unfinished": [folder.name for folder in left]}


def _runs(work: _Work) -> dict[str, Any]:
    """Find what was made of any snapshot that somebody was erased from: a run may have ended after the last search."""
    with work.store.database.reading() as connection:
        erased = set(
            connection.execute(
                sa.select(dataset_snapshot.c.snapshot_id).where(dataset_snapshot.c.invalid_reason == ERASED)
            ).scalars()
        )
        trained = connection.execute(
            sa.select(training_run.c.run_id, training_run.c.folder, training_run.c.snapshot_id).where(
                training_run.c.snapshot_id.in_(work.snapshots)
            )
        ).all()
    found: Traces = find(work.runs, erased) if erased else Traces()
    work.releases = [{"run": row.run_id, "folder": row.folder, "snapshots": [row.snapshot_id]} for row in trained]
    work.releases += [
        {"folder": str(folder), "snapshots": sorted(ids & set(work.snapshots))}
        for folder, ids in sorted(found.releases.items())
        if ids & set(work.snapshots)
    ]
    work.todo["prepared"] = [str(path) for path in found.quoting]
    return {"releases": len(work.releases), "looked_in": str(work.runs)}


def _prepared(work: _Work) -> dict[str, Any]:
    for name in work.todo["prepared"]:
        _remove(Path(name))
    return {"removed": work.todo["prepared"]}


def _features(work: _Work) -> dict[str, Any]:
    settings = work.store.settings.features
    with work.store.database.alone("features"):
        offline = {view: forget(settings.folder, view, work.todo["features"][view]) for view in VIEWS}
        online.delete(settings, work.todo["features"])
    return {"offline_rows": offline, "online_store": settings.online.partition(":")[0]}


def _log(work: _Work) -> dict[str, Any]:
    work.store.database.forget()
    return {"database": "write-ahead log cut" if work.store.database.sqlite else "vacuumed"}


STEPS: dict[str, Callable[[_Work], dict[str, Any]]] = {
    "pictures": _pictures,
    "snapshots": _snapshots,
    "runs": _runs,
    "prepared": _prepared,
    "features": _features,
    "log": _log,
}


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
