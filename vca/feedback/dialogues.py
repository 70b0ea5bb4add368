"""Dialogues as trees of rounds. Nothing is ever deleted: going back moves the head, a new round from there is a branch.

Clients make the ids of dialogues and rounds: the same id with the same request is the same thing asked twice, and
answered alike; with another request it is a Conflict.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, Self

import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from vca.feedback.errors import Conflict, NotFound, Unacceptable
from vca.feedback.schema import candidate, dialogue, round_
from vca.feedback.store import Person, Store, digest, insert_once, new_id, now

MAX_TEXT = 4000  # characters of a prompt or a critique
SEEDS = 2**53  # a JSON number keeps every one of them exactly
LOCKED_STEPS = (
    0.7,
    0.85,
    1.0,
    1.15,
)  # of the strength asked for: with the look locked, candidates differ in this alone

Status = Literal["queued", "running", "done", "failed", "cancelled", "blocked"]
OPEN: tuple[Status, ...] = ("queued", "running")
Axis = Literal["content", "style", "quality"]


class Words(BaseModel):
    """What was said and written about a round; encrypted as one piece.

    critique: what should change. keep, change: attributes marked so. axes: what the person was content with (true) or
    not. prompt_refined: what the refiner made of it. prompt: what is drawn, perhaps edited by the person.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: str = Field(min_length=1, max_length=MAX_TEXT)
    prompt_refined: str = Field("", max_length=MAX_TEXT)
    critique: str = Field("", max_length=MAX_TEXT)
    keep: tuple[str, ...] = Field((), max_length=50)
    change: tuple[str, ...] = Field((), max_length=50)
    axes: dict[Axis, bool] = Field(default_factory=dict)
    notice: str | None = Field(None, max_length=MAX_TEXT)
    truncated: tuple[str, ...] = Field((), max_length=100)

    @field_validator("prompt")
    @classmethod
    def _says_something(cls, prompt: str) -> str:
        if not prompt.strip():
            raise ValueError("say what to draw")
        return prompt

    @field_validator("keep", "change")
    @classmethod
    def _short(cls, parts: tuple[str, ...]) -> tuple[str, ...]:
        if any(len(part) > 200 for part in parts):
            raise ValueError("an attribute has 200 characters at most")
        return parts


class RoundRequest(BaseModel):
    """A round that somebody asks for. parent_candidate_id: the picture to go on from; None begins anew from words."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    round_id: str
    words: Words
    parent_round_id: str | None = None
    parent_candidate_id: str | None = None
    strength: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    locked: bool = False
    pictures: int = Field(4, ge=1, le=4)

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.parent_candidate_id is None and (self.locked or self.strength is not None):
            raise ValueError("strength and locked need a picture to go on from (parent_candidate_id)")
        if self.parent_candidate_id is not None and self.parent_round_id is None:
            raise ValueError("parent_candidate_id needs its parent_round_id")
        return self


@dataclass(frozen=True, kw_only=True)
class Candidate:
    candidate_id: str
    idx: int
    seed: int
    strength: float | None
    state: Literal["waiting", "ready", "blocked", "failed"]
    reason: str | None
    image_sha256: str | None
    release: str | None


@dataclass(frozen=True, kw_only=True)
class Round:
    """`position`: how many rounds are drawn before it; 0 once it is being drawn."""

    round_id: str
    parent_round_id: str | None
    parent_candidate_id: str | None
    depth: int
    words: Words
    prompt_edited: bool
    strength: float | None
    locked: bool
    status: Status
    reason: str | None
    requested_at: datetime
    completed_at: datetime | None
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True, kw_only=True)
class Tree:
    """A dialogue, its rounds in the order in which they were asked for."""

    dialogue_id: str
    head_round_id: str
    status: Literal["open", "accepted", "abandoned"]
    created_at: datetime
    rounds: tuple[Round, ...]

    def round(self, round_id: str) -> Round:
        for one in self.rounds:
            if one.round_id == round_id:
                return one
        raise NotFound(f"no round {round_id}")

    def path(self, round_id: str) -> list[Round]:
        """The rounds from the first one to `round_id`."""
        path = [self.round(round_id)]
        while (parent := path[0].parent_round_id) is not None:
            path.insert(0, self.round(parent))
        return path


def begin(
    store: Store,
    person: Person,
    *,
    dialogue_id: str,
    first: RoundRequest,
    source: str = "app",
    locale: str | None = None,
    client_version: str | None = None,
) -> bool:
    """Begin a dialogue with its first round; whether it is new. Raises Conflict, NotFound, StoreDown."""
    if first.parent_round_id is not None:
        raise Unacceptable("parent_round_id: a dialogue's first round has none")
    request = {"first": first.model_dump(mode="json"), "source": source}
    values = {
        "dialogue_id": dialogue_id,
        "subject_id": person.subject_id,
        "head_round_id": first.round_id,
        "request_sha256": store.vault.hmac(digest(request)),
        "locale": locale,
        "source": source,
        "client_version": client_version,
        "status": "open",
        "created_at": now(),
    }
    with store.database.writing() as connection:
        if not insert_once(connection, dialogue, values):
            row = own_dialogue(connection, person, dialogue_id)
            if row.request_sha256 != values["request_sha256"]:
                raise Conflict(f"dialogue {dialogue_id} was begun with another request; make a new id")
            return False
        _insert_round(store, connection, person, dialogue_id, first, depth=1, parent_seed=None)
    return True


def ask(store: Store, person: Person, *, dialogue_id: str, request: RoundRequest) -> bool:
    """Ask for another round, and stand at it; whether it is new. Raises Conflict, NotFound, Unacceptable, StoreDown."""
    with store.database.writing() as connection:
        own_dialogue(connection, person, dialogue_id)
        known = connection.execute(
            sa.select(round_.c.request_sha256, round_.c.dialogue_id).where(round_.c.round_id == request.round_id)
        ).first()
        if known is not None:
            if known.dialogue_id != dialogue_id or known.request_sha256 != _sha256(store, request):
                raise Conflict(f"round {request.round_id} was asked for with another request; make a new id")
            return False
        if request.parent_round_id is None:
            raise Unacceptable("parent_round_id: say which round this one goes on from")
        parent = connection.execute(
            sa.select(round_.c.depth).where(
                round_.c.round_id == request.parent_round_id, round_.c.dialogue_id == dialogue_id
            )
        ).first()
        if parent is None:
            raise NotFound(f"no round {request.parent_round_id}")
        parent_seed = None
        if request.parent_candidate_id is not None:
            picture = connection.execute(
                sa.select(candidate.c.state, candidate.c.seed).where(
                    candidate.c.candidate_id == request.parent_candidate_id,
                    candidate.c.round_id == request.parent_round_id,
                )
            ).first()
            if picture is None:
                raise NotFound(f"no picture {request.parent_candidate_id} in that round")
            if picture.state != "ready":
                raise Unacceptable(
                    f"picture {request.parent_candidate_id} is {picture.state}; choose one that is there"
                )
            parent_seed = picture.seed
        _insert_round(store, connection, person, dialogue_id, request, depth=parent.depth + 1, parent_seed=parent_seed)
        _set_head(connection, dialogue_id, request.round_id)
    return True


def go_to(store: Store, person: Person, *, dialogue_id: str, round_id: str) -> None:
    """Stand at another round: undo, redo, a step back. Raises NotFound, StoreDown."""
    with store.database.writing() as connection:
        own_dialogue(connection, person, dialogue_id)
        found = connection.execute(
            sa.select(round_.c.round_id).where(round_.c.round_id == round_id, round_.c.dialogue_id == dialogue_id)
        ).first()
        if found is None:
            raise NotFound(f"no round {round_id}")
        _set_head(connection, dialogue_id, round_id)


def tree(store: Store, person: Person, dialogue_id: str) -> Tree:
    """Raises NotFound, StoreDown."""
    with store.database.reading() as connection:
        row = own_dialogue(connection, person, dialogue_id)
        rounds = connection.execute(
            sa.select(round_)
            .where(round_.c.dialogue_id == dialogue_id)
            .order_by(round_.c.requested_at, round_.c.round_id)
        ).all()
        pictures = connection.execute(
            sa.select(candidate)
            .join(round_, round_.c.round_id == candidate.c.round_id)
            .where(round_.c.dialogue_id == dialogue_id)
            .order_by(candidate.c.idx)
        ).all()
    by_round: dict[str, list[Candidate]] = {}
    for one in pictures:
        by_round.setdefault(one.round_id, []).append(_candidate(one))
    return Tree(
        dialogue_id=row.dialogue_id,
        head_round_id=row.head_round_id,
        status=row.status,
        created_at=row.created_at,
        rounds=tuple(
            Round(
                round_id=one.round_id,
                parent_round_id=one.parent_round_id,
                parent_candidate_id=one.parent_candidate_id,
                depth=one.depth,
                words=open_words(person, one.round_id, one.words_enc),
                prompt_edited=one.prompt_edited,
                strength=one.strength,
                locked=one.seed_mode == "locked",
                status=one.status,
                reason=one.reason,
                requested_at=one.requested_at,
                completed_at=one.completed_at,
                candidates=tuple(by_round.get(one.round_id, ())),
            )
            for one in rounds
        ),
    )


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A dialogue in a list. prompt: of its first round. candidate_id: a picture of the round that it stands at."""

    dialogue_id: str
    created_at: datetime
    prompt: str
    candidate_id: str | None


def listed(store: Store, person: Person, *, most: int = 50) -> list[Listed]:
    """The person's dialogues, newest first."""
    picture = (
        sa.select(candidate.c.candidate_id)
        .where(candidate.c.round_id == dialogue.c.head_round_id, candidate.c.state == "ready")
        .order_by(candidate.c.idx)
        .limit(1)
        .scalar_subquery()
    )
    statement = (
        sa.select(
            dialogue.c.dialogue_id,
            dialogue.c.created_at,
            round_.c.round_id,
            round_.c.words_enc,
            picture.label("candidate_id"),
        )
        .join(round_, sa.and_(round_.c.dialogue_id == dialogue.c.dialogue_id, round_.c.depth == 1))
        .where(dialogue.c.subject_id == person.subject_id)
        .order_by(dialogue.c.created_at.desc())
        .limit(most)
    )
    with store.database.reading() as connection:
        rows = connection.execute(statement).all()
    return [
        Listed(
            dialogue_id=row.dialogue_id,
            created_at=row.created_at,
            prompt=open_words(person, row.round_id, row.words_enc).prompt,
            candidate_id=row.candidate_id,
        )
        for row in rows
    ]


def dialogue_of(store: Store, person: Person, round_id: str) -> str:
    """The dialogue that a round belongs to. Raises NotFound; for somebody else's too."""
    with store.database.reading() as connection:
        found = connection.execute(
            sa.select(dialogue.c.dialogue_id)
            .join(round_, round_.c.dialogue_id == dialogue.c.dialogue_id)
            .where(round_.c.round_id == round_id, dialogue.c.subject_id == person.subject_id)
        ).scalar()
    if found is None:
        raise NotFound(f"no round {round_id}")
    return str(found)


def picture(store: Store, person: Person, candidate_id: str) -> str | None:
    """The digest of a candidate's picture; None while there is none. Raises NotFound; for somebody else's too."""
    with store.database.reading() as connection:
        row = connection.execute(
            sa.select(candidate.c.image_sha256, candidate.c.state)
            .join(round_, round_.c.round_id == candidate.c.round_id)
            .join(dialogue, dialogue.c.dialogue_id == round_.c.dialogue_id)
            .where(candidate.c.candidate_id == candidate_id, dialogue.c.subject_id == person.subject_id)
        ).first()
    if row is None:
        raise NotFound(f"no picture {candidate_id}")
    return row.image_sha256 if row.state == "ready" else None


def open_words(person: Person, round_id: str, sealed: bytes) -> Words:
    return Words.model_validate_json(person.key.open(sealed, row=round_id))


def own_dialogue(connection: sa.Connection, person: Person, dialogue_id: str) -> sa.Row[Any]:
    """Raises NotFound; for somebody else's too."""
    row = connection.execute(
        sa.select(dialogue).where(dialogue.c.dialogue_id == dialogue_id, dialogue.c.subject_id == person.subject_id)
    ).first()
    if row is None:
        raise NotFound(f"no dialogue {dialogue_id}")
    return row


def _set_head(connection: sa.Connection, dialogue_id: str, round_id: str) -> None:
    connection.execute(sa.update(dialogue).where(dialogue.c.dialogue_id == dialogue_id).values(head_round_id=round_id))


def _sha256(store: Store, request: RoundRequest) -> str:
    return store.vault.hmac(digest(request.model_dump(mode="json")))  # keyed: words can't be guessed from it


def _insert_round(
    store: Store,
    connection: sa.Connection,
    person: Person,
    dialogue_id: str,
    request: RoundRequest,
    *,
    depth: int,
    parent_seed: int | None,
) -> None:
    """Seeds and strengths are drawn here, once: who draws the round again draws the same pictures."""
    words = request.words
    values = {
        "round_id": request.round_id,
        "dialogue_id": dialogue_id,
        "parent_round_id": request.parent_round_id,
        "parent_candidate_id": request.parent_candidate_id,
        "depth": depth,
        "words_enc": person.key.seal(words.model_dump_json(), row=request.round_id),
        "prompt_hmac": store.prompt_hmac(words.prompt),
        "prompt_edited": bool(words.prompt_refined) and words.prompt != words.prompt_refined,
        "strength": request.strength,
        "seed_mode": "locked" if request.locked else "fresh",
        "status": "queued",
        "request_sha256": _sha256(store, request),
        "attempts": 0,
        "requested_at": now(),
    }
    if not insert_once(connection, round_, values):
        raise Conflict(f"round {request.round_id} exists; make a new id")
    first = secrets.randbelow(SEEDS - 10) if parent_seed is None or not request.locked else parent_seed
    for idx in range(request.pictures):
        strength = request.strength
        if request.locked and strength is not None:
            strength = min(1.0, strength * LOCKED_STEPS[idx])
        connection.execute(
            sa.insert(candidate).values(
                candidate_id=new_id(),
                round_id=request.round_id,
                idx=idx,
                seed=first if request.locked else first + idx,
                strength=strength,
                state="waiting",
                safety="unknown",
            )
        )


def _candidate(row: sa.Row[Any]) -> Candidate:
    return Candidate(**{name: getattr(row, name) for name in Candidate.__dataclass_fields__})
