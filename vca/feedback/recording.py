"""Writing events down, once each.

An event is acknowledged after its transaction is committed, never before. Its id is made by the client: sent again, it
is answered again and counted once. Events that come at the same time share a transaction (`vca.feedback.grouping`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from pydantic import ValidationError
from sqlalchemy.dialects import postgresql, sqlite

from vca.feedback.errors import Conflict, NotFound, StoreDown, StoreError, Unacceptable
from vca.feedback.events import RULES, Event, Gate
from vca.feedback.grouping import Grouped
from vca.feedback.schema import dialogue, feedback_event, outbox, presentation, round_
from vca.feedback.store import Person, Store, digest, now

# Statements are made once: building one costs more than running it.
_SEEN = (
    sa.select(
        presentation.c.presentation_id,
        presentation.c.slots,
        presentation.c.shown_at,
        presentation.c.round_id,
        round_.c.dialogue_id,
        dialogue.c.subject_id,
    )
    .join(round_, round_.c.round_id == presentation.c.round_id)
    .join(dialogue, dialogue.c.dialogue_id == round_.c.dialogue_id)
    .where(presentation.c.presentation_id.in_(sa.bindparam("ids", expanding=True)))
)
_KNOWN = sa.select(
    feedback_event.c.event_id,
    feedback_event.c.subject_id,
    feedback_event.c.kind,
    feedback_event.c.body_sha256,
    feedback_event.c.received_at,
).where(feedback_event.c.event_id.in_(sa.bindparam("ids", expanding=True)))
_INSERT = {
    "sqlite": sqlite.insert(feedback_event).on_conflict_do_nothing().returning(feedback_event.c.event_id),
    "postgresql": postgresql.insert(feedback_event).on_conflict_do_nothing().returning(feedback_event.c.event_id),
}
_TELL = sa.insert(outbox).returning(outbox.c.seq)  # one statement for all rows, instead of one for each
_ACCEPT = (
    sa.update(dialogue)
    .where(dialogue.c.dialogue_id == sa.bindparam("accepted"))
    .values(status="accepted", closed_at=sa.bindparam("moment"))
)


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """received_at: when the store knew it. replayed: it was known before."""

    event_id: str
    received_at: datetime
    replayed: bool


@dataclass(frozen=True, kw_only=True)
class Sent:
    """An event, who sent it, and what checks for abuse made of it: stored with it, never a refusal."""

    person: Person
    event: Event
    gates: Mapping[str, Gate] = field(default_factory=dict)


class Recorder:
    """Writes events of many callers. Thread-safe."""

    def __init__(self, store: Store) -> None:
        self._grouped: Grouped[Sent, Recorded] = Grouped(lambda sent: record_all(store, sent))

    def record(self, person: Person, event: Event, *, gates: Mapping[str, Gate] | None = None) -> Recorded:
        """Write an event down. Raises as `record` does."""
        return self._grouped(Sent(person=person, event=event, gates=gates or {}))


def record(store: Store, person: Person, event: Event) -> Recorded:
    """Write an event down, once.

    Raises NotFound for a presentation that is not this person's; Unacceptable where it says what can't be; Conflict
    where the id belongs to another event; StoreDown, and then nothing is stored or the same id can be sent again.
    """
    (result,) = record_all(store, [Sent(person=person, event=event)])
    if isinstance(result, BaseException):
        raise result
    return result


def record_all(store: Store, sent: Sequence[Sent]) -> list[Recorded | BaseException]:
    """Write events down in one transaction; for each what `record` returns or raises. Raises StoreDown for all."""
    try:
        with store.database.writing() as connection:
            return _written(store, connection, sent)
    except StoreDown:
        raise
    except Exception as error:
        if len(sent) == 1:
            return [error]
        return [result for one in sent for result in record_all(store, [one])]  # one's fault is nobody else's


def _written(store: Store, connection: sa.Connection, sent: Sequence[Sent]) -> list[Recorded | BaseException]:
    seen = _by_id(connection, _SEEN, {one.event.presentation_id for one in sent})
    before = _by_id(connection, _KNOWN, {one.event.supersedes for one in sent if one.event.supersedes})
    sha256s = [_sha256(store, one.event) for one in sent]
    received = now()
    results: list[Recorded | BaseException | None] = []
    rows: dict[str, dict[str, Any]] = {}
    for one, sha256 in zip(sent, sha256s, strict=True):
        try:
            row = _row(one, sha256, seen.get(one.event.presentation_id), before, received)
        except StoreError as error:
            results.append(error)
        else:
            rows.setdefault(one.event.event_id, row)
            results.append(None)
    fresh = set(connection.execute(_INSERT[connection.dialect.name], list(rows.values())).scalars()) if rows else set()
    if fresh:
        told = [rows[name] for name in rows if name in fresh]
        connection.execute(
            _TELL,
            [
                {
                    "topic": "feedback",
                    "key": row["dialogue_id"],
                    "payload": {"event_id": row["event_id"], "kind": row["kind"]},
                    "created_at": received,
                }
                for row in told
            ],
        )
        if accepted := [row["dialogue_id"] for row in told if row["kind"] == "accept"]:
            connection.execute(_ACCEPT, [{"accepted": name, "moment": received} for name in accepted])
    missing = {one.event.event_id for one, result in zip(sent, results, strict=True) if result is None} - fresh
    known = _by_id(connection, _KNOWN, missing)
    answered: list[Recorded | BaseException] = []
    for one, sha256, result in zip(sent, sha256s, results, strict=True):
        name = one.event.event_id
        if result is not None:
            answered.append(result)
        elif name in fresh and rows[name]["body_sha256"] == sha256:
            fresh.discard(name)  # the same event twice in one group: the second one is a replay
            answered.append(Recorded(event_id=name, received_at=received, replayed=False))
            known[name] = _Known(one.person.subject_id, sha256, received)
        else:
            answered.append(_replayed(one, sha256, known.get(name)))
    return answered


def _by_id(connection: sa.Connection, statement: sa.Select[Any], ids: set[str]) -> dict[str, Any]:
    """Rows by their first column."""
    return {row[0]: row for row in connection.execute(statement, {"ids": sorted(ids)})} if ids else {}


@dataclass(frozen=True)
class _Known:
    subject_id: str
    body_sha256: str
    received_at: datetime


def _sha256(store: Store, event: Event) -> str:
    return store.vault.hmac(digest(event.model_dump(mode="json")))  # keyed: words can't be guessed from it


def _row(one: Sent, sha256: str, seen: Any, before: Mapping[str, Any], received: datetime) -> dict[str, Any]:
    """The row to insert. Raises NotFound, Unacceptable."""
    event = one.event
    if seen is None or seen.subject_id != one.person.subject_id:
        raise NotFound(f"no presentation {event.presentation_id}")
    body = _body(event)
    if not set(event.target) <= set(seen.slots):
        raise Unacceptable("target: a picture that was not shown there")
    if event.supersedes is not None:
        earlier = before.get(event.supersedes)
        if earlier is None or earlier.subject_id != one.person.subject_id:
            raise NotFound(f"no event {event.supersedes}")
        if earlier.kind == "retract":
            raise Unacceptable("supersedes: a retraction can't be taken back; send the choice again")
    return {
        "event_id": event.event_id,
        "subject_id": one.person.subject_id,
        "dialogue_id": seen.dialogue_id,
        "round_id": seen.round_id,
        "presentation_id": event.presentation_id,
        "kind": event.kind,
        "version": event.version,
        "body": body,
        "text_enc": None if event.text is None else one.person.key.seal(event.text, row=event.event_id),
        "body_sha256": sha256,
        "target": list(event.target),
        "supersedes": event.supersedes,
        "client_at": _utc(event.client_at),
        "event_at": _clamped(event.client_at, seen.shown_at, received),
        "received_at": received,
        "dwell_ms": event.dwell_ms,
        "input": event.input,
        "client_version": event.client_version,
        "gates": dict(one.gates),
    }


def _body(event: Event) -> dict[str, Any]:
    """What it says, checked by the rule of its kind. Raises Unacceptable."""
    rule = RULES[event.kind]
    if not rule.fewest <= len(event.target) <= rule.most or len(set(event.target)) != len(event.target):
        allowed = f"{rule.fewest}" if rule.fewest == rule.most else f"{rule.fewest} to {rule.most}"
        raise Unacceptable(f"target: {event.kind} is about {allowed} different pictures, {len(event.target)} are given")
    if (event.kind == "retract") != (event.supersedes is not None) and event.kind == "retract":
        raise Unacceptable("supersedes: a retraction names the event that it takes back")
    if event.text is not None and event.kind not in ("critique", "report"):
        raise Unacceptable(f"text: {event.kind} has none")
    try:
        return rule.body.model_validate(event.body).model_dump(exclude_none=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise Unacceptable(f"body.{'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def _replayed(one: Sent, sha256: str, known: Any) -> Recorded | BaseException:
    name = one.event.event_id
    if known is None or known.subject_id != one.person.subject_id or known.body_sha256 != sha256:
        return Conflict(f"event {name} was sent with another body; make a new id")
    return Recorded(event_id=name, received_at=known.received_at, replayed=True)


def _utc(moment: datetime | None) -> datetime | None:
    """A client's clock may be years off, and its zone unknown; what no calendar of ours can hold is left out."""
    if moment is None:
        return None
    try:
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except OverflowError:
        return None


def _clamped(client_at: datetime | None, shown_at: datetime, received_at: datetime) -> datetime:
    """When the person acted: their clock where it can be right, between being shown and being received."""
    moment = _utc(client_at)
    return received_at if moment is None else min(max(moment, shown_at), received_at)
