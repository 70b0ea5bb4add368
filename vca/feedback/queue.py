"""Which rounds are to be drawn, by whom, and what came of it. Any number of workers share the queue.

A worker holds a round by a lease that it renews. One that dies lets the lease run out, and the round is drawn again
from the same seeds, once; a round that ends its second worker too is given up, so that one poisoned round can't stop
the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

import sqlalchemy as sa

from vca.feedback.dialogues import OPEN, Words, open_words
from vca.feedback.errors import Conflict, NotFound
from vca.feedback.schema import candidate, dialogue, round_, subject
from vca.feedback.store import Person, Store, now

LEASE_S = 15.0
ATTEMPTS = 2


@dataclass(frozen=True, kw_only=True)
class Job:
    """A round to draw. previous_prompt and image_sha256: of the picture that it goes on from, if any.

    waiting: (candidate id, idx, seed, strength) of the pictures that are not drawn yet.
    """

    round_id: str
    dialogue_id: str
    words: Words
    previous_prompt: str | None
    image_sha256: str | None
    waiting: tuple[tuple[str, int, int, float | None], ...]


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """What became of a candidate. reason: why it is not ready, as a short code."""

    state: Literal["ready", "blocked", "failed"]
    safety: Literal["pass", "fail", "unknown"]
    reason: str | None = None
    image_sha256: str | None = None
    phash: str | None = None
    width: int | None = None
    height: int | None = None
    release: str | None = None
    gen_ms: int | None = None


def claim(store: Store, *, worker: str, at: datetime | None = None) -> Job | None:
    """Take the round that has waited longest, or one whose worker is gone. Raises StoreDown."""
    moment = at or now()
    with store.database.writing() as connection:
        orphaned = sa.and_(round_.c.status == "running", round_.c.lease_until < moment)
        connection.execute(
            sa.update(round_)
            .where(orphaned, round_.c.attempts >= ATTEMPTS)
            .values(status="failed", reason="crashed", completed_at=moment)
        )
        found = connection.execute(
            sa.select(round_.c.round_id)
            .where(sa.or_(round_.c.status == "queued", orphaned))
            .order_by(round_.c.requested_at, round_.c.round_id)
            .limit(1)
            .with_for_update(skip_locked=True)
        ).first()
        if found is None:
            return None
        connection.execute(
            sa.update(round_)
            .where(round_.c.round_id == found.round_id)
            .values(
                status="running",
                worker=worker,
                attempts=round_.c.attempts + 1,
                lease_until=moment + timedelta(seconds=LEASE_S),
                started_at=sa.func.coalesce(round_.c.started_at, sa.literal(moment, round_.c.started_at.type)),
            )
        )
        return _job(store, connection, found.round_id)


def renew(store: Store, *, round_id: str, worker: str, at: datetime | None = None) -> bool:
    """Keep the lease; False where the round is no longer this worker's: cancelled, erased, or somebody else's."""
    moment = at or now()
    with store.database.writing() as connection:
        done = connection.execute(
            sa.update(round_).where(_held(round_id, worker)).values(lease_until=moment + timedelta(seconds=LEASE_S))
        )
    return done.rowcount == 1


def put(store: Store, *, round_id: str, worker: str, candidate_id: str, drawn: Drawn) -> None:
    """Write down a picture; with the last one the round is done. Raises Conflict where it isn't this worker's."""
    with store.database.writing() as connection:
        held = connection.execute(sa.select(round_.c.round_id).where(_held(round_id, worker)).with_for_update()).first()
        if held is None:
            raise Conflict(f"round {round_id} is no longer drawn by {worker}")
        connection.execute(
            sa.update(candidate)
            .where(candidate.c.candidate_id == candidate_id, candidate.c.round_id == round_id)
            .values(**{name: getattr(drawn, name) for name in Drawn.__dataclass_fields__})
        )
        states = connection.execute(
            sa.select(candidate.c.state, candidate.c.reason).where(candidate.c.round_id == round_id)
        ).all()
        if any(one.state == "waiting" for one in states):
            return
        reasons = sorted({one.reason for one in states if one.reason})
        if any(one.state == "ready" for one in states):
            status, reason = "done", None
        elif all(one.state == "blocked" for one in states):
            status, reason = "blocked", reasons[0] if reasons else None
        else:
            status, reason = "failed", reasons[0] if reasons else None
        connection.execute(
            sa.update(round_)
            .where(round_.c.round_id == round_id)
            .values(status=status, reason=reason, completed_at=now())
        )


def give_back(store: Store, *, round_id: str, worker: str) -> None:
    """Put a round back into the queue, as if it had not been begun: the worker stops, or the generator is busy."""
    with store.database.writing() as connection:
        connection.execute(
            sa.update(round_)
            .where(_held(round_id, worker))
            .values(status="queued", worker=None, lease_until=None, attempts=round_.c.attempts - 1)
        )


def cancel(store: Store, person: Person, *, round_id: str) -> str:
    """Stop a round that is not finished; its status now. A finished one stays as it is. Raises NotFound, StoreDown."""
    mine = (
        sa.select(round_.c.round_id)
        .join(dialogue, dialogue.c.dialogue_id == round_.c.dialogue_id)
        .where(round_.c.round_id == round_id, dialogue.c.subject_id == person.subject_id)
    )
    with store.database.writing() as connection:
        connection.execute(
            sa.update(round_)
            .where(round_.c.round_id.in_(mine), round_.c.status.in_(OPEN))
            .values(status="cancelled", completed_at=now())
        )
        row = connection.execute(sa.select(round_.c.status).where(round_.c.round_id.in_(mine))).first()
    if row is None:
        raise NotFound(f"no round {round_id}")
    return str(row.status)


def position(store: Store, round_id: str) -> int:
    """How many rounds will be drawn before this one: 0 for the next, and for those that don't wait."""
    this = round_.alias("this")
    with store.database.reading() as connection:
        return int(
            connection.execute(
                sa.select(sa.func.count())
                .select_from(round_.join(this, this.c.round_id == round_id))
                .where(
                    this.c.status == "queued",
                    round_.c.status == "queued",
                    round_.c.requested_at < this.c.requested_at,
                )
            ).scalar_one()
        )


def _held(round_id: str, worker: str) -> sa.ColumnElement[bool]:
    return sa.and_(round_.c.round_id == round_id, round_.c.worker == worker, round_.c.status == "running")


def _job(store: Store, connection: sa.Connection, round_id: str) -> Job:
    row = connection.execute(
        sa.select(round_, dialogue.c.subject_id, subject.c.dek_wrapped)
        .join(dialogue, dialogue.c.dialogue_id == round_.c.dialogue_id)
        .join(subject, subject.c.subject_id == dialogue.c.subject_id)
        .where(round_.c.round_id == round_id)
    ).one()
    person = store.opened(row.subject_id, row.dek_wrapped)
    previous = image = None
    if row.parent_candidate_id is not None:
        parent = connection.execute(
            sa.select(round_.c.words_enc, candidate.c.image_sha256)
            .join(candidate, candidate.c.round_id == round_.c.round_id)
            .where(candidate.c.candidate_id == row.parent_candidate_id)
        ).one()
        previous = open_words(person, row.parent_round_id, parent.words_enc).prompt
        image = parent.image_sha256
    waiting = connection.execute(
        sa.select(candidate.c.candidate_id, candidate.c.idx, candidate.c.seed, candidate.c.strength)
        .where(candidate.c.round_id == round_id, candidate.c.state == "waiting")
        .order_by(candidate.c.idx)
    ).all()
    return Job(
        round_id=round_id,
        dialogue_id=row.dialogue_id,
        words=open_words(person, round_id, row.words_enc),
        previous_prompt=previous,
        image_sha256=image,
        waiting=tuple((one.candidate_id, one.idx, one.seed, one.strength) for one in waiting),
    )
