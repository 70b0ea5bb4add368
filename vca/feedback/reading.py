"""Everything that people did up to a moment, dialogue after dialogue, in one transaction and little memory.

Ids and times stay what `vca.feedback.rules` wants of them, text: making Python's own UUIDs and moments of millions of
them would take longer than everything else.
"""

from __future__ import annotations

import gc
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import lru_cache
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
Range = tuple[str, str]  # ids of the first and the last dialogue


class Who(NamedTuple):
    """What is known now of a person, whatever the moment that is looked at."""

    subject_id: str
    trust: float
    created_at: str
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


def as_text(at: datetime) -> str:
    """As times are read here."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}"


@contextmanager
def uncollected() -> Iterator[None]:
    """Without the search for circles of garbage: rows by the million are looked through, and there are none in them."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


class Reader:
    """Reads from one transaction. people: everybody met so far, by id."""

    def __init__(self, store: Store, connection: sa.Connection, *, as_of: datetime, quarantine_h: float = 0) -> None:
        self.store, self.connection, self.as_of = store, connection, as_of
        self.young = as_text(as_of - timedelta(hours=quarantine_h)) if quarantine_h else None
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
            if (dialogue_id := home.get(row[1])) is not None:
                candidates[dialogue_id][row[0]] = Candidate._make(row)
        shown: dict[str, dict[str, Shown]] = defaultdict(dict)
        for name, round_id, slots, at, probe, of, expected in self._rows(self._presentations(among)):
            if round_id in home:
                one = Shown(name, round_id, _ids(slots), at, probe is not None, of, expected)
                shown[home[round_id]][name] = one
        events: dict[str, list[Said]] = defaultdict(list)
        for event_id, round_id, place, kind, target, replaces, acted, received, dwell, by, body, gates in self._rows(
            self._events(among)
        ):
            if round_id in home:
                events[home[round_id]].append(
                    Said(
                        event_id,
                        round_id,
                        place,
                        kind,
                        _ids(target),
                        replaces,
                        acted,
                        received,
                        dwell,
                        by,
                        _document(body),
                        _document(gates),
                    )
                )
        return [
            Told(
                dialogue_id,
                subject_id,
                self.people[subject_id].consent,
                self._new(self.people[subject_id]),
                rounds[dialogue_id],
                candidates[dialogue_id],
                shown[dialogue_id],
                events[dialogue_id],
                elsewhere.get(dialogue_id, {}),
                self.people[subject_id].imported,
            )
            for dialogue_id, subject_id in owners.items()
        ]

    def _new(self, who: Who) -> bool:
        """Whether somebody came so lately that what they say doesn't count yet. An imported source is no person."""
        return self.young is not None and who.created_at > self.young and not who.imported

    def _rows(self, statement: Any) -> list[Any]:
        """As the driver has them: nothing is left to convert."""
        return list(self.connection.execute(statement).cursor.fetchall())

    def _words(self, who: Who, round_id: str, sealed: bytes) -> dict[str, Any]:
        if not who.consent or who.dek_wrapped is None:
            return {}
        person: Person = self._person(_dashed(who.subject_id), who.dek_wrapped)
        words: dict[str, Any] = json.loads(person.key.open(sealed, row=_dashed(round_id)))
        return words

    def _meet(self, names: set[str]) -> None:
        """Look up those of these people who were not met yet."""
        new = names - self.people.keys()
        if not new:
            return
        id_, time = self._columns.id, self._columns.time
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
                self._columns.time(presentation.c.shown_at),
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
                self._columns.time(event.c.event_at),
                self._columns.time(event.c.received_at),
                event.c.dwell_ms,
                event.c.input,
                self._columns.text(event.c.body),
                self._columns.text(event.c.gates),
            )
            .where(event.c.dialogue_id.between(*among), event.c.received_at <= self.as_of)
            .order_by(event.c.dialogue_id, event.c.received_at, event.c.event_id)
        )


def _dashed(name: str) -> str:
    return f"{name[:8]}-{name[8:12]}-{name[12:16]}-{name[16:20]}-{name[20:]}"


def _ids(text: str) -> tuple[str, ...]:
    """JSON of a list of UUIDs."""
    return tuple(text.replace("-", "")[2:-2].split('", "')) if len(text) > 2 else ()


@lru_cache(1024)
def _document(text: str) -> Mapping[str, Any]:
    """JSON that many rows share."""
    document: dict[str, Any] = json.loads(text)
    return document


class _Columns:
    """Columns as the text that `vca.feedback.rules` wants, which in SQLite is what is stored."""

    def __init__(self, dialect: str) -> None:
        self.sqlite = dialect == "sqlite"

    def id(self, column: sa.Column[Any]) -> sa.ColumnElement[str]:
        return self.text(column) if self.sqlite else sa.func.replace(self.text(column), "-", "")

    def time(self, column: sa.Column[Any]) -> sa.ColumnElement[str]:
        if self.sqlite:
            return self.text(column)
        return sa.func.to_char(sa.func.timezone("UTC", column), "YYYY-MM-DD HH24:MI:SS.US")

    def text(self, column: sa.Column[Any]) -> sa.ColumnElement[str]:
        return sa.type_coerce(column, sa.String) if self.sqlite else sa.cast(column, sa.String)
