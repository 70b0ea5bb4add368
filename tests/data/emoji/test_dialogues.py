"""Simulated dialogues: told truly, without repeats, evenly over the kinds of edits, the same for the same seed."""

from __future__ import annotations

from collections import Counter

import pytest
from scipy.stats import binom

from vca.data.emoji.catalogue import load_catalogue
from vca.data.emoji.dialogues import MAX_EDITS, MIN_EDITS, dialogues
from vca.data.emoji.source import sides
from vca.records import Dialogue
from vca.refine.rules import refine_rules

COUNT = 400


def drawn(seed: int = 0, count: int = COUNT, style_open: float = 0.6) -> list[Dialogue]:
    items = sides(load_catalogue())[0]
    return list(dialogues(items=items, count=count, role="diffusion", style_open=style_open, seed=seed, source="emoji"))


@pytest.fixture(scope="module")
def found() -> list[Dialogue]:
    return drawn()


def test_an_intent_is_reached_in_three_to_eight_edits_without_a_repeat(found: list[Dialogue]) -> None:
    assert len(found) == COUNT
    assert {len(d.turns) - 1 for d in found} == set(range(MIN_EDITS, MAX_EDITS + 1))
    for dialogue in found:
        pictures = [turn.target.sha256 for turn in dialogue.turns if turn.target]
        assert len(set(pictures)) == len(dialogue.turns)
        assert len({turn.refined_prompt for turn in dialogue.turns}) == len(dialogue.turns)
        assert dialogue.initial_prompt == dialogue.turns[0].refined_prompt
        assert dialogue.intent == dialogue.turns[-1].refined_prompt
        assert (dialogue.turns[0].feedback, dialogue.turns[0].operation) == ("", "initial")
        assert [turn.round for turn in dialogue.turns] == list(range(1, len(dialogue.turns) + 1))


def test_dialogues_are_distinct(found: list[Dialogue]) -> None:
    walks = {(d.style is None, *(t.target.uri for t in d.turns if t.target)) for d in found}
    assert len(walks) == len({d.dialogue_id for d in found}) == COUNT


def test_style_is_named_throughout_or_left_open_throughout(found: list[Dialogue]) -> None:
    by_uri = {f"emoji-dialog:{item.item_id}": item for item in load_catalogue().items}
    for dialogue in found:
        named = [" style" in turn.refined_prompt for turn in dialogue.turns]
        assert all(named) if dialogue.style else not any(named)
        if dialogue.style is None:
            assert "style" not in {turn.operation for turn in dialogue.turns}
            assert len({by_uri[turn.target.uri].style for turn in dialogue.turns if turn.target}) == 1
    # shorter walks are rejected a little more often when the style is open, so the share is a bit off
    assert 0.5 < sum(d.style is None for d in found) / COUNT < 0.7


def test_targets_of_style_open_dialogues_carry_no_taste() -> None:
    """A term that imitates targets must not be able to learn the style that people prefer."""
    found = drawn(count=600, style_open=1.0)
    styles = Counter(d.turns[0].target.uri.split(":")[1].split("/")[0] for d in found if d.turns[0].target)
    low, high = binom.interval(0.9999, 600, 1 / 3)
    assert all(low <= styles[style] <= high for style in ("noto", "twemoji", "fluent")), styles


def test_kinds_of_edits_are_balanced(found: list[Dialogue]) -> None:
    used = Counter(turn.operation for d in found for turn in d.turns[1:])
    used["expression"] += used.pop("species")
    even = sum(used.values()) / len(used)
    assert len(used) == 8
    assert all(0.4 * even < count < 2 * even for count in used.values()), used
    assert max(Counter(d.theme for d in found).values()) < 0.7 * COUNT
    assert len({d.theme for d in found}) >= 6


def test_the_rules_follow_the_words_from_start_to_intent(found: list[Dialogue]) -> None:
    reached = 0
    for dialogue in found:
        prompt = dialogue.initial_prompt
        for turn in dialogue.turns[1:]:
            prompt = refine_rules(prompt=prompt, feedback=turn.feedback).prompt
        reached += prompt == dialogue.intent
    assert reached >= 0.99 * COUNT


def test_the_seed_decides(found: list[Dialogue]) -> None:
    assert drawn() == found
    assert drawn(seed=1) != found


def test_dialogues_stream() -> None:
    """The first one comes without the others being drawn."""
    items = sides(load_catalogue())[0]
    stream = dialogues(items=items, count=10**9, role="diffusion", style_open=0.5, seed=0, source="emoji")
    assert next(stream).dialogue_id == "emoji-diffusion-00001"
