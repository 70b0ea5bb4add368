"""Splits and roles are functions of keys alone."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from vca.data.splits import group_of, keys_of, role_of, side_of, unit
from vca.records import Dialogue, Picture, PreferencePair, Turn

FRACTIONS = {"test_fraction": 0.2, "reward": 0.38, "diffusion": 0.17, "validation": 0.05}


@given(keys=st.lists(st.text(), min_size=1, max_size=5), seed=st.integers(0, 5), shuffle=st.randoms())
def test_a_side_needs_every_key(keys: list[str], seed: int, shuffle: random.Random) -> None:
    sides = {side_of([key], test_fraction=0.4, seed=seed) for key in keys}
    mixed = list(keys)
    shuffle.shuffle(mixed)
    expected = sides.pop() if len(sides) == 1 else None
    assert side_of(mixed, test_fraction=0.4, seed=seed) == expected


def test_fractions_are_of_the_whole() -> None:
    roles: Counter[str] = Counter()
    for number in range(20_000):
        split = side_of([f"d{number}"], test_fraction=0.2, seed=0)
        assert split is not None
        roles[role_of(f"d{number}", split=split, seed=0, **FRACTIONS)] += 1
    expected = {"test": 0.2, "reward": 0.38, "diffusion": 0.17, "validation": 0.05, "unused": 0.2}
    for role, share in expected.items():
        assert abs(roles[role] / 20_000 - share) < 0.012, role


def test_role_and_split_are_independent_draws() -> None:
    low = [number for number in range(5000) if unit(f"d{number}", salt="split0") < 0.5]
    share = sum(unit(f"d{number}", salt="role0") < 0.5 for number in low) / len(low)
    assert abs(share - 0.5) < 0.05


def test_another_seed_is_another_split() -> None:
    sides = [[side_of([f"k{n}"], test_fraction=0.5, seed=seed) for n in range(200)] for seed in (0, 1)]
    assert 60 < sum(a == b for a, b in zip(*sides, strict=True)) < 140


def test_dialogues_of_a_group_share_side_and_role() -> None:
    assert group_of("deepfashion/id_1#02") == group_of("deepfashion/id_1#01") == "deepfashion/id_1"
    roles = {role_of(f"item#{number}", split="train", seed=0, **FRACTIONS) for number in range(50)}
    assert len(roles) == 1


def test_keys_are_the_dialogues_and_the_pictures() -> None:
    a, b = (Picture(data=b"x", uri=name, key=f"key {name}") for name in "ab")
    turns = (
        Turn(round=1, feedback="", refined_prompt="p", operation="initial", image=a),
        Turn(round=2, feedback="f", refined_prompt="q", operation="edit", target=b),
    )
    dialogue = Dialogue(
        dialogue_id="d#1", source="s", theme="", style=None, initial_prompt="p", intent="q", turns=turns
    )
    assert keys_of(dialogue) == {"d", "key a", "key b"}
    fields = {"prompt": "p", "positive": a, "negative": b, "source": "s", "kind": "k", "negative_kind": "human"}
    assert keys_of(PreferencePair(pair_id="p1", **fields)) == {"p1", "key a", "key b"}
    assert keys_of(PreferencePair(pair_id="p1", dialogue_id="d#1", **fields)) == {"d", "key a", "key b"}
