"""What is known of a person, a dialogue and a prompt after each event: the rows that Feast keeps. No words.

Every event gives one row each for its person, its dialogue and its prompt, at the time at which the store knew it. The
functions here take all events of one of them, in that order, so that a row is the same whether it is made at once or
years later. Only people who agree to training count; imported labels are nobody's habits, and don't.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby
from typing import Any, Literal

import sqlalchemy as sa

from vca.feedback.rules import CHOICES, agree, liked, trust
from vca.feedback.schema import candidate, consent_event, feedback_event, quality_probe, round_, subject
from vca.feedback.store import Store

WINDOW = timedelta(days=30)
_BATCH = 1000

ViewName = Literal["subject_stats", "dialogue_stats", "prompt_stats"]
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Fact:
    """An event, as far as features need it.

    probe_of: the earlier presentation that was shown again here. expected: the picture that a probe has to be answered
    with.
    reward: what the reward model gave the first picture that the event is about, where it was asked.
    """

    event_id: str
    subject_id: str
    dialogue_id: str
    prompt_hmac: str
    presentation_id: str
    probe_of: str | None
    expected: str | None
    depth: int
    kind: str
    target: tuple[str, ...]
    supersedes: str | None
    received_at: datetime
    reward: float | None = None


class _Standing:
    """The choices that hold, neither taken back nor replaced, in their order; and how many there are of each kind."""

    def __init__(self) -> None:
        self.events: dict[str, Fact] = {}
        self.kinds: Counter[str] = Counter()
        self._gone: set[str] = set()

    def add(self, fact: Fact) -> Fact | None:
        """The choice that this event ends, if any: of one moment, either may come first."""
        ended = None
        if fact.supersedes is not None:
            self._gone.add(fact.supersedes)
            ended = self.events.pop(fact.supersedes, None)
        if ended is not None:
            self.kinds[ended.kind] -= 1
        if fact.kind in CHOICES and fact.event_id not in self._gone:
            self.events[fact.event_id] = fact
            self.kinds[fact.kind] += 1
        return ended


def subject_rows(facts: list[Fact]) -> Iterator[Row]:
    """picks_30d: standing picks of the 30 days up to the event. agreement: share of probes that were answered right.

    trust: what a snapshot makes of these answers (`vca.feedback.rules.trust`), without what an operator set since.
    """
    standing = _Standing()
    recent: dict[str, datetime] = {}  # standing picks within the window, the oldest first
    probes: dict[str, Fact] = {}
    touching: set[str] = set()  # presentations that an answer to a probe depends on
    alike = asked = 0
    for fact in facts:
        ended = standing.add(fact)
        if ended is not None:
            recent.pop(ended.event_id, None)
        if fact.kind == "pick" and fact.event_id in standing.events:
            recent[fact.event_id] = fact.received_at
        while recent and (first := next(iter(recent))) and recent[first] <= fact.received_at - WINDOW:
            del recent[first]
        if fact.probe_of is not None or fact.expected is not None:
            probes[fact.presentation_id] = fact
            touching |= {fact.presentation_id, fact.probe_of or ""}
        if probes and (ended is not None or fact.presentation_id in touching):
            alike, asked = _agreement(standing, probes)
        yield {
            "picks_30d": len(recent),
            "agreement": alike / asked if asked else None,
            "trust": trust(alike, asked),
        }


def _agreement(standing: _Standing, probes: Mapping[str, Fact]) -> tuple[int, int]:
    """How many probes were answered right, of how many that were answered: `vca.feedback.rules.settle`."""
    # the last choice of each presentation
    answers = {one.presentation_id: liked(one) for one in standing.events.values()}  # type: ignore[arg-type]
    verdicts = []
    for place, probe in probes.items():
        if place not in answers:
            continue
        if probe.expected is not None:
            verdicts.append(answers[place] == {probe.expected})
        elif probe.probe_of in answers:
            verdicts.append(agree(answers[probe.probe_of], answers[place]))
    return sum(verdicts), len(verdicts)


def dialogue_rows(facts: list[Fact]) -> Iterator[Row]:
    """depth: of the deepest round that something was said of. last_reward: of the picture chosen last."""
    standing = _Standing()
    depth = 0
    for fact in facts:
        standing.add(fact)
        depth = max(depth, fact.depth)
        chosen = (one.reward for one in reversed(standing.events.values()) if one.kind in ("pick", "accept"))
        yield {"depth": depth, "last_reward": next(chosen, None), "accepted": standing.kinds["accept"] > 0}


def prompt_rows(facts: list[Fact]) -> Iterator[Row]:
    """shown: presentations that something was said of. all_bad_share: of them, those that had nothing good in them."""
    standing = _Standing()
    shown: set[str] = set()
    bad: Counter[str] = Counter()  # by presentation
    for fact in facts:
        ended = standing.add(fact)
        shown.add(fact.presentation_id)
        if ended is not None and ended.kind == "all_bad":
            bad -= Counter([ended.presentation_id])
        if fact.kind == "all_bad" and fact.event_id in standing.events:
            bad[fact.presentation_id] += 1
        yield {"shown": len(shown), "picks": standing.kinds["pick"], "all_bad_share": len(bad) / len(shown)}


@dataclass(frozen=True, kw_only=True)
class View:
    """A feature view. key: the column that says whom a row is about. features: column and type, as DuckDB names it."""

    key: str
    features: Mapping[str, str]
    rows: Callable[[list[Fact]], Iterator[Row]]


VIEWS: Mapping[ViewName, View] = {
    "subject_stats": View(
        key="subject_id",
        features={"picks_30d": "BIGINT", "agreement": "DOUBLE", "trust": "DOUBLE"},
        rows=subject_rows,
    ),
    "dialogue_stats": View(
        key="dialogue_id",
        features={"depth": "BIGINT", "last_reward": "DOUBLE", "accepted": "BOOLEAN"},
        rows=dialogue_rows,
    ),
    "prompt_stats": View(
        key="prompt_hmac",
        features={"shown": "BIGINT", "picks": "BIGINT", "all_bad_share": "DOUBLE"},
        rows=prompt_rows,
    ),
}


def rows(store: Store, view: ViewName, *, keys: list[str] | None = None) -> Iterator[Row]:
    """The view's rows, ordered by key and time: of these keys, or of all. One key's events are in memory at a time.

    A row has the key, event_timestamp, as_of (the same in microseconds, so that an online store can be asked for it),
    and the features. Of events of the same microsecond the last one's row stays. Raises StoreDown.
    """
    spec = VIEWS[view]
    for key, group in groupby(_facts(store, spec.key, keys), key=lambda fact: getattr(fact, spec.key)):
        facts = list(group)
        made = zip(facts, spec.rows(facts), strict=True)
        for moment, same in groupby(made, key=lambda pair: pair[0].received_at):
            *_, (_, values) = same
            yield {spec.key: key, "event_timestamp": moment, "as_of": microseconds(moment), **values}


def microseconds(moment: datetime) -> int:
    return round(moment.timestamp() * 1_000_000)


def touched(store: Store, events: list[str]) -> dict[ViewName, list[str]]:
    """Whose rows these events change. Raises StoreDown."""
    statement = (
        sa.select(feedback_event.c.subject_id, feedback_event.c.dialogue_id, round_.c.prompt_hmac)
        .join(round_, round_.c.round_id == feedback_event.c.round_id)
        .where(feedback_event.c.event_id.in_(events))
    )
    with store.database.reading() as connection:
        found = connection.execute(statement).all()
    return {view: sorted({getattr(row, spec.key) for row in found}) for view, spec in VIEWS.items()}


def _facts(store: Store, order: str, keys: list[str] | None) -> Iterator[Fact]:
    """Events of people who agree to training, ordered by the column `order`, then by time."""
    column = {"subject_id": feedback_event.c.subject_id, "dialogue_id": feedback_event.c.dialogue_id}.get(
        order, round_.c.prompt_hmac
    )
    said = consent_event.alias("said")
    newest = (
        sa.select(said.c.granted)
        .where(said.c.subject_id == feedback_event.c.subject_id, said.c.scope == "train")
        .order_by(said.c.at.desc(), said.c.id.desc())
        .limit(1)
        .scalar_subquery()
    )
    statement = (
        sa.select(
            feedback_event.c.event_id,
            feedback_event.c.subject_id,
            feedback_event.c.dialogue_id,
            round_.c.prompt_hmac,
            feedback_event.c.presentation_id,
            quality_probe.c.of_presentation_id.label("probe_of"),
            quality_probe.c.expected,
            round_.c.depth,
            feedback_event.c.kind,
            feedback_event.c.target,
            feedback_event.c.supersedes,
            feedback_event.c.received_at,
        )
        .join(subject, subject.c.subject_id == feedback_event.c.subject_id)
        .join(round_, round_.c.round_id == feedback_event.c.round_id)
        .outerjoin(quality_probe, quality_probe.c.presentation_id == feedback_event.c.presentation_id)
        .where(newest, subject.c.kind != "import")
        .order_by(column, feedback_event.c.received_at, feedback_event.c.event_id)
    )
    if keys is not None:
        statement = statement.where(column.in_(keys))
    with store.database.reading(long=True) as connection:
        for batch in connection.execution_options(yield_per=_BATCH).execute(statement).partitions():
            rewards = _rewards(connection, [target for row in batch for target in row.target[:1]])
            for row in batch:
                fields = {**row._mapping, "target": tuple(row.target)}
                yield Fact(**fields, reward=rewards.get(row.target[0]) if row.target else None)


def _rewards(connection: sa.Connection, candidates: list[str]) -> dict[str, float]:
    found = connection.execute(
        sa.select(candidate.c.candidate_id, candidate.c.reward).where(
            candidate.c.candidate_id.in_(candidates), candidate.c.reward.is_not(None)
        )
    )
    return {row.candidate_id: row.reward for row in found}
