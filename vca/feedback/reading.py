"""Everything that people did up to a moment, dialogue after dialogue, in one transaction and little memory.

The columns come as text and whole numbers, made so by the database: turning millions of them into Python's own UUIDs,
moments and documents would take longer than everything else.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache, reduce
from typing import Any, NamedTuple

import sqlalchemy as sa

from vca.errors import SettingsError
from vca.feedback.rules import Candidate, Round, Said, Shown, Told
from vca.feedback.schema import (
    candidate,
    consent_event,
    dialogue,
    feedback_event,
    presentation,
    quality_probe,
    round_,
    subject,
)
from vca.feedback.store import Person, Store, now

LAG_S = 10.0  # an event's transaction may end this much after its received_at: a lock's wait, a statement, a clock
BATCH = 500  # dialogues
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
Range = tuple[str, str]  # ids of the first and the last dialogue


class Who(NamedTuple):
    """What is known now of a person, whatever the moment that is looked at. created_at: microseconds since 1970."""

    subject_id: str
    trust: float
    created_at: int
    dek_wrapped: bytes | None
    consent: bool
    imported: bool


def moment(as_of: datetime | None) -> datetime:
    """The moment to look at: `as_of`, or the latest that can be. Raises SettingsError for a later one."""
    latest = now() - timedelta(seconds=LAG_S)
    if as_of is None:
        return latest
    if as_of > latest:
        raise SettingsError(
            f"as of {as_of.isoformat()}: what was said then may still be on its way into the store; give a moment "
            f"at least {LAG_S:g} s ago, or none for the latest"
        )
    return as_of.astimezone(UTC)


def micros(at: datetime) -> int:
    """Microseconds since 1970."""
    return (at - EPOCH) // timedelta(microseconds=1)


def from_micros(at: int) -> datetime:
    return EPOCH + timedelta(microseconds=at)


class Reader:
    """Reads from one transaction. people: everybody met so far, by id."""

    def __init__(self, store: Store, connection: sa.Connection, *, as_of: datetime, quarantine_h: float = 0) -> None:
        self.store, self.connection, self.as_of = store, connection, as_of
        self.young = micros(as_of - timedelta(hours=quarantine_h))
        self.people: dict[str, Who] = {}
        self._person = lru_cache(4096)(lambda subject_id, wrapped: store.opened(subject_id, wrapped))
        if not store.database.sqlite:  # reading everything may take longer than a person waits
            connection.execute(sa.text("SET LOCAL statement_timeout = 0"))
        self._columns = _Columns(connection.dialect.name)

    def total(self) -> int:
        """How many dialogues there are."""
        return int(self.connection.execute(sa.select(sa.func.count()).select_from(dialogue)).scalar_one())

    def batches(self) -> Iterator[list[Told]]:
        """Every dialogue, by id, some at a time; those of which nothing is known yet are empty."""
        elsewhere = self._taken_back_elsewhere()
        id_, last = self._columns.id, None
        while True:
            page = sa.select(id_(dialogue.c.dialogue_id), id_(dialogue.c.subject_id)).limit(BATCH)
            page = page.order_by(dialogue.c.dialogue_id)
            if last is not None:
                page = page.where(dialogue.c.dialogue_id > last)
            owners = {row[0]: row[1] for row in self.connection.execute(page)}
            if not owners:
                return
            first, last = next(iter(owners)), next(reversed(owners))
            yield self._read(owners, (first, last), elsewhere)

    def _read(self, owners: dict[str, str], among: Range, elsewhere: dict[str, dict[str, str]]) -> list[Told]:
        self._meet(set(owners.values()))
        rounds: dict[str, dict[str, Round]] = defaultdict(dict)
        home: dict[str, str] = {}  # round -> dialogue
        for row in self._rows(self._rounds(among)):
            name, dialogue_id = row[0], row[-1]
            words = self._words(self.people[owners[dialogue_id]], name, row[5])
            said = (words.get("prompt", ""), words.get("critique", ""))
            rounds[dialogue_id][name] = Round._make((*row[:5], *said))
            home[name] = dialogue_id
        candidates: dict[str, dict[str, Candidate]] = defaultdict(dict)
        for row in self._rows(self._candidates(among)):
            if row[1] in home:
                candidates[home[row[1]]][row[0]] = Candidate._make(row)
        shown: dict[str, dict[str, Shown]] = defaultdict(dict)
        for name, round_id, slots, at, probe, of, expected in self._rows(self._presentations(among)):
            if round_id in home:
                one = Shown(name, round_id, tuple(json.loads(slots)), at, probe is not None, of, expected)
                shown[home[round_id]][name] = one
        events: dict[str, list[Said]] = defaultdict(list)
        for event_id, round_id, place, kind, target, replaces, acted, received, dwell, by, body, gates in self._rows(
            self._events(among)
        ):
            if round_id in home:
                facts = json.loads(body) if body != "{}" else {}
                verdicts = json.loads(gates) if gates != "{}" else {}
                pictures = tuple(json.loads(target))
                events[home[round_id]].append(
                    Said(
                        event_id, round_id, place, kind, pictures, replaces, acted, received, dwell, by, facts, verdicts
                    )
                )
        return [
            Told(
                dialogue_id,
                subject_id,
                self.people[subject_id].consent,
                self.people[subject_id].created_at > self.young and not self.people[subject_id].imported,
                rounds[dialogue_id],
                candidates[dialogue_id],
                shown[dialogue_id],
                events[dialogue_id],
                elsewhere.get(dialogue_id, {}),
                self.people[subject_id].imported,
            )
            for dialogue_id, subject_id in owners.items()
        ]

    def _rows(self, statement: Any) -> list[Any]:
        return list(self.connection.execute(statement).all())

    def _words(self, who: Who, round_id: str, sealed: bytes) -> dict[str, Any]:
        if not who.consent or who.dek_wrapped is None:
            return {}
        person: Person = self._person(who.subject_id, who.dek_wrapped)
        words: dict[str, Any] = json.loads(person.key.open(sealed, row=round_id))
        return words

    def _meet(self, names: set[str]) -> None:
        """Look up those of these people who were not met yet."""
        new = names - self.people.keys()
        if not new:
            return
        id_, time = self._columns.id, self._columns.micros
        said: dict[str, bool] = {}
        for name, granted in self.connection.execute(
            sa.select(id_(consent_event.c.subject_id), consent_event.c.granted)
            .where(consent_event.c.subject_id.in_(new), consent_event.c.scope == "train")
            .order_by(consent_event.c.at, consent_event.c.id)
        ):
            said[name] = granted
        for name, kind, trust, created, key in self.connection.execute(
            sa.select(
                id_(subject.c.subject_id),
                subject.c.kind,
                subject.c.trust,
                time(subject.c.created_at),
                subject.c.dek_wrapped,
            ).where(subject.c.subject_id.in_(new))
        ):
            self.people[name] = Who(name, trust, created, key, said.get(name, False), kind == "import")

    def _taken_back_elsewhere(self) -> dict[str, dict[str, str]]:
        """By dialogue: its events that were retracted or replaced from another dialogue, and by which kind."""
        later, id_ = feedback_event.alias("later"), self._columns.id
        statement = (
            sa.select(id_(feedback_event.c.dialogue_id), id_(feedback_event.c.event_id), later.c.kind)
            .select_from(later.join(feedback_event, feedback_event.c.event_id == later.c.supersedes))
            .where(
                later.c.supersedes.is_not(None),
                later.c.dialogue_id != feedback_event.c.dialogue_id,
                later.c.received_at <= self.as_of,
            )
            .order_by(later.c.received_at, later.c.event_id)
        )
        found: dict[str, dict[str, str]] = defaultdict(dict)
        for dialogue_id, event_id, kind in self._rows(statement):
            if found[dialogue_id].get(event_id) != "retract":
                found[dialogue_id][event_id] = kind
        return found

    def _rounds(self, among: Range) -> Any:
        id_ = self._columns.id
        return sa.select(
            id_(round_.c.round_id),
            id_(round_.c.parent_round_id),
            id_(round_.c.parent_candidate_id),
            round_.c.depth,
            round_.c.prompt_hmac,
            round_.c.words_enc,
            id_(round_.c.dialogue_id),
        ).where(round_.c.dialogue_id.between(*among), round_.c.completed_at <= self.as_of)

    def _candidates(self, among: Range) -> Any:
        id_ = self._columns.id
        return (
            sa.select(
                id_(candidate.c.candidate_id),
                id_(candidate.c.round_id),
                candidate.c.image_sha256,
                candidate.c.phash,
                sa.case((candidate.c.state == "ready", candidate.c.safety), else_="fail"),
            )
            .join_from(round_, candidate, candidate.c.round_id == round_.c.round_id)
            .where(round_.c.dialogue_id.between(*among))
        )

    def _presentations(self, among: Range) -> Any:
        id_, probe = self._columns.id, quality_probe
        return (
            sa.select(
                id_(presentation.c.presentation_id),
                id_(presentation.c.round_id),
                self._columns.text(presentation.c.slots),
                self._columns.micros(presentation.c.shown_at),
                id_(probe.c.probe_id),
                id_(probe.c.of_presentation_id),
                id_(probe.c.expected),
            )
            .join_from(round_, presentation, presentation.c.round_id == round_.c.round_id)
            .outerjoin(probe, probe.c.presentation_id == presentation.c.presentation_id)
            .where(round_.c.dialogue_id.between(*among), presentation.c.shown_at <= self.as_of)
        )

    def _events(self, among: Range) -> Any:
        id_, event = self._columns.id, feedback_event
        return (
            sa.select(
                id_(event.c.event_id),
                id_(event.c.round_id),
                id_(event.c.presentation_id),
                event.c.kind,
                self._columns.text(event.c.target),
                id_(event.c.supersedes),
                self._columns.micros(event.c.event_at),
                self._columns.micros(event.c.received_at),
                event.c.dwell_ms,
                event.c.input,
                self._columns.text(event.c.body),
                self._columns.text(event.c.gates),
            )
            .where(event.c.dialogue_id.between(*among), event.c.received_at <= self.as_of)
            .order_by(event.c.dialogue_id, event.c.received_at, event.c.event_id)
        )


class _Columns:
    """Columns as the database itself spells them out."""

    def __init__(self, dialect: str) -> None:
        self.sqlite = dialect == "sqlite"

    def id(self, column: sa.Column[Any]) -> sa.ColumnElement[str]:
        """A UUID in its usual form."""
        if not self.sqlite:
            return sa.cast(column, sa.String)
        raw = sa.type_coerce(column, sa.String)
        parts = [sa.func.substr(raw, start, length) for start, length in ((1, 8), (9, 4), (13, 4), (17, 4), (21, 12))]
        return reduce(lambda left, right: left.concat("-").concat(right), parts)

    def micros(self, column: sa.Column[Any]) -> sa.ColumnElement[int]:
        """Microseconds since 1970."""
        if not self.sqlite:
            return sa.cast(sa.extract("epoch", column) * 1_000_000, sa.BigInteger)
        raw = sa.type_coerce(column, sa.String)
        seconds = sa.cast(sa.func.strftime("%s", raw), sa.BigInteger)
        return seconds * 1_000_000 + sa.cast(sa.func.substr(raw, 21, 6), sa.BigInteger)

    def text(self, column: sa.Column[Any]) -> sa.ColumnElement[str]:
        """JSON as its text."""
        return sa.type_coerce(column, sa.String) if self.sqlite else sa.cast(column, sa.String)
