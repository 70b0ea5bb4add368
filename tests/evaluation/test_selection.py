import numpy as np
import pytest
import torch

from vca.evaluation.selection import top_three_of, win_rates
from vca.evaluation.simulated_user import Session, Shown
from vca.records import Dialogue


def session(*pictures: tuple[float, str], wanted: str | None = "fluent") -> Session:
    dialogue = Dialogue(
        dialogue_id="d", source="test", theme="", style=None, initial_prompt="cat", intent="cat", turns=()
    )
    shown = [
        Shown(feedback="", prompt="cat", image_CHW=torch.zeros(3, 1, 1), content=content, style=style)
        for content, style in pictures
    ]
    return Session(dialogue=dialogue, wanted_style=wanted, shown=shown, satisfied=True)


def test_a_selector_that_knows_the_judge_beats_chance_and_ties_with_the_best() -> None:
    judge = np.random.default_rng(0).normal(size=(200, 12))
    found = top_three_of(12, reward_PN=judge * 3 + 1, judge_PN=judge, rng=np.random.default_rng(1))
    assert found["best"] == {"win": 0, "tie": 1, "lose": 0}
    assert found["random"]["win"] > 0.9


def test_a_blind_selector_is_no_better_than_chance() -> None:
    rng = np.random.default_rng(2)
    judge, blind = rng.normal(size=(2, 600, 12))
    found = top_three_of(12, reward_PN=blind, judge_PN=judge, rng=rng)
    assert found["random"]["win"] == pytest.approx(found["random"]["lose"], abs=0.1)
    assert found["best"]["lose"] > 0.9


def test_only_the_first_n_pictures_count() -> None:
    judge = np.zeros((20, 8))
    judge[:, :4] = np.random.default_rng(3).normal(size=(20, 4))
    reward = np.where(np.arange(8) >= 4, 100.0, judge)
    assert top_three_of(4, reward_PN=reward, judge_PN=judge, rng=np.random.default_rng(4))["best"]["tie"] == 1


def test_the_liked_style_decides_first_then_the_content() -> None:
    base = [session((0.9, "noto")), session((0.9, "fluent")), session((0.1, "noto"))]
    trained = [session((0.1, "fluent")), session((0.1, "fluent")), session((0.1, "noto"))]
    assert win_rates(base=base, trained=trained, rounds=1) == [
        pytest.approx({"win": 1 / 3, "tie": 1 / 3, "lose": 1 / 3})
    ]


def test_who_has_accepted_keeps_that_picture() -> None:
    base = [session((0.1, "fluent"), (0.2, "fluent"), (0.9, "fluent"))]
    trained = [session((0.5, "fluent"))]
    assert [rates["win"] for rates in win_rates(base=base, trained=trained, rounds=4)] == [1, 1, 0, 0]


def test_without_a_liked_style_only_the_content_counts() -> None:
    base, trained = [session((0.9, "noto"), wanted=None)], [session((0.1, "fluent"), wanted=None)]
    assert win_rates(base=base, trained=trained, rounds=1)[0]["lose"] == 1
