"""What the page and product back ends send and get. The state of a dialogue is one document, whoever asks for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict, Field

from serving.studio.drawing import Previews
from vca.feedback import events, queue
from vca.feedback.dialogues import OPEN, Axis, Candidate, Round, RoundRequest, Tree, Words, tree
from vca.feedback.events import Uuid
from vca.feedback.store import Person, Store
from vca.refine.words import split_parts
from vca.service import StudioSettings

# Why a picture or a round is not there, for people. A technical fault is never called unsafe, nor the other way round.
MESSAGES = {
    "hidden": "Hidden by the safety filter. If that is wrong, tell us with “Report”, or say it in other words.",
    "unchecked": "Could not be checked by the safety filter, so it stays hidden. Try again in a moment.",
    "empty": "Nothing but an empty picture came out. Say it in other words, or draw again.",
    "no_generator": "The picture maker did not answer. Draw again in a moment; nothing is lost.",
    "generator_fault": "The picture maker had a fault. Draw again; nothing is lost.",
    "picture_gone": "The picture to go on from is no longer there. Go on from another one.",
    "crashed": "Drawing this stopped the picture maker twice. Say it in other words.",
}
CHOICES = ("pick", "pair", "tie_good", "all_bad", "accept")


class _Sent(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class NewDialogue(_Sent):
    dialogue_id: Uuid
    round_id: Uuid
    prompt: str
    locale: str | None = Field(None, max_length=35, pattern=r"^[A-Za-z0-9-]+$")


class Critique(_Sent):
    """What should change. The generator makes a prompt of it; nothing is drawn."""

    parent_round_id: Uuid
    parent_candidate_id: Uuid | None = None
    critique: str = Field("", max_length=events.MAX_CRITIQUE)
    keep: tuple[str, ...] = Field((), max_length=50)
    change: tuple[str, ...] = Field((), max_length=50)
    axes: dict[Axis, bool] = Field(default_factory=dict)

    def feedback(self) -> str:
        """As a person would say it, for the refiner."""
        said = [self.critique.strip()] if self.critique.strip() else []
        said += [f"change the {part}" for part in self.change]
        said += [f"keep the {part}" for part in self.keep]
        return ". ".join(said)


class NewRound(Critique):
    round_id: Uuid
    prompt: str
    prompt_refined: str = ""
    notice: str | None = None
    truncated: tuple[str, ...] = Field((), max_length=100)
    strength: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    locked: bool = False

    def request(self, settings: StudioSettings) -> RoundRequest:
        words = Words(
            prompt=self.prompt,
            prompt_refined=self.prompt_refined,
            critique=self.critique,
            keep=self.keep,
            change=self.change,
            axes=self.axes,
            notice=self.notice,
            truncated=self.truncated,
        )
        return RoundRequest(
            round_id=self.round_id,
            words=words,
            parent_round_id=self.parent_round_id,
            parent_candidate_id=self.parent_candidate_id,
            strength=self.strength,
            locked=self.locked,
            pictures=settings.pictures,
        )


class Head(_Sent):
    round_id: Uuid


class Comparison(_Sent):
    layout: Literal["pair", "slider"]
    pictures: tuple[Uuid, Uuid]
    viewport: str | None = Field(None, max_length=16, pattern=r"^\d{1,5}x\d{1,5}$")


class Consent(_Sent):
    train: bool


class Farewell(_Sent):
    confirm: Literal["delete"]


Said = Sequence[sa.Row[Any]]
Shown = Mapping[tuple[str, bool], events.Presentation]


@dataclass(frozen=True, kw_only=True)
class View:
    """Makes documents of a person's dialogues."""

    store: Store
    person: Person
    settings: StudioSettings
    previews: Previews

    def tree(self, dialogue_id: str, *, share: str | None) -> dict[str, Any]:
        found, said, shown = self._read(dialogue_id)
        return {
            "dialogue_id": found.dialogue_id,
            "head": found.head_round_id,
            "status": found.status,
            "share": share,
            "rounds": [self._round(one, said, shown) for one in found.rounds],
        }

    def round(self, dialogue_id: str, round_id: str) -> dict[str, Any]:
        found, said, shown = self._read(dialogue_id)
        return self._round(found.round(round_id), said, shown)

    def _read(self, dialogue_id: str) -> tuple[Tree, Said, Shown]:
        return (
            tree(self.store, self.person, dialogue_id),
            events.said(self.store, self.person, dialogue_id),
            events.presented(self.store, self.person, dialogue_id),
        )

    def _round(self, one: Round, said: Said, shown: Shown) -> dict[str, Any]:
        seen = self._seen(one, shown)
        pictures = {picture.candidate_id: picture for picture in one.candidates}
        _, order = events.order(one.round_id, "grid", pictures)
        return {
            "round_id": one.round_id,
            "parent_round_id": one.parent_round_id,
            "parent_candidate_id": one.parent_candidate_id,
            "depth": one.depth,
            **one.words.model_dump(mode="json"),
            "prompt_edited": one.prompt_edited,
            "strength": one.strength,
            "locked": one.locked,
            "parts": split_parts(one.words.prompt),
            "status": one.status,
            "message": _message(one.status, one.reason),
            "position": queue.position(self.store, one.round_id) if one.status == "queued" else 0,
            "progress": self._progress(one),
            "candidates": [self._candidate(pictures[name], one) for name in order],
            "presentation": seen and _document(seen),
            "probe": self._probe(one, seen, said, shown),
            "choice": choice_of(one.round_id, said, shown),
        }

    def _seen(self, one: Round, shown: Shown) -> events.Presentation | None:
        """What is shown of a finished round; the first time, that is written down. Nothing, where all is hidden."""
        if one.status in OPEN or not any(picture.state in ("ready", "blocked") for picture in one.candidates):
            return None
        return shown.get((one.round_id, False)) or events.present(self.store, self.person, round_id=one.round_id)

    def _probe(self, one: Round, seen: events.Presentation | None, said: Said, shown: Shown) -> dict[str, Any] | None:
        """The same pictures once more, in a few rounds where one was picked; until that is answered."""
        if seen is None or len(seen.slots) < 2 or not _drawn_by_lot(one.round_id, self.store.settings.probe_share):
            return None
        choice = choice_of(one.round_id, said, shown)
        if choice is None or choice["kind"] != "pick" or choice["presentation_id"] != seen.presentation_id:
            return None
        again = shown.get((one.round_id, True)) or events.present(
            self.store, self.person, round_id=one.round_id, again=True
        )
        return None if any(row.presentation_id == again.presentation_id for row in said) else _document(again)

    def _progress(self, one: Round) -> float:
        if one.status not in OPEN:
            return 1.0
        steps = self.settings.previews + 1
        done = sum(
            steps if picture.state != "waiting" else self.previews.number(picture.candidate_id)
            for picture in one.candidates
        )
        return min(1.0, done / (steps * len(one.candidates)))

    def _candidate(self, picture: Candidate, one: Round) -> dict[str, Any]:
        address = f"/v1/pictures/{picture.candidate_id}"
        number = self.previews.number(picture.candidate_id)
        drawing = picture.state == "waiting" and one.status in OPEN
        return {
            "candidate_id": picture.candidate_id,
            "idx": picture.idx,
            "state": picture.state,
            "message": _message(picture.state, picture.reason),
            "picture": address if picture.state == "ready" else None,
            "preview": f"{address}/preview?n={number}" if drawing and number else None,
        }


def choice_of(round_id: str, said: Said, shown: Shown) -> dict[str, Any] | None:
    """The last choice in a round that was not taken back; what was picked in a probe is none. What was said of two in
    a comparison counts where nothing was said of all: it takes no pick back."""
    gone = {row.supersedes for row in said if row.supersedes}
    probe = shown.get((round_id, True))
    standing = [
        row
        for row in said
        if row.round_id == round_id and row.kind in CHOICES and row.event_id not in gone
        if probe is None or row.presentation_id != probe.presentation_id
    ]
    if not standing:
        return None
    row = max(enumerate(standing), key=lambda one: (one[1].kind != "pair", one[0]))[1]
    return {
        "event_id": row.event_id,
        "presentation_id": row.presentation_id,
        "kind": row.kind,
        "target": list(row.target),
    }


def _document(seen: events.Presentation) -> dict[str, Any]:
    return {"presentation_id": seen.presentation_id, "slots": list(seen.slots), "shown_at": seen.shown_at.isoformat()}


def _message(state: str, reason: str | None) -> str | None:
    if state in ("failed", "blocked"):
        return MESSAGES.get(reason or "", MESSAGES["generator_fault"])
    return "Stopped." if state == "cancelled" else None


def _drawn_by_lot(round_id: str, share: float) -> bool:
    """The same answer for a round every time."""
    return int(round_id.replace("-", "")[-8:], 16) / 2**32 < share
