"""The memory of dialogues: what comes before a round, what replaces what, what is forgotten first."""

from __future__ import annotations

import pytest
import torch

from serving.dialogues import Dialogues, Round
from serving.refusal import Refused


def drawn(prompt: str) -> Round:
    """A round of about 4 000 bytes."""
    return Round(feedback="", prompt=prompt, latents=[torch.zeros(1000)])


def prompts(dialogues: Dialogues, name: str, number: int | None = None) -> list[str]:
    return [done.prompt for done in dialogues.before(name, number)]


def test_a_round_that_is_drawn_again_replaces_those_after_it() -> None:
    dialogues = Dialogues(limit=1_000_000)
    name = dialogues.add(drawn("1"), after=[], dialogue_id=None)
    for prompt in ("2", "3"):
        assert dialogues.add(drawn(prompt), after=dialogues.before(name, None), dialogue_id=name) == name
    assert prompts(dialogues, name) == ["1", "2", "3"]
    assert prompts(dialogues, name, 3) == ["1", "2"]
    assert prompts(dialogues, name, 2) == ["1"]
    dialogues.add(drawn("other 2"), after=dialogues.before(name, 2), dialogue_id=name)
    assert prompts(dialogues, name) == ["1", "other 2"]
    for number in (1, 4):
        with pytest.raises(Refused, match="goes on with round 2 to 3"):
            dialogues.before(name, number)


def test_the_dialogue_not_used_for_longest_is_forgotten_first() -> None:
    dialogues = Dialogues(limit=12_500)
    names = [dialogues.add(drawn("1"), after=[], dialogue_id=None) for _ in range(3)]
    dialogues.before(names[0], None)
    names.append(dialogues.add(drawn("1"), after=[], dialogue_id=None))
    with pytest.raises(Refused, match="unknown dialogue"):
        dialogues.before(names[1], None)
    assert [prompts(dialogues, name) for name in (names[0], names[2], names[3])] == [["1"]] * 3


def test_a_round_that_is_drawn_again_takes_no_more_memory() -> None:
    dialogues = Dialogues(limit=12_500)
    other = dialogues.add(drawn("1"), after=[], dialogue_id=None)
    name = dialogues.add(drawn("1"), after=[], dialogue_id=None)
    first = dialogues.before(name, None)
    for _ in range(10):
        dialogues.add(drawn("2"), after=first, dialogue_id=name)
    assert prompts(dialogues, other) == ["1"]


def test_the_only_dialogue_stays_however_large_it_is() -> None:
    dialogues = Dialogues(limit=1)
    name = dialogues.add(drawn("1"), after=[], dialogue_id=None)
    assert prompts(dialogues, name) == ["1"]
