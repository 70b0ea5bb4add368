"""Filters, and pairs made from dialogues."""

from __future__ import annotations

import pytest
from data_layouts import image_bytes

from vca.data.filters import StyleFilter, unclear
from vca.data.images import Stored
from vca.data.negatives import POOL, NegativeMaker, contradicts, words_of
from vca.data.settings import NegativeKind
from vca.records import Dialogue, Picture, Turn

ALL: tuple[NegativeKind, ...] = ("edited_prompt", "opposite_prompt", "mismatch")


@pytest.mark.parametrize(
    ("prompt", "excessive"),
    [
        ("a cat, highly detailed, digital painting, artstation", False),  # three
        ("a cat, highly detailed, digital painting, artstation, 8 k", True),
        ("a cat, detailed, detailed, detailed, detailed", False),  # one, four times
        ("a boat on a smoothed lake, detailedly drawn", False),
        ("Octane Render, Unreal Engine, CINEMATIC, masterpiece", True),
    ],
)
def test_four_different_style_words_are_too_many(prompt: str, excessive: bool) -> None:
    assert StyleFilter(limit=4).excessive(prompt) is excessive


def test_pictures_must_be_large_and_sharp() -> None:
    def judged(side: int, sharpness: float) -> str | None:
        stored = Stored(data=b"", width=99, height=99, source_side=side, sharpness=sharpness)
        return unclear(stored, min_side=64, min_sharpness=20)

    assert judged(63, 100) == "small_image"
    assert judged(64, 19.9) == "unclear_image"
    assert judged(64, 20) is None


def test_opposites_need_a_word_against_a_word() -> None:
    assert contradicts(words_of("a black dress"), words_of("a White skirt"))
    assert not contradicts(words_of("a black dress"), words_of("a black and white skirt"))
    assert not contradicts(words_of("a black and white dress"), words_of("a white skirt"))
    assert not contradicts(words_of("a black dress"), words_of("a whitewashed wall"))


def talk(number: int, *prompts: str, split: str = "train", role: str = "reward", source: str = "s") -> Dialogue:
    turns = tuple(
        Turn(
            round=k,
            feedback="",
            refined_prompt=prompt,
            operation="edit",
            target=Picture(data=image_bytes(100 * number + k), uri=f"{split}/{role}/{number}/{k}", key=f"k{number}"),
        )
        for k, prompt in enumerate(prompts, start=1)
    )
    return Dialogue(
        dialogue_id=f"d{number}",
        source=source,
        theme="",
        style=None,
        initial_prompt=prompts[0],
        intent=prompts[-1],
        turns=turns,
        split=split,  # type: ignore[arg-type]
        role=role,  # type: ignore[arg-type]
    )


def test_each_kind_of_negative_is_what_it_says() -> None:
    maker = NegativeMaker(seed=0)
    first = {
        pair.negative_kind: pair for pair in maker.pairs(talk(1, "a white boat", "a white boat at sea"), kinds=ALL)
    }
    assert set(first) == {"edited_prompt"}  # there is no other dialogue yet
    assert first["edited_prompt"].prompt == "a white boat at sea"
    assert first["edited_prompt"].positive.uri.endswith("1/2")
    assert first["edited_prompt"].negative.uri.endswith("1/1")

    second = {pair.negative_kind: pair for pair in maker.pairs(talk(2, "a black boat"), kinds=ALL)}
    assert set(second) == {"opposite_prompt", "mismatch"}
    assert all(pair.negative.key == "k1" and pair.positive.key == "k2" for pair in second.values())


def test_negatives_stay_on_their_side_and_in_their_role() -> None:
    maker = NegativeMaker(seed=0)
    places = [("train", "reward"), ("train", "validation"), ("test", "test")]
    for number in range(60):
        split, role = places[number % 3]
        for pair in maker.pairs(talk(number, "a boat", split=split, role=role), kinds=("mismatch",)):
            assert pair.negative.uri.startswith(f"{split}/{role}/")
            assert (pair.split, pair.role) == (split, role)


def test_the_pool_is_bounded_and_spreads_the_negatives() -> None:
    maker = NegativeMaker(seed=0)
    uris = [
        pair.negative.uri
        for number in range(3 * POOL)
        for pair in maker.pairs(talk(number, "a boat"), kinds=("mismatch",))
    ]
    assert len(maker._pools["s", "train", "reward"]) == POOL
    assert len(set(uris)) > 0.5 * len(uris)
