"""From what people did to what a model learns from: pure functions of one dialogue, versioned, never edited by hand.

The last choice of a presentation counts that was not taken back. What does not count is not dropped: its pairs are made
all the same, and say why they are excluded. Reasons that one dialogue shows are found here; those that need everybody
(trust, bursts, clusters, the cap per person) in `vca.feedback.snapshot`.

These are named tuples, not dataclasses: a snapshot makes millions of them, straight from database rows. For the same
reason ids are UUIDs as their 32 hexadecimal digits, and times are text, "2027-01-31 12:00:00.000000", in UTC: what is
written of them gets its usual form in bulk (`vca.feedback.sheets`).
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from hashlib import sha256
from itertools import combinations, pairwise
from typing import Literal, NamedTuple

from vca.data.splits import unit
from vca.feedback.settings import RuleSettings

RULE_VERSION = "2"
CHOICES = ("pick", "pair", "tie_good", "all_bad", "accept")
TEST_SHARE = VALIDATION_SHARE = 0.1  # of the dialogues
PRIOR = (3.0, 1.0)  # agreement and disagreement that everybody is credited with before the first probe

Rule = Literal["best_of_n", "pair", "tie", "accept_vs_prev"]
Split = Literal["train", "val", "test"]
Reason = Literal[
    "no_consent", "retracted", "superseded", "new_subject", "failed_probe", "unsafe", "broken_image", "near_duplicate",
    "low_trust", "burst", "cluster", "subject_cap",
]  # fmt: skip


class Round(NamedTuple):
    """One that was drawn. prompt, critique: in the clear; empty where the person doesn't let us train."""

    round_id: str
    parent_round_id: str | None
    parent_candidate_id: str | None
    depth: int
    prompt_hmac: str
    prompt: str
    critique: str


class Candidate(NamedTuple):
    candidate_id: str
    round_id: str
    image_sha256: str | None
    phash: str | None
    safety: str


class Shown(NamedTuple):
    """A presentation. probe: it tests the person. of: the earlier one that it repeats. expected: the right answer."""

    presentation_id: str
    round_id: str
    slots: tuple[str, ...]
    shown_at: str
    probe: bool = False
    of: str | None = None
    expected: str | None = None


class Said(NamedTuple):
    """An event, without its words. gates: verdicts of the checks for abuse."""

    event_id: str
    round_id: str
    presentation_id: str
    kind: str
    target: tuple[str, ...]
    supersedes: str | None
    event_at: str
    received_at: str
    dwell_ms: int | None = None
    input: str = "api"
    body: Mapping[str, int | bool] = {}
    gates: Mapping[str, str] = {}


class Told(NamedTuple):
    """Everything of one dialogue, as far as it was known at some moment; events in the order in which they came.

    consent: whether the person lets us train on it now. new: whether they are in quarantine still. taken_back: events
    that were retracted ("retract") or replaced (another kind) from another dialogue of the person's. imported: labels
    of a data set (`vca.feedback.importing`): many people's, all received at once.
    """

    dialogue_id: str
    subject_id: str
    consent: bool
    new: bool
    rounds: Mapping[str, Round]
    candidates: Mapping[str, Candidate]
    shown: Mapping[str, Shown]
    events: Sequence[Said]
    taken_back: Mapping[str, str] = {}
    imported: bool = False


class Pair(NamedTuple):
    """For `prompt`, `chosen` was preferred to `rejected` (label 1), or they tie (0.5). Slots count from 0.

    The weights of one choice's pairs sum to 1 for each rule. slot_*: None for a picture that the presentation lacked.
    """

    pair_id: str
    dialogue_id: str
    round_id: str
    subject_id: str
    depth: int
    chosen: str
    rejected: str
    label: float
    rule: Rule
    weight: float
    prompt: str | None
    prompt_hmac: str
    image_chosen: str | None
    image_rejected: str | None
    phash_chosen: str | None
    slot_chosen: int | None
    slot_rejected: int | None
    slots: int
    source_event_id: str
    event_timestamp: str
    split: Split
    excluded_reason: Reason | None


class Step(NamedTuple):
    """A round on the way: what the person said, the prompt it led to, the picture begun with, the one gone on with."""

    round: int
    prompt: str
    critique: str
    image: str | None
    target: str | None


class Way(NamedTuple):
    """A training dialogue: from the first round to the picture that was accepted, or else picked last."""

    dialogue_id: str
    subject_id: str
    leaf: str
    accepted: bool
    prompt_hmac: str
    phash_chosen: str | None
    steps: tuple[Step, ...]
    source_event_id: str
    event_timestamp: str
    split: Split
    excluded_reason: Reason | None


class Settled(NamedTuple):
    """What counts. standing: by presentation, its choice. choices: each with why it doesn't count, if so.

    confirming: acceptances that stand, of a picture that was picked already: no choice of their own. probes: by
    presentation that was repeated (or by the gold one), whether the person agreed with themselves (or with the truth).
    """

    standing: Mapping[str, Said]
    choices: Sequence[tuple[Said, Reason | None]]
    confirming: set[str]
    probes: Mapping[str, bool]


def settle(told: Told) -> Settled:
    """Which choices count: per presentation the last that was not taken back. What a probe says makes no pairs.

    An accept that confirms a pick stands with it: who picks another picture afterwards has not accepted the first.
    """
    gone = dict(told.taken_back)
    for event in told.events:
        if event.supersedes is not None and gone.get(event.supersedes) != "retract":
            gone[event.supersedes] = event.kind
    standing: dict[str, Said] = {}
    confirming: dict[str, str] = {}  # and the presentation of the pick
    every = [event for event in told.events if event.kind in CHOICES]
    for event in every:
        if event.event_id in gone:
            continue
        picked = [
            place
            for place, other in standing.items()
            if other.kind == "pick" and other.target == event.target and not told.shown[place].probe
        ]
        if event.kind == "accept" and picked:
            confirming[event.event_id] = picked[0]
            continue
        if event.presentation_id not in picked:  # another choice than the one confirmed
            confirming = {name: place for name, place in confirming.items() if place != event.presentation_id}
        standing[event.presentation_id] = event
    choices: list[tuple[Said, Reason | None]] = []
    for event in every:
        if told.shown[event.presentation_id].probe:
            continue
        counts = standing.get(event.presentation_id) is event or event.event_id in confirming
        taken_back = gone.get(event.event_id) == "retract"
        choices.append((event, None if counts else "retracted" if taken_back else "superseded"))
    probes = {}
    for place, shown in told.shown.items():
        answer = standing.get(place) if shown.probe else None
        if answer is None:
            continue
        if shown.expected is not None:
            probes[place] = liked(answer) == {shown.expected}
        elif shown.of in standing:
            probes[shown.of] = agree(liked(standing[shown.of]), liked(answer))
    return Settled(standing, choices, set(confirming), probes)


def liked(event: Said) -> set[str]:
    """The pictures that a choice is for."""
    return set() if event.kind == "all_bad" else set(event.target[:1] if event.kind == "pair" else event.target)


def agree(one: set[str], other: set[str]) -> bool:
    """Whether two choices among the same pictures can both be meant: they share a picture, or both like none."""
    return bool(one & other) or one == other


def trust(agreed: int, asked: int, *, stored: float = 1.0) -> float:
    """Mean of the Beta posterior of a person's agreement, from `PRIOR` and probes; at most what an operator set."""
    return min(stored, (PRIOR[0] + agreed) / (sum(PRIOR) + asked))


def split_of(dialogue_id: str) -> Split:
    """By hash of the dialogue: all that comes of it is on one side, whenever it is derived."""
    point = unit(dialogue_id.replace("-", ""), salt="feedback")
    return "test" if point < TEST_SHARE else "val" if point < TEST_SHARE + VALIDATION_SHARE else "train"


def compared(event: Said, slots: Sequence[str]) -> tuple[Rule, list[tuple[str, str]]]:
    """(chosen, rejected) candidates that a choice says something about, and by which rule; none for `all_bad`."""
    if event.kind in ("pick", "accept"):
        return "best_of_n", [(event.target[0], other) for other in slots if other != event.target[0]]
    if event.kind == "pair":
        return "pair", [(event.target[0], event.target[1])]
    if event.kind == "tie_good":
        return "tie", list(combinations([slot for slot in slots if slot in event.target], 2))
    return "best_of_n", []


def pairs(told: Told, settled: Settled, *, rules: RuleSettings, present: Container[str | None]) -> Iterator[Pair]:
    """All pairs of a dialogue, in the order of their events. present: digests of the pictures that are really there."""
    for event, reason in settled.choices:
        shown = told.shown[event.presentation_id]
        one = told.rounds[shown.round_id]
        if event.event_id not in settled.confirming:
            rule, found = compared(event, shown.slots)
            yield from _pairs(told, event, shown, rule, found, _excluded(told, settled, event, reason), rules, present)
        previous = one.parent_candidate_id
        if event.kind == "accept" and rules.accept_vs_previous and previous is not None and previous in told.candidates:
            found = [(event.target[0], previous)]
            why = _excluded(told, settled, event, reason)
            yield from _pairs(told, event, shown, "accept_vs_prev", found, why, rules, present)


def _excluded(told: Told, settled: Settled, event: Said, reason: Reason | None) -> Reason | None:
    """Why a choice is excluded, whatever the pictures."""
    if not told.consent:
        return "no_consent"
    if reason is None and told.new:
        return "new_subject"
    if reason is None and settled.probes.get(event.presentation_id) is False:
        return "failed_probe"
    return reason


def _pairs(
    told: Told,
    event: Said,
    shown: Shown,
    rule: Rule,
    found: list[tuple[str, str]],
    reason: Reason | None,
    rules: RuleSettings,
    present: Container[str | None],
) -> Iterator[Pair]:
    one = told.rounds[shown.round_id]
    split = split_of(told.dialogue_id)
    slots = {name: slot for slot, name in enumerate(shown.slots)}
    for chosen, rejected in found:
        a, b = told.candidates[chosen], told.candidates[rejected]
        why = reason or unusable(a, b, bits=rules.near_duplicate_bits, present=present)
        yield Pair(
            sha256(f"{RULE_VERSION}|{chosen}|{rejected}|{event.event_id}".encode()).hexdigest(),
            told.dialogue_id,
            one.round_id,
            told.subject_id,
            one.depth,
            chosen,
            rejected,
            0.5 if rule == "tie" else 1.0,
            rule,
            1 / len(found),
            one.prompt,
            one.prompt_hmac,
            a.image_sha256,
            b.image_sha256,
            a.phash,
            slots.get(chosen),
            slots.get(rejected),
            len(slots),
            event.event_id,
            event.received_at,
            split,
            why,
        )


def unusable(one: Candidate, other: Candidate, *, bits: int, present: Container[str | None]) -> Reason | None:
    """Why two pictures can't be a pair; None if they can."""
    if one.safety != "pass" or other.safety != "pass":
        return "unsafe"
    if one.image_sha256 not in present or other.image_sha256 not in present:
        return "broken_image"
    if one.image_sha256 == other.image_sha256:
        return "near_duplicate"
    if one.phash and other.phash and (int(one.phash, 16) ^ int(other.phash, 16)).bit_count() <= bits:
        return "near_duplicate"
    return None


def way_of(told: Told, settled: Settled, *, present: Container[str | None]) -> Way | None:
    """The way to the picture that was accepted last, or else picked last; None where nothing was."""
    counted = [event for event, reason in settled.choices if reason is None]
    picks = [event for event in counted if event.kind == "pick"]
    ends = [event for event in counted if event.kind == "accept"] or picks
    if not ends:
        return None
    end = ends[-1]
    picked = {event.round_id: event.target[0] for event in picks}
    rounds = [told.rounds[end.round_id]]
    while (parent := rounds[0].parent_round_id) is not None and parent in told.rounds:
        rounds.insert(0, told.rounds[parent])
    # A round's picture is the one that the next round went on from; where that began from words, the one picked.
    gone_on = [later.parent_candidate_id or picked.get(now.round_id) for now, later in pairwise(rounds)]
    reason = _excluded(told, settled, end, None)
    steps = []
    for number, (one, target) in enumerate(zip(rounds, [*gone_on, end.target[0]], strict=True), start=1):
        begun, aim = told.candidates.get(one.parent_candidate_id or ""), told.candidates.get(target or "")
        for candidate in (begun, aim):
            if reason is None and candidate is not None and candidate.safety != "pass":
                reason = "unsafe"
            if reason is None and candidate is not None and candidate.image_sha256 not in present:
                reason = "broken_image"
        steps.append(Step(number, one.prompt, one.critique, begun and begun.image_sha256, aim and aim.image_sha256))
    return Way(
        told.dialogue_id,
        told.subject_id,
        end.target[0],
        end.kind == "accept",
        rounds[-1].prompt_hmac,
        told.candidates[end.target[0]].phash,
        tuple(steps),
        end.event_id,
        end.received_at,
        split_of(told.dialogue_id),
        reason,
    )
