import numpy as np

from vca.evaluation.panel import Verdicts
from vca.evaluation.scale import candidates, choose


def verdicts(content: float, taste: float, reward: float = 0.0) -> Verdicts:
    liked = np.arange(100) < 100 * taste
    return Verdicts(
        content_N=np.full(100, content),
        rank_N=np.zeros(100, int),
        style_N=np.where(liked, 2, 0),
        reward_N=np.full(100, reward),
    )


def chosen(by_scale: dict[float, Verdicts], *, taste: int | None = 2, tolerance: float = 0.03) -> float:
    scales = [scale for scale in by_scale if scale]
    return choose(candidates(scales, verdicts=by_scale.__getitem__, taste=taste, tolerance=tolerance))


def test_the_largest_taste_share_within_the_tolerance_wins() -> None:
    seen = {0.0: verdicts(0.6, 0.3), 0.35: verdicts(0.595, 0.5), 0.7: verdicts(0.585, 0.6), 1.0: verdicts(0.5, 0.9)}
    assert chosen(seen) == 0.7
    assert chosen(seen, tolerance=0.01) == 0.35
    assert chosen(seen, tolerance=0.5) == 1.0


def test_a_policy_that_only_costs_content_is_not_served() -> None:
    assert chosen({0.0: verdicts(0.6, 0.3), 0.5: verdicts(0.4, 0.9)}) == 0


def test_a_policy_that_gains_nothing_is_not_served() -> None:
    assert chosen({0.0: verdicts(0.6, 0.3), 0.5: verdicts(0.6, 0.3), 1.0: verdicts(0.6, 0.2)}) == 0


def test_without_a_taste_the_reward_decides() -> None:
    seen = {0.0: verdicts(0.6, 0.3, reward=0.0), 0.5: verdicts(0.6, 0.1, reward=0.4), 1.0: verdicts(0.6, 0.9, 0.2)}
    assert chosen(seen, taste=None) == 0.5
