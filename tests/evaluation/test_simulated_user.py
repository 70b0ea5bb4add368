"""People on scripted pictures: each picture's content score and style are given, by round."""

from collections.abc import Callable, Sequence

import torch

from vca.diffusion.sampler import Samples
from vca.evaluation.settings import EvaluationSettings
from vca.evaluation.simulated_user import Session, lead, redraw
from vca.records import Dialogue, Turn

CONFIG = EvaluationSettings(taste="fluent", max_rounds=6)


def dialogue(*, style: str | None = None, number: int = 0) -> Dialogue:
    turns = (
        ("", "firefighter, dark skin", "initial"),
        ("make it a woman", "woman firefighter, dark skin", "gender"),
        ("make the skin light", "woman firefighter, light skin", "skin_tone"),
    )
    return Dialogue(
        dialogue_id=f"d{number}",
        source="test",
        theme="people",
        style=style,
        initial_prompt="firefighter, dark skin",
        intent="woman firefighter, light skin",
        turns=tuple(
            Turn(round=n, feedback=said, refined_prompt=prompt, operation=kind)
            for n, (said, prompt, kind) in enumerate(turns, 1)
        ),
    )


class Studio:
    """Pictures whose value tells which round they are of; keeps what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[dict] = []

    def paint(self, *, prompts: Sequence[str], keys, previous_BCHW=None, strengths=None) -> Samples:
        number = float(len(self.asked) + 1)
        self.asked.append({"prompts": prompts, "keys": keys, "previous": previous_BCHW, "strengths": strengths})
        images = torch.full((len(prompts), 3, 4, 4), number)
        return Samples(latents_BCHW=images[:, :1], images_BCHW=images)


def play(
    script: Callable[[int], tuple[float, str]], *dialogues: Dialogue, studio: Studio | None = None
) -> list[Session]:
    """script: round → content score and style."""

    def appraise(intents: list[str], images: torch.Tensor) -> tuple[list[float], list[str]]:
        seen = [script(int(image.mean())) for image in images]
        return [content for content, _ in seen], [style for _, style in seen]

    studio = studio or Studio()
    return lead(dialogues, paint=studio.paint, appraise=appraise, threshold=0.5, config=CONFIG)


def words(session: Session) -> list[str]:
    return [shown.feedback for shown in session.shown]


def test_accepts_at_once_what_is_right_and_drawn_as_liked() -> None:
    (session,) = play(lambda number: (0.8, "fluent"), dialogue())
    assert (session.satisfied, session.rounds(cap=6), words(session)) == (True, 1, [""])


def test_says_the_edits_in_order_then_the_style_then_asks_for_another_try() -> None:
    (session,) = play(lambda number: (0.1, "noto"), dialogue())
    assert words(session) == [
        "",
        "make it a woman",
        "make the skin light",
        "draw it in fluent style",
        "try again",
        "try again",
    ]
    assert [shown.prompt for shown in session.shown][-3:] == ["woman firefighter, light skin, fluent style"] * 3
    assert not session.satisfied


def test_who_gives_up_counts_with_the_cap() -> None:
    never, late = play(lambda number: (0.1, "noto"), dialogue(), dialogue(number=1))
    assert never.rounds(cap=6) == 6
    late.satisfied = True
    late.shown = late.shown[:4]
    assert late.rounds(cap=6) == 4


def test_right_content_in_another_style_brings_words_about_the_style_only() -> None:
    (session,) = play(lambda number: (0.8, "fluent" if number > 1 else "twemoji"), dialogue())
    assert words(session) == ["", "draw it in fluent style"]
    assert session.satisfied


def test_liked_style_without_the_content_is_not_enough() -> None:
    (session,) = play(lambda number: (0.8 if number == 3 else 0.1, "fluent"), dialogue())
    assert words(session) == ["", "make it a woman", "make the skin light"]
    assert session.satisfied


def test_a_style_that_the_intent_names_counts_instead_of_the_taste() -> None:
    (session,) = play(lambda number: (0.8, "noto"), dialogue(style="noto"))
    assert session.rounds(cap=6) == 1
    (session,) = play(lambda number: (0.8, "fluent"), dialogue(style="noto"))
    assert words(session)[1] == "draw it in noto style"


def test_edits_redraw_the_last_picture_and_another_try_starts_from_noise() -> None:
    studio = Studio()
    play(lambda number: (0.1, "noto"), dialogue(), studio=studio)
    strengths = [ask["strengths"][0] for ask in studio.asked]
    assert strengths[0] is None
    assert [s is None for s in strengths[1:]] == [False, False, False, True, True]
    assert strengths[1:4] == [redraw("d0", number, config=CONFIG) for number in (2, 3, 4)]
    assert studio.asked[2]["previous"].mean() == 2  # round 3 continues round 2's latent


def test_only_those_who_are_not_satisfied_go_on_and_noise_is_named_by_dialogue_and_round() -> None:
    studio = Studio()
    first, second = dialogue(), dialogue(style="noto", number=1)
    sessions = play(lambda number: (0.8, "fluent" if number == 1 else "noto"), first, second, studio=studio)
    assert [session.rounds(cap=6) for session in sessions] == [1, 2]
    assert [list(ask["keys"]) for ask in studio.asked] == [["d0 round 1", "d1 round 1"], ["d1 round 2"]]


def test_strength_falls_by_round_to_its_floor() -> None:
    shares = [[redraw(f"d{n}", number, config=CONFIG) for n in range(200)] for number in (2, 3, 12)]
    assert min(shares[0]) >= CONFIG.strength_low
    assert CONFIG.strength_high * CONFIG.strength_decay < max(shares[0]) <= CONFIG.strength_high
    assert max(shares[1]) <= CONFIG.strength_high * CONFIG.strength_decay
    assert set(shares[2]) == {CONFIG.strength_floor}
