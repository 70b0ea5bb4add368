"""What people said of what they saw: who may say it, and how it is written down.

An event is acknowledged after its transaction is committed, never before. Its id is made by the client: sent again, it
is answered again and counted once. What was shown is written down first (a presentation, its slots shuffled here), and
an event can only be about a picture in it.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Annotated, Any, Literal

import sqlalchemy as sa
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from vca.feedback.errors import NotFound, Unacceptable
from vca.feedback.schema import (
    candidate,
    dialogue,
    feedback_event,
    presentation,
    quality_probe,
    round_,
)
from vca.feedback.store import Person, Store, insert_once, new_id, now

Kind = Literal[
    "pick", "pair", "tie_good", "all_bad", "rate", "critique", "accept", "regenerate", "download", "report", "retract"
]
Layout = Literal["grid", "pair", "slider"]
Gate = Literal["pass", "fail", "unknown"]
MAX_CRITIQUE = 4000


def _as_uuid(text: str) -> str:
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise ValueError("expected a UUID") from None


Uuid = Annotated[str, AfterValidator(_as_uuid)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Nothing(_Body):
    """Kinds that say all by their target."""


class _Rating(_Body):
    """Rapidata's three axes, 1 (worst) to 5."""

    alignment: int | None = Field(None, ge=1, le=5)
    coherence: int | None = Field(None, ge=1, le=5)
    style: int | None = Field(None, ge=1, le=5)


class _Axes(_Body):
    """What was right (true) and what was not."""

    content: bool | None = None
    style: bool | None = None
    quality: bool | None = None


class _Report(_Body):
    reason: Literal["unsafe", "wrongly_hidden", "broken", "other"]


@dataclass(frozen=True, kw_only=True)
class _Rule:
    """Of an event kind: how many pictures it is about, and what its body says (version 1)."""

    fewest: int
    most: int
    body: type[_Body] = _Nothing


RULES: Mapping[Kind, _Rule] = {
    "pick": _Rule(fewest=1, most=1),
    "pair": _Rule(fewest=2, most=2),  # the first was preferred to the second
    "tie_good": _Rule(fewest=2, most=4),
    "all_bad": _Rule(fewest=1, most=4),
    "rate": _Rule(fewest=1, most=1, body=_Rating),
    "critique": _Rule(fewest=0, most=4, body=_Axes),
    "accept": _Rule(fewest=1, most=1),
    "regenerate": _Rule(fewest=0, most=0),
    "download": _Rule(fewest=1, most=1),
    "report": _Rule(fewest=0, most=1, body=_Report),
    "retract": _Rule(fewest=0, most=0),
}


class Event(BaseModel):
    """What a client sends. text: words of a critique or report; they are stored as they are, encrypted.

    target: the pictures it is about. supersedes: the event that this one takes back or replaces. dwell_ms: how long the
    person looked.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    event_id: Uuid
    presentation_id: Uuid
    kind: Kind
    version: Literal[1] = 1
    target: tuple[Uuid, ...] = Field((), max_length=4)
    body: dict[str, Any] = Field(default_factory=dict, max_length=10)
    text: str | None = Field(None, max_length=MAX_CRITIQUE)
    supersedes: Uuid | None = None
    client_at: datetime | None = None
    dwell_ms: int | None = Field(None, ge=0, lt=2**31)
    input: Literal["mouse", "touch", "key", "api"] = "api"
    client_version: str | None = Field(None, max_length=64, pattern=r"^[\w.+-]+$")


@dataclass(frozen=True, kw_only=True)
class Presentation:
    """slots: candidate ids in the order shown. probe: whether the person sees these for the second time."""

    presentation_id: str
    round_id: str
    slots: tuple[str, ...]
    layout: Layout
    shown_at: datetime
    probe: bool = False


def order(round_id: str, layout: Layout, pictures: Iterable[str]) -> tuple[int, list[str]]:
    """A seed, and pictures in the order drawn with it: known while they are drawn, so that none jumps when it is there.

    One that is missing does not move the others. Their ids are ours and random, so nobody chooses the order.
    """
    seed = int.from_bytes(sha256(f"{round_id}:{layout}".encode()).digest()[:6])
    return seed, sorted(pictures, key=lambda one: sha256(f"{seed}:{one}".encode()).digest())


def present(
    store: Store,
    person: Person,
    *,
    round_id: str,
    layout: Layout = "grid",
    only: tuple[str, str] | None = None,
    viewport: str | None = None,
    again: bool = False,
) -> Presentation:
    """Write down that a round's pictures are shown, in which order; the same request gets the same order again.

    only: the two pictures of a comparison. again: a probe, the same pictures in the reverse order, to see whether the
    person picks the same one. A round that has all its pictures hidden shows none, and that can be reported. Raises
    NotFound, Unacceptable for pictures that are not there, StoreDown.
    """
    with store.database.writing() as connection:
        _own_round(connection, person, round_id)
        ready = set(
            connection.execute(
                sa.select(candidate.c.candidate_id).where(
                    candidate.c.round_id == round_id, candidate.c.state == "ready"
                )
            ).scalars()
        )
        shown = sorted(ready) if only is None else list(only)
        if not ready.issuperset(shown) or len(set(shown)) != len(shown):
            raise Unacceptable(f"round {round_id} has no such pictures to show")
        name = ":".join([round_id, layout, *sorted(shown), "again" if again else ""])
        made = str(uuid.uuid5(uuid.NAMESPACE_OID, name))
        seed, slots = order(round_id, layout, shown)
        if again:
            first = _presentation(connection, str(uuid.uuid5(uuid.NAMESPACE_OID, name.removesuffix("again"))))
            if first is None:
                raise Unacceptable("a probe shows again what was shown before")
            slots = list(reversed(first.slots))
        values = {
            "presentation_id": made,
            "round_id": round_id,
            "slots": slots,
            "shuffle_seed": seed,
            "layout": layout,
            "viewport": viewport,
            "shown_at": now(),
        }
        if insert_once(connection, presentation, values) and again:
            assert first is not None
            probe = {
                "probe_id": new_id(),
                "presentation_id": made,
                "of_presentation_id": first.presentation_id,
                "kind": "self_repeat",
            }
            connection.execute(sa.insert(quality_probe).values(probe))
        row = _presentation(connection, made)
        assert row is not None
    return Presentation(
        presentation_id=made,
        round_id=round_id,
        slots=tuple(row.slots),
        layout=row.layout,
        shown_at=row.shown_at,
        probe=again,
    )


def presented(store: Store, person: Person, dialogue_id: str) -> dict[tuple[str, bool], Presentation]:
    """What a dialogue's rounds were shown as in the grid: by round, and whether it was a probe."""
    statement = (
        sa.select(presentation, quality_probe.c.probe_id)
        .join(round_, round_.c.round_id == presentation.c.round_id)
        .join(dialogue, dialogue.c.dialogue_id == round_.c.dialogue_id)
        .outerjoin(quality_probe, quality_probe.c.presentation_id == presentation.c.presentation_id)
        .where(
            round_.c.dialogue_id == dialogue_id,
            dialogue.c.subject_id == person.subject_id,
            presentation.c.layout == "grid",
        )
    )
    with store.database.reading() as connection:
        rows = connection.execute(statement).all()
    return {
        (row.round_id, row.probe_id is not None): Presentation(
            presentation_id=row.presentation_id,
            round_id=row.round_id,
            slots=tuple(row.slots),
            layout="grid",
            shown_at=row.shown_at,
            probe=row.probe_id is not None,
        )
        for row in rows
    }


def said(store: Store, person: Person, dialogue_id: str) -> list[sa.Row[Any]]:
    """The person's events in a dialogue, in the order in which they came: what a page shows again after a reload."""
    statement = (
        sa.select(
            feedback_event.c.event_id,
            feedback_event.c.round_id,
            feedback_event.c.presentation_id,
            feedback_event.c.kind,
            feedback_event.c.target,
            feedback_event.c.supersedes,
        )
        .where(feedback_event.c.dialogue_id == dialogue_id, feedback_event.c.subject_id == person.subject_id)
        .order_by(feedback_event.c.received_at, feedback_event.c.event_id)
    )
    with store.database.reading() as connection:
        return list(connection.execute(statement))


def _own_round(connection: sa.Connection, person: Person, round_id: str) -> None:
    found = connection.execute(
        sa.select(round_.c.round_id)
        .join(dialogue, dialogue.c.dialogue_id == round_.c.dialogue_id)
        .where(round_.c.round_id == round_id, dialogue.c.subject_id == person.subject_id)
    ).first()
    if found is None:
        raise NotFound(f"no round {round_id}")


def _presentation(connection: sa.Connection, presentation_id: str) -> sa.Row[Any] | None:
    return connection.execute(sa.select(presentation).where(presentation.c.presentation_id == presentation_id)).first()
