import numpy as np
import pytest

from vca.evaluation.metrics import at_equal_style, retrieval_ranks, top_three, verdict


def test_ranks_count_the_prompts_that_fit_better() -> None:
    similarity = np.array([[0.9, 0.1, 0.2], [0.8, 0.5, 0.6], [0.1, 0.3, 0.3]])
    assert retrieval_ranks(similarity_NN=similarity).tolist() == [0, 2, 0]


def test_a_judge_that_likes_a_style_does_not_move_the_figure_at_equal_style() -> None:
    base_style = np.array([0] * 50 + [1] * 50)
    trained_style = np.array([0] * 80 + [1] * 20)
    liking = np.array([0.7, 0.5])
    found = at_equal_style(
        base_N=liking[base_style],
        trained_N=liking[trained_style],
        base_style_N=base_style,
        trained_style_N=trained_style,
        styles=2,
        seed=0,
        resamples=300,
    )
    assert liking[trained_style].mean() - liking[base_style].mean() == pytest.approx(0.06)  # what the raw figure says
    assert found["delta"]["value"] == pytest.approx(0, abs=1e-12)
    assert found["base"]["value"] == pytest.approx(0.6)


def test_a_real_loss_stays_at_equal_style() -> None:
    style = np.array([0, 1] * 40)
    base = np.full(80, 0.6)
    found = at_equal_style(
        base_N=base, trained_N=base - 0.1, base_style_N=style, trained_style_N=style, styles=3, seed=0, resamples=200
    )
    assert found["delta"] == pytest.approx({"value": -0.1, "low": -0.1, "high": -0.1})


def test_a_style_that_one_policy_never_draws_carries_no_weight() -> None:
    found = at_equal_style(
        base_N=np.array([0.2, 0.2, 0.8, 0.8]),
        trained_N=np.array([0.9, 0.9, 0.9, 0.9]),
        base_style_N=np.array([0, 0, 1, 1]),
        trained_style_N=np.array([1, 1, 1, 1]),
        styles=2,
        seed=0,
        resamples=100,
    )
    assert found["base"]["value"] == pytest.approx(0.8)
    assert found["trained"]["value"] == pytest.approx(0.9)


def test_top_three_are_the_best_and_ties_keep_their_order() -> None:
    assert top_three(np.array([0.1, 0.9, 0.5, 0.9, 0.2])) == [1, 3, 2]


@pytest.mark.parametrize(("ours", "theirs", "answer"), [(0.5, 0.4, "win"), (0.4, 0.5, "lose"), (0.5, 0.46, "tie")])
def test_small_differences_are_ties(ours: float, theirs: float, answer: str) -> None:
    assert verdict(ours=ours, theirs=theirs, tie=0.05) == answer
