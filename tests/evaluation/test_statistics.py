import numpy as np
import pytest

from vca.evaluation.statistics import compare, compare_statistic, excludes_zero


def test_a_constant_gain_has_an_exact_interval() -> None:
    base = np.random.default_rng(0).normal(size=50)
    found = compare(base_N=base, trained_N=base + 0.25, seed=0, resamples=200)
    assert found["delta"] == pytest.approx({"value": 0.25, "low": 0.25, "high": 0.25})
    assert found["base"]["value"] == pytest.approx(base.mean())
    assert found["trained"]["value"] == pytest.approx(base.mean() + 0.25)


def test_pairing_takes_the_difference_between_prompts_out() -> None:
    rng = np.random.default_rng(1)
    base = rng.normal(scale=10, size=200)
    found = compare(base_N=base, trained_N=base + rng.normal(0.5, 0.5, size=200), seed=0, resamples=500)
    assert found["delta"]["high"] - found["delta"]["low"] < 0.2 < 2 < found["base"]["high"] - found["base"]["low"]
    assert excludes_zero(found["delta"])


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(2)
    covered = 0
    for seed in range(300):
        base = rng.normal(size=60)
        trained = base + rng.normal(0.3, 1.0, size=60)
        delta = compare(base_N=base, trained_N=trained, seed=seed, resamples=400, confidence=0.9)["delta"]
        covered += delta["low"] <= 0.3 <= delta["high"]
    assert 0.84 <= covered / 300 <= 0.94  # 90 % ± 3.5 standard errors, and the percentile method is a little short


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.random.default_rng(3).normal(size=(2, 30))
    first, second, other = (
        compare(base_N=values[0], trained_N=values[1], seed=seed, resamples=300) for seed in (7, 7, 8)
    )
    assert first == second != other


def test_any_number_of_resamples_is_used_in_full() -> None:
    seen = []

    def statistic(rows):
        seen.append(len(rows))
        return rows.mean(1), rows.mean(1)

    compare_statistic(statistic, size=5, seed=0, resamples=1234)
    assert sum(seen) == 1234 + 1


def test_unpaired_values_are_refused() -> None:
    with pytest.raises(ValueError, match="paired"):
        compare(base_N=np.zeros(3), trained_N=np.zeros(4), seed=0, resamples=100)


@pytest.mark.parametrize(("low", "high", "answer"), [(0.1, 0.2, True), (-0.2, -0.1, True), (-0.1, 0.1, False)])
def test_zero_is_excluded_on_either_side(low: float, high: float, answer: bool) -> None:
    assert excludes_zero({"value": 0.0, "low": low, "high": high}) is answer
