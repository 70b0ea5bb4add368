from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from pydantic import ValidationError
from stores import begun, drawn, new_id, shown

from vca.feedback import dialogues, sharing
from vca.feedback.dialogues import LOCKED_STEPS, RoundRequest, Words
from vca.feedback.errors import Conflict, NotFound, Unacceptable
from vca.feedback.store import Person, Store


def request(parent: str | None = None, **fields: Any) -> RoundRequest:
    given = {"round_id": new_id(), "words": Words(prompt="blue heart"), "parent_round_id": parent, **fields}
    return RoundRequest.model_validate(given)


def test_somebody_elses_dialogue_does_not_exist(store: Store) -> None:
    ann, bob = store.person("ann"), store.person("bob")
    dialogue_id, round_id = begun(store, ann)
    calls = [
        lambda: dialogues.tree(store, bob, dialogue_id),
        lambda: dialogues.go_to(store, bob, dialogue_id=dialogue_id, round_id=round_id),
        lambda: dialogues.ask(store, bob, dialogue_id=dialogue_id, request=request(round_id)),
        lambda: dialogues.dialogue_of(store, bob, round_id),
        lambda: dialogues.begin(store, bob, dialogue_id=dialogue_id, first=request()),
        lambda: sharing.share(store, bob, dialogue_id=dialogue_id, days=1),
        lambda: sharing.revoke(store, bob, dialogue_id=dialogue_id),
    ]
    for call in calls:
        with pytest.raises(NotFound):
            call()
    assert dialogues.listed(store, bob) == []
    assert [one.prompt for one in dialogues.listed(store, ann)] == ["red heart"]


def test_a_round_goes_on_from_a_picture_of_its_parent_only(store: Store) -> None:
    ann = store.person("ann")
    seen, other = shown(store, ann), shown(store, ann)
    dialogue_id = dialogues.dialogue_of(store, ann, seen.round_id)

    for parent, picture, error in (
        (seen.round_id, other.slots[0], NotFound),
        (other.round_id, other.slots[0], NotFound),
        (None, None, Unacceptable),
    ):
        asked = request(parent, parent_candidate_id=picture)
        with pytest.raises(error):
            dialogues.ask(store, ann, dialogue_id=dialogue_id, request=asked)
    assert len(dialogues.tree(store, ann, dialogue_id).rounds) == 1


def test_a_picture_that_is_not_there_yet_is_nothing_to_go_on_from(store: Store) -> None:
    ann = store.person("ann")
    dialogue_id, round_id = begun(store, ann)
    waiting = dialogues.tree(store, ann, dialogue_id).rounds[0].candidates[0].candidate_id
    with pytest.raises(Unacceptable, match="waiting"):
        dialogues.ask(
            store, ann, dialogue_id=dialogue_id, request=request(round_id, parent_candidate_id=waiting, strength=0.5)
        )


def test_seeds_follow_each_other_unless_the_look_is_locked(store: Store) -> None:
    ann = store.person("ann")
    seen = shown(store, ann)
    dialogue_id = dialogues.dialogue_of(store, ann, seen.round_id)
    for locked in (False, True):
        asked = request(seen.round_id, parent_candidate_id=seen.slots[0], strength=0.9, locked=locked)
        dialogues.ask(store, ann, dialogue_id=dialogue_id, request=asked)

    first, fresh, locked_round = dialogues.tree(store, ann, dialogue_id).rounds

    for one in (first, fresh):
        seeds = [candidate.seed for candidate in one.candidates]
        assert seeds == list(range(seeds[0], seeds[0] + 4))
    parent = next(one for one in first.candidates if one.candidate_id == seen.slots[0])
    assert {one.seed for one in locked_round.candidates} == {parent.seed}
    assert [one.strength for one in locked_round.candidates] == [min(1.0, 0.9 * step) for step in LOCKED_STEPS]
    assert [one.strength for one in fresh.candidates] == [0.9] * 4


@pytest.mark.parametrize(
    "fields",
    [
        {"strength": 0.5},
        {"locked": True},
        {"parent_candidate_id": new_id()},
        {"pictures": 5},
        {"strength": float("nan"), "parent_candidate_id": new_id(), "parent_round_id": new_id()},
        {"words": {"prompt": " "}},
        {"words": {"prompt": "x" * 4001}},
        {"words": {"prompt": "x", "keep": ["y" * 201]}},
    ],
)
def test_requests_that_make_no_sense(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        request(**fields)


class Trees(RuleBasedStateMachine):
    """Whatever people do with a dialogue, in any order and repeated: nothing is lost, and the tree stays a tree."""

    rounds = Bundle("rounds")
    store: Store
    person: Person

    @initialize(target=rounds)
    def begin(self) -> str:
        self.dialogue_id, first = begun(self.store, self.person)
        drawn(self.store)
        self.parents: dict[str, str | None] = {first: None}
        self.sent: dict[str, RoundRequest] = {}
        self.head = first
        return first

    @rule(target=rounds, parent=rounds, pick=st.integers(0, 3) | st.none())
    def ask(self, parent: str, pick: int | None) -> str:
        fields: dict[str, Any] = {}
        if pick is not None:
            candidates = self._tree().round(parent).candidates
            fields = {"parent_candidate_id": candidates[pick].candidate_id, "strength": 0.5}
        asked = request(parent, **fields)
        assert dialogues.ask(self.store, self.person, dialogue_id=self.dialogue_id, request=asked)
        drawn(self.store)
        self.parents[asked.round_id], self.sent[asked.round_id], self.head = parent, asked, asked.round_id
        return asked.round_id

    @rule(again=rounds)
    def repeat(self, again: str) -> None:
        if again in self.sent:
            asked = self.sent[again]
            assert not dialogues.ask(self.store, self.person, dialogue_id=self.dialogue_id, request=asked)
            other = asked.model_copy(update={"words": Words(prompt="green heart")})
            with pytest.raises(Conflict):
                dialogues.ask(self.store, self.person, dialogue_id=self.dialogue_id, request=other)

    @rule(to=rounds)
    def go(self, to: str) -> None:
        dialogues.go_to(self.store, self.person, dialogue_id=self.dialogue_id, round_id=to)
        self.head = to

    @invariant()
    def holds(self) -> None:
        if not hasattr(self, "parents"):
            return
        tree = self._tree()
        assert {one.round_id: one.parent_round_id for one in tree.rounds} == self.parents
        assert tree.head_round_id == self.head
        path = tree.path(self.head)
        assert [one.depth for one in path] == list(range(1, len(path) + 1))

    def _tree(self) -> dialogues.Tree:
        return dialogues.tree(self.store, self.person, self.dialogue_id)


def test_any_order_of_steps(store: Store) -> None:
    machine = type("Bound", (Trees,), {"store": store, "person": store.person("ann")})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=12, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
