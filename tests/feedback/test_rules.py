from __future__ import annotations

import random
from collections import defaultdict
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vca.feedback import rules
from vca.feedback.rules import Candidate, Pair, Round, Said, Shown, Told, pairs, settle, trust
from vca.feedback.settings import RuleSettings

ALL = RuleSettings.model_validate({"accept_vs_previous": True})
ROUNDS = 3


def told(*events: Said, shown: tuple[Shown, ...] = (), **more: Any) -> Told:
    """Three rounds of four pictures a0…a3, b0…, c0…, each shown once, each begun from the first of the round before."""
    candidates = [Candidate(f"{r}{i}", r, f"image {r}{i}", None, "pass") for r in "abc" for i in range(4)]
    rounds = [
        Round(r, before, before and f"{before}0", depth, f"hmac {r}", f"prompt {r}", "")
        for depth, (r, before) in enumerate(zip("abc", (None, "a", "b"), strict=True), start=1)
    ]
    usual = [Shown(f"see {r}", r, tuple(f"{r}{i}" for i in range(4)), "00") for r in "abc"]
    fields: dict[str, Any] = {
        "dialogue_id": "d",
        "subject_id": "s",
        "consent": True,
        "new": False,
        "rounds": {one.round_id: one for one in rounds},
        "candidates": {one.candidate_id: one for one in candidates},
        "shown": {one.presentation_id: one for one in (*usual, *shown)},
        "events": events,
    }
    return Told(**(fields | more))


def said(name: str, kind: str, *target: str, place: str = "see a", replaces: str | None = None) -> Said:
    number = int(name[1:])
    return Said(name, place[-1], place, kind, target, replaces, f"{number:02d}", f"{number:02d}")


def derived(told: Told, settings: RuleSettings = RuleSettings()) -> list[Pair]:  # noqa: B008 (frozen)
    present = {one.image_sha256 for one in told.candidates.values()}
    return list(pairs(told, settle(told), rules=settings, present=present))


def usable(told: Told, settings: RuleSettings = RuleSettings()) -> list[tuple[str, str, float, str, float]]:  # noqa: B008
    return [(p.chosen, p.rejected, p.label, p.rule, p.weight) for p in derived(told, settings) if not p.excluded_reason]


def reasons(told: Told) -> dict[str, str | None]:
    return {pair.source_event_id: pair.excluded_reason for pair in derived(told)}


def test_a_pick_is_preferred_to_everything_beside_it() -> None:
    third = 1 / 3
    assert usable(told(said("e1", "pick", "a2"))) == [
        ("a2", other, 1.0, "best_of_n", third) for other in ("a0", "a1", "a3")
    ]


def test_a_pair_a_tie_and_nothing_good() -> None:
    assert usable(told(said("e1", "pair", "a1", "a3"))) == [("a1", "a3", 1.0, "pair", 1.0)]
    assert usable(told(said("e1", "tie_good", "a3", "a0", "a1"))) == [
        (one, other, 0.5, "tie", 1 / 3) for one, other in (("a0", "a1"), ("a0", "a3"), ("a1", "a3"))
    ]
    assert usable(told(said("e1", "all_bad", "a0", "a1", "a2", "a3"))) == []


def test_the_last_choice_counts() -> None:
    story = told(said("e1", "pick", "a0"), said("e2", "tie_good", "a1", "a2"), said("e3", "pick", "a3"))
    assert reasons(story) == {"e1": "superseded", "e2": "superseded", "e3": None}


def test_what_is_taken_back_makes_room_for_what_was_said_before() -> None:
    story = told(said("e1", "pick", "a0"), said("e2", "pick", "a1"), said("e3", "retract", replaces="e2"))
    assert reasons(story) == {"e1": None, "e2": "retracted"}


def test_a_choice_elsewhere_can_replace_one() -> None:
    story = told(said("e1", "pick", "a0"), said("e2", "pick", "b1", place="see b", replaces="e1"))
    assert reasons(story) == {"e1": "superseded", "e2": None}
    assert reasons(told(said("e1", "pick", "a0"), taken_back={"e1": "pick"})) == {"e1": "superseded"}
    assert reasons(told(said("e1", "pick", "a0"), taken_back={"e1": "retract"})) == {"e1": "retracted"}


def test_what_was_retracted_stays_so_even_if_it_is_replaced_too() -> None:
    story = told(
        said("e1", "pick", "a0"),
        said("e2", "retract", replaces="e1"),
        said("e3", "pick", "b1", place="see b", replaces="e1"),
    )
    assert reasons(story) == {"e1": "retracted", "e3": None}


def test_accepting_what_was_picked_counts_once() -> None:
    both = told(said("e1", "pick", "a1"), said("e2", "accept", "a1"))
    assert reasons(both) == {"e1": None}
    assert reasons(told(said("e2", "accept", "a1"))) == {"e2": None}
    other = told(said("e1", "pick", "a1"), said("e2", "accept", "a2"))
    assert reasons(other) == {"e1": "superseded", "e2": None}
    back = told(said("e1", "pick", "a1"), said("e2", "accept", "a1"), said("e3", "retract", replaces="e1"))
    assert reasons(back) == {"e1": "retracted", "e2": None}


def test_who_picks_another_picture_afterwards_has_not_accepted_the_first() -> None:
    accepted = (said("e1", "pick", "a1"), said("e2", "accept", "a1"))
    images = {f"image a{i}" for i in range(4)}
    for last, way in (("a2", ("a2", False, "e3")), ("a1", ("a1", True, "e2"))):
        story = told(*accepted, said("e3", "pick", last))
        found = rules.way_of(story, settle(story), present=images)
        assert found is not None
        assert (found.leaf, found.accepted, found.source_event_id) == way
        assert {name for name, reason in reasons(story).items() if reason is None} == {"e3"}
    elsewhere = told(*accepted, said("e3", "pick", "b0", place="see b"))
    assert settle(elsewhere).confirming == {"e2"}


def test_an_accepted_picture_can_also_beat_the_one_it_was_made_from() -> None:
    story = told(said("e1", "pick", "b1", place="see b"), said("e2", "accept", "b1", place="see b"))
    assert {pair[3] for pair in usable(story)} == {"best_of_n"}
    assert ("b1", "a0", 1.0, "accept_vs_prev", 1.0) in usable(story, ALL)
    back = told(*story.events, said("e3", "retract", replaces="e2"))
    found = [pair for pair in derived(back, ALL) if pair.rule == "accept_vs_prev"]
    assert [pair.excluded_reason for pair in found] == ["retracted"]


PROBE = Shown("probe a", "a", ("a3", "a2", "a1", "a0"), "05", True, "see a")


def test_a_probe_makes_no_pairs_and_another_answer_spoils_the_first() -> None:
    same = told(said("e1", "pick", "a1"), said("e2", "pick", "a1", place="probe a"), shown=(PROBE,))
    assert reasons(same) == {"e1": None}
    assert settle(same).probes == {"see a": True}
    other = told(said("e1", "pick", "a1"), said("e2", "pick", "a2", place="probe a"), shown=(PROBE,))
    assert reasons(other) == {"e1": "failed_probe"}
    assert settle(other).probes == {"see a": False}
    silent = told(said("e1", "pick", "a1"), shown=(PROBE,))
    assert settle(silent).probes == {}


@pytest.mark.parametrize(("bits", "reason"), [(4, "near_duplicate"), (5, None)])
def test_pictures_that_look_the_same_teach_nothing(bits: int, reason: str | None) -> None:
    one = Candidate("a", "r", "image a", "0" * 16, "pass")
    other = Candidate("b", "r", "image b", f"{2**bits - 1:016x}", "pass")
    present = {"image a", "image b"}
    assert rules.unusable(one, other, bits=4, present=present) == reason
    twin = other._replace(image_sha256="image a", phash=None)  # the same bytes, whether or not anybody hashed them
    assert rules.unusable(one, twin, bits=4, present=present) == "near_duplicate"


def test_a_gold_probe_knows_the_answer() -> None:
    gold = Shown("gold a", "a", ("a0", "a1"), "05", True, None, "a1")
    for picked, right in (("a1", True), ("a0", False)):
        story = told(said("e1", "pick", picked, place="gold a"), shown=(gold,))
        assert settle(story).probes == {"gold a": right}
        assert derived(story) == []


@pytest.mark.parametrize(
    ("one", "other", "both_can_be_meant"),
    [
        ({"a"}, {"a"}, True),
        ({"a"}, {"b"}, False),
        ({"a"}, {"a", "b"}, True),
        (set(), set(), True),
        (set(), {"a"}, False),
    ],
)
def test_agreement(one: set[str], other: set[str], both_can_be_meant: bool) -> None:
    assert rules.agree(one, other) is both_can_be_meant


def test_trust_is_a_posterior_mean_and_never_above_what_an_operator_set() -> None:
    assert trust(0, 0) == 0.75
    assert trust(10, 10) == pytest.approx(13 / 14)
    assert trust(1, 10) == pytest.approx(4 / 14)
    assert trust(10, 10, stored=0.2) == 0.2


def test_reasons_of_people_come_first() -> None:
    story = (said("e1", "pick", "a0"), said("e2", "pick", "a1"))
    assert reasons(told(*story, consent=False)) == {"e1": "no_consent", "e2": "no_consent"}
    assert reasons(told(*story, new=True)) == {"e1": "superseded", "e2": "new_subject"}


def test_the_split_is_a_function_of_the_dialogue_with_the_shares_that_are_told() -> None:
    sides = [rules.split_of(f"dialogue {number}") for number in range(20_000)]
    assert sides.count("test") == pytest.approx(2000, abs=150)
    assert sides.count("val") == pytest.approx(2000, abs=150)
    assert rules.split_of("dialogue 7") == sides[7]


@st.composite
def stories(draw: st.DrawFn) -> Told:
    """Any sequence of events, with choices taken back and replaced at will."""
    events: list[Said] = []
    places = ["see a", "see b", "see c", "probe a"]
    for number in range(draw(st.integers(0, 12))):
        place = draw(st.sampled_from(places))
        slots = [f"{place[-1]}{i}" for i in range(4)]
        earlier = [event.event_id for event in events if event.kind != "retract"]
        kind = draw(st.sampled_from([*rules.CHOICES, "rate", *(["retract"] if earlier else [])]))
        many = {"pick": 1, "accept": 1, "rate": 1, "pair": 2, "retract": 0}.get(kind) or draw(st.integers(2, 4))
        target = () if kind == "retract" else draw(st.permutations(slots))[:many]
        replaces = draw(st.sampled_from(earlier)) if earlier and (kind == "retract" or draw(st.booleans())) else None
        events.append(said(f"e{number}", kind, *target, place=place, replaces=replaces))
    return told(*events, shown=(PROBE,))


@given(stories())
def test_laws_of_pairs(story: Told) -> None:
    found = derived(story, ALL)
    weights: dict[tuple[str, str], float] = defaultdict(float)
    for pair in found:
        weights[pair.source_event_id, pair.rule] += pair.weight
        assert pair.chosen != pair.rejected
        assert 0 < pair.weight <= 1
        assert pair.label == (0.5 if pair.rule == "tie" else 1.0)
    assert all(total == pytest.approx(1) for total in weights.values())
    assert len({pair.pair_id for pair in found}) == len(found)
    assert len({pair.split for pair in found}) <= 1

    counting = defaultdict(set)
    events = {event.event_id: event for event in story.events}
    for pair in found:
        if pair.excluded_reason is None and pair.rule != "accept_vs_prev":
            counting[events[pair.source_event_id].presentation_id].add(pair.source_event_id)
    assert all(len(names) == 1 for names in counting.values())  # one choice of a presentation counts
    taken_back = {event.supersedes for event in story.events if event.kind == "retract"}
    assert not taken_back & {name for names in counting.values() for name in names}


@given(stories())
def test_deriving_again_gives_the_same(story: Told) -> None:
    assert derived(story, ALL) == derived(story._replace(rounds=dict(reversed(story.rounds.items()))), ALL)


@given(st.lists(st.sampled_from(range(4)), min_size=2, max_size=4, unique=True))
def test_a_tie_weighs_like_one_choice(slots: list[int]) -> None:
    found = usable(told(said("e1", "tie_good", *(f"a{slot}" for slot in slots))))
    assert {frozenset(pair[:2]) for pair in found} == {frozenset(p) for p in combinations([f"a{s}" for s in slots], 2)}


@pytest.mark.parametrize("flipped", [0.0, 0.05, 0.20])
def test_probes_see_what_share_of_labels_is_flipped(flipped: float) -> None:
    """Case 19: a flip names one of the three other pictures, so two answers agree with (1 - f)² + f² / 3."""
    draw, agreed, asked = random.Random(3), 0, 4000
    for _ in range(asked):
        first, again = ("a0" if draw.random() >= flipped else draw.choice(["a1", "a2", "a3"]) for _ in range(2))
        story = told(said("e1", "pick", first), said("e2", "pick", again, place="probe a"), shown=(PROBE,))
        agreed += settle(story).probes["see a"]
    assert agreed / asked == pytest.approx((1 - flipped) ** 2 + flipped**2 / 3, abs=0.025)
