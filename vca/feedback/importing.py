"""Labels that people gave elsewhere, brought into the store: rankings of ImageReward, the paper's label file.

Each comparison becomes an event of an imported subject, with all that an event needs: a dialogue, a round that is done,
two pictures, and a presentation of the two. Ids are made of the source's name and the record's id, so importing again
changes nothing, and after a kill the same command goes on where it stopped.

Neither format tells who labelled, so a source is one subject. It is taken to have agreed to training; an operator who
takes that back is not overruled by another import.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple

import numpy as np
import sqlalchemy as sa
from pydantic import ValidationError

from vca.data.images import BadImage, encode, open_rgb
from vca.data.prepare import open_source
from vca.data.quarantine import Quarantine
from vca.data.settings import DataSettings, FolderSettings
from vca.data.sources.base import Refused
from vca.errors import DataError, SettingsError
from vca.feedback.dialogues import Words
from vca.feedback.phash import phash
from vca.feedback.schema import candidate, consent_event, dialogue, feedback_event, presentation, round_
from vca.feedback.store import Person, Store, digest, insert_missing, insert_once, now
from vca.progress import Progress
from vca.records import Picture, PreferencePair
from vca.safety.checker import Checker

Kind = Literal["image_reward", "preferences"]
POLICY = "import"  # version of the text that was consented to: none of ours
NAME_CHARS = 57  # of a source; with "import:" before it, it fits dialogue.source
BATCH_PAIRS, BATCH_BYTES = 256, 64 * 2**20  # of one transaction: pairs, and their pictures in memory
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "vca.feedback.importing")


@dataclass(frozen=True, kw_only=True)
class Imported:
    """new + known + filtered + quarantined is all that was read. known: in the store already.

    filtered: what the safety filter hides, or could not judge. quarantined: what can't be used, by reason.
    """

    new: int
    known: int
    filtered: dict[str, int]
    quarantined: dict[str, int]


def run(
    store: Store,
    *,
    kind: Kind,
    path: Path,
    name: str = "",
    data: DataSettings,
    checker: Checker,
    quarantine: Path,
    progress: Progress,
) -> Imported:
    """Import the data set at `path`, in the layout that the data source `kind` reads. name: of the source; its kind.

    data: limits of pictures. checker: judges prompts and pictures; what it hides is not kept. quarantine: file for what
    can't be used, one JSON line each. Raises SettingsError; DataError where nothing can be used; StoreDown.
    """
    if len(name) > NAME_CHARS:
        raise SettingsError(f"the source's name has {len(name)} characters, allowed are {NAME_CHARS}; shorten it")
    settings = FolderSettings(kind=kind, path=path, name=name)
    quarantine.parent.mkdir(parents=True, exist_ok=True)
    with store.database.alone("import"), TemporaryDirectory() as scratch, Quarantine(quarantine) as refused:
        source = open_source(settings, config=data, scratch=Path(scratch))
        desk = _Desk(store, source.name, refused, checker=checker, max_pixels=data.max_pixels)
        with progress.task(f"import: {source.name}", total=source.total(), unit="records") as task:
            for batch in _batches(source.read()):
                desk.take(batch)
                task.advance(len(batch))
    count = Imported(
        new=desk.new,
        known=desk.known,
        filtered=dict(sorted(desk.filtered.items())),
        quarantined=dict(sorted(refused.by_source.get(source.name, Counter()).items())),
    )
    if not count.new + count.known:
        raise DataError(
            f"{path}: no comparison can be used ({told(count)}); is it laid out as {kind} (docs/data-preparation.md)?"
        )
    return count


def told(count: Imported) -> str:
    """The counts in words."""
    reasons = {**count.filtered, **count.quarantined}
    return f"{count.new} new, {count.known} known" + "".join(f", {name} {number}" for name, number in reasons.items())


def _batches(items: Iterable[object]) -> Iterator[list[PreferencePair | Refused]]:
    """Pairs and refusals. Dialogues tell of a picture that is wanted, not of a choice: they are no feedback."""
    batch: list[PreferencePair | Refused] = []
    pictures: dict[int, int] = {}  # bytes of each object: the pairs of a prompt share them
    for item in items:
        if not isinstance(item, PreferencePair | Refused):
            continue
        batch.append(item)
        if isinstance(item, PreferencePair):
            pictures |= {id(picture): len(picture.data) for picture in (item.positive, item.negative)}
        if len(batch) == BATCH_PAIRS or sum(pictures.values()) > BATCH_BYTES:
            yield batch
            batch, pictures = [], {}
    if batch:
        yield batch


class _Kept(NamedTuple):
    """A picture that is in the store."""

    sha256: str
    phash: str
    width: int
    height: int


class _Choice(NamedTuple):
    """What becomes one event. better, worse: for a tie, either."""

    event_id: str
    sha256: str
    pair: PreferencePair
    words: Words
    dialogue_id: str
    round_id: str
    better: _Kept
    worse: _Kept


class _Hidden(Exception):
    """The safety filter hides it. The text is the reason that is counted."""


class _Unusable(Exception):
    def __init__(self, refused: Refused) -> None:
        super().__init__(refused.detail)
        self.refused = refused


class _Desk:
    """Decides on each comparison, and writes them down batch by batch."""

    def __init__(self, store: Store, name: str, refused: Quarantine, *, checker: Checker, max_pixels: int) -> None:
        self.store, self.name, self.refused = store, name, refused
        self.checker, self.max_pixels = checker, max_pixels
        self.person = _subject(store, name)
        self.new = self.known = 0
        self.filtered: Counter[str] = Counter()

    def take(self, batch: list[PreferencePair | Refused]) -> None:
        pairs = [item for item in batch if isinstance(item, PreferencePair)]
        known = self._known([self._id("event", pair.pair_id) for pair in pairs])
        kept: dict[str, _Kept] = {}
        choices: list[_Choice] = []
        for item in batch:
            if isinstance(item, Refused):
                self.refused.add(item, source=self.name)
                continue
            try:
                choice = self._choice(item, known, kept)
            except _Unusable as error:
                self.refused.add(error.refused, source=self.name)
            except _Hidden as error:
                self.filtered[str(error)] += 1
            else:
                if choice is None:
                    self.known += 1
                else:
                    known[choice.event_id] = choice.sha256
                    choices.append(choice)
        self._write(choices)
        self.new += len(choices)

    def _known(self, ids: list[str]) -> dict[str, str]:
        """Those of the events that are in the store, with their contents' hashes."""
        statement = sa.select(feedback_event.c.event_id, feedback_event.c.body_sha256)
        with self.store.database.reading() as connection:
            rows = connection.execute(statement.where(feedback_event.c.event_id.in_(ids))).all()
        return {row.event_id: row.body_sha256 for row in rows}

    def _choice(self, pair: PreferencePair, known: dict[str, str], kept: dict[str, _Kept]) -> _Choice | None:
        """None for a known one. Raises _Unusable, _Hidden."""
        event_id = self._id("event", pair.pair_id)
        contents = [pair.prompt, pair.positive.sha256, pair.negative.sha256, pair.label]
        sha256 = self.store.vault.hmac(digest(contents))
        if event_id in known:
            if known[event_id] != sha256:
                raise _unusable("duplicate_id", pair, "another record has this id; name the source otherwise (--name)")
            return None
        words = self._words(pair)
        better, worse = (self._picture(picture, kept) for picture in (pair.positive, pair.negative))
        if better.sha256 == worse.sha256:
            raise _unusable("wrong_label", pair, "both pictures are the same one")
        talk = pair.dialogue_id or pair.pair_id
        return _Choice(
            event_id,
            sha256,
            pair,
            words,
            self._id("dialogue", talk),
            self._id("round", talk, self.store.prompt_hmac(words.prompt)),
            better,
            worse,
        )

    def _words(self, pair: PreferencePair) -> Words:
        try:
            words = Words(prompt=pair.prompt)
        except ValidationError as error:
            raise _unusable("wrong_type", pair, f"prompt: {error.errors()[0]['msg']}") from None
        if reason := self.checker.check_prompt(words.prompt).reason:
            raise _Hidden("unchecked_prompt" if reason == "unknown" else "unsafe_prompt")
        return words

    def _picture(self, picture: Picture, kept: dict[str, _Kept]) -> _Kept:
        if picture.sha256 not in kept:
            try:
                image, as_is, _ = open_rgb(picture.data, max_pixels=self.max_pixels)
            except BadImage as error:
                raise _Unusable(Refused(reason=error.reason, uri=picture.uri, detail=str(error))) from None
            if reason := self.checker.check_images([np.asarray(image)])[0].reason:
                raise _Hidden("unchecked_image" if reason == "unknown" else "unsafe_image")
            stored = self.store.objects.put(picture.data if as_is else encode(image))
            kept[picture.sha256] = _Kept(stored, phash(image), *image.size)
        return kept[picture.sha256]

    def _write(self, choices: list[_Choice]) -> None:
        """All of them, or none."""
        rounds = {choice.round_id: choice for choice in choices}
        with self.store.database.writing() as connection:
            moment = now()
            rows = [self._dialogue(choice, moment) for choice in rounds.values()]
            insert_missing(connection, dialogue, rows)
            insert_missing(connection, round_, [self._round(choice, moment) for choice in rounds.values()])
            places = _places(connection, list(rounds))
            pictures = []
            for choice in choices:
                for picture in (choice.better, choice.worse):
                    place, name = places[choice.round_id], self._candidate_id(choice, picture)
                    if name not in place:
                        place.add(name)
                        pictures.append(_candidate(choice.round_id, name, picture, idx=len(place) - 1))
            insert_missing(connection, candidate, pictures)
            insert_missing(connection, presentation, [self._presentation(choice, moment) for choice in choices])
            insert_missing(connection, feedback_event, [self._event(choice, moment) for choice in choices])

    # Rows

    def _dialogue(self, choice: _Choice, moment: Any) -> dict[str, Any]:
        return {
            "dialogue_id": choice.dialogue_id,
            "subject_id": self.person.subject_id,
            "head_round_id": choice.round_id,
            "request_sha256": self.store.vault.hmac(f"import {choice.dialogue_id}"),
            "source": f"import:{self.name}",
            "status": "abandoned",  # nobody goes on with it
            "created_at": moment,
            "closed_at": moment,
        }

    def _round(self, choice: _Choice, moment: Any) -> dict[str, Any]:
        words = choice.words
        return {
            "round_id": choice.round_id,
            "dialogue_id": choice.dialogue_id,
            "depth": 1,
            "words_enc": self.person.key.seal(words.model_dump_json(), row=choice.round_id),
            "prompt_hmac": self.store.prompt_hmac(words.prompt),
            "prompt_edited": False,
            "seed_mode": "fresh",
            "status": "done",
            "request_sha256": self.store.vault.hmac(f"import {choice.round_id}"),
            "attempts": 0,
            "requested_at": moment,
            "completed_at": moment,
        }

    def _presentation(self, choice: _Choice, moment: Any) -> dict[str, Any]:
        return {
            "presentation_id": self._id("presentation", choice.pair.pair_id),
            "round_id": choice.round_id,
            # Nobody knows which was shown where. This order has nothing to do with which is the better one.
            "slots": sorted(self._candidate_id(choice, picture) for picture in (choice.better, choice.worse)),
            "shuffle_seed": 0,
            "layout": "pair",
            "shown_at": moment,
        }

    def _event(self, choice: _Choice, moment: Any) -> dict[str, Any]:
        return {
            "event_id": choice.event_id,
            "subject_id": self.person.subject_id,
            "dialogue_id": choice.dialogue_id,
            "round_id": choice.round_id,
            "presentation_id": self._id("presentation", choice.pair.pair_id),
            "kind": "tie_good" if choice.pair.label == 0.5 else "pair",
            "version": 1,
            "body": {},
            "body_sha256": choice.sha256,
            "target": [self._candidate_id(choice, picture) for picture in (choice.better, choice.worse)],
            "event_at": moment,
            "received_at": moment,
            "input": "api",
            "gates": {},
        }

    def _candidate_id(self, choice: _Choice, picture: _Kept) -> str:
        return self._id("candidate", choice.round_id, picture.sha256)

    def _id(self, *parts: str) -> str:
        return _id(self.name, *parts)


def _candidate(round_id: str, name: str, picture: _Kept, *, idx: int) -> dict[str, Any]:
    return {
        "candidate_id": name,
        "round_id": round_id,
        "idx": idx,
        "seed": 0,  # not known
        "state": "ready",
        "image_sha256": picture.sha256,
        "phash": picture.phash,
        "width": picture.width,
        "height": picture.height,
        "safety": "pass",
    }


def _places(connection: sa.Connection, rounds: list[str]) -> dict[str, set[str]]:
    """The pictures that each round has."""
    places: dict[str, set[str]] = {round_id: set() for round_id in rounds}
    statement = sa.select(candidate.c.round_id, candidate.c.candidate_id).where(candidate.c.round_id.in_(rounds))
    for round_id, name in connection.execute(statement):
        places[round_id].add(name)
    return places


def _subject(store: Store, name: str) -> Person:
    person = store.person(f"import:{name}", kind="import")
    consent = {
        "id": _id(name, "consent", person.subject_id),  # once: what an operator took back since stays taken back
        "subject_id": person.subject_id,
        "scope": "train",
        "granted": True,
        "policy_version": POLICY,
        "at": now(),
    }
    with store.database.writing() as connection:
        insert_once(connection, consent_event, consent)
    return person


def _id(*parts: str) -> str:
    return str(uuid.uuid5(_NAMESPACE, digest(parts)))


def _unusable(reason: Any, pair: PreferencePair, detail: str) -> _Unusable:
    return _Unusable(Refused(reason=reason, uri=pair.pair_id, detail=detail))
