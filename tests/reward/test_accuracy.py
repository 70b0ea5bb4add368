from dataclasses import dataclass

import pytest
from scipy.stats import binomtest

from vca.reward import accuracy as module
from vca.reward.accuracy import accuracy, mean, wilson


@dataclass(frozen=True)
class P:
    kind: str
    negative_kind: str
    source: str = "s"
    label: float = 1.0


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (1, 1), (7, 10), (50, 100), (999, 1000)])
def test_wilson_equals_scipy(successes: int, n: int) -> None:
    theirs = binomtest(successes, n).proportion_ci(0.95, method="wilson")
    ours = wilson(successes=successes, n=n)
    assert ours["value"] == successes / n
    assert ours["low"] == pytest.approx(theirs.low, abs=1e-12)
    assert ours["high"] == pytest.approx(theirs.high, abs=1e-12)
    assert ours["n"] == n


def test_a_mean_of_one_is_itself_and_of_many_is_narrower() -> None:
    one = wilson(successes=70, n=100)
    assert mean([one]) == pytest.approx(one)
    four = mean([one] * 4)
    assert four["value"] == pytest.approx(0.7)
    assert four["value"] - four["low"] == pytest.approx((one["value"] - one["low"]) / 2)
    assert four["n"] == 400


def test_ties_of_the_score_count_half_and_ties_of_people_not_at_all() -> None:
    pairs = [P("colour", "edited_prompt")] * 3 + [P("colour", "edited_prompt", label=0.5)]
    result = accuracy(pairs, r_w=[1, 1, 0, 0], r_l=[0, 1, 1, 9])["accuracy"]
    assert result["colour"]["value"] == 0.5
    assert result["colour"]["n"] == 3


def test_overall_is_half_random_and_half_the_mean_of_the_edit_kinds() -> None:
    pairs = [P("hair", "edited_prompt")] * 4 + [P("role", "edited_prompt")] * 2 + [P("random", "mismatch")] * 2
    pairs += [P("taste", "taste")] * 2
    r_w = [1, 1, 1, 0, 1, 0, 1, 1, 0, 0]
    result = accuracy(pairs, r_w=r_w, r_l=[0.5] * 10)["accuracy"]
    assert result["hair"]["value"] == 0.75
    assert result["role"]["value"] == 0.5
    assert result["edited"]["value"] == pytest.approx(0.625)
    assert result["overall"]["value"] == pytest.approx((1.0 + 0.625) / 2)
    assert result["taste"]["value"] == 0.0


def test_without_random_or_edited_pairs_overall_is_all_pairs() -> None:
    pairs = [P("lower", "lower_score")] * 3 + [P("human", "human")]
    result = accuracy(pairs, r_w=[1, 1, 0, 1], r_l=[0, 0, 1, 0])["accuracy"]
    assert result["overall"] == wilson(successes=3, n=4)
    assert "edited" not in result


def test_sources_and_negative_kinds_are_told_apart() -> None:
    pairs = [P("a", "human", source="x"), P("a", "taste", source="y")]
    result = accuracy(pairs, r_w=[1, 0], r_l=[0, 1])
    assert {name: i["value"] for name, i in result["by_source"].items()} == {"x": 1.0, "y": 0.0}
    assert {name: i["value"] for name, i in result["by_negative_kind"].items()} == {"human": 1.0, "taste": 0.0}
    assert module.EASY == "mismatch"
