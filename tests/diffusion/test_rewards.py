"""P4, P7, P14: reward weights, diversity, consistency, and what siblings make of them."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch.nn.functional import normalize

from vca.diffusion.advantages import (
    PromptHistory,
    advantage_sum,
    group_advantages,
    permute_in_groups,
    reward_sum,
)
from vca.diffusion.rewards import consistency, discounted, diversity, reward_weights

# k: div, cons, mi as printed, mi as the text says, sum of the first three
TABLE = {
    1: (0.860708, 0.095163, 0.463872, 0.036128),
    2: (0.740818, 0.181269, 0.430354, 0.069646),
    3: (0.637628, 0.259182, 0.399258, 0.100742),
    4: (0.548812, 0.329680, 0.370409, 0.129591),
    5: (0.472367, 0.393469, 0.343645, 0.156355),
    6: (0.406570, 0.451188, 0.318814, 0.181186),
    7: (0.349938, 0.503415, 0.295778, 0.204222),
    8: (0.301194, 0.550671, 0.274406, 0.225594),
}


def test_p04_reward_weights_are_the_printed_ones() -> None:
    for k, (div, cons, mi, mi_text) in TABLE.items():
        assert reward_weights(k, schedule="paper") == pytest.approx((div, cons, mi), abs=1e-6)
        assert reward_weights(k, schedule="text") == pytest.approx((div, cons, mi_text), abs=1e-6)
        assert reward_weights(k, schedule="constant") == (0.25, 0.25, 0.25)
        assert reward_weights(k, schedule="paper", ablate="cons") == pytest.approx((div, 0, mi), abs=1e-6)
    weights = [reward_weights(k, schedule="paper") for k in range(1, 20)]
    assert all(a[0] > b[0] and a[1] < b[1] for a, b in pairwise(weights))
    assert reward_weights(1, schedule="paper", offset=0) == (1.0, 0.0, 0.5)
    custom = ((1.0,), (0.1, 0.2), (3.0, 2.0, 1.0))
    assert reward_weights(2, schedule="custom", custom=custom) == (1.0, 0.2, 2.0)
    assert reward_weights(9, schedule="custom", custom=custom) == (1.0, 0.2, 1.0)


def test_p07_diversity_credits_average_to_equation_6() -> None:
    features = normalize(torch.randn(6, 10, dtype=torch.float64), dim=1)
    rounds, siblings = [1] * 6, list(range(6))
    credit = diversity(features, rounds, siblings, scope="dialogue")
    pairs = [1 - float(features[i] @ features[j]) for i in range(6) for j in range(6) if i != j]
    assert float(credit.mean()) == pytest.approx(sum(pairs) / (6 * 5), abs=1e-12)

    order = torch.randperm(6)
    assert torch.allclose(diversity(features[order], rounds, siblings, scope="dialogue"), credit[order])


def test_p07_diversity_is_0_1_2_for_equal_orthogonal_opposite() -> None:
    e = torch.eye(3)
    for pair, expected in (((e[0], e[0]), 0.0), ((e[0], e[1]), 1.0), ((e[0], -e[0]), 2.0)):
        credit = diversity(torch.stack(pair), [1, 1], [0, 1], scope="dialogue")
        assert credit.tolist() == [expected, expected]
    assert diversity(e[:1], [1], [0], scope="dialogue").tolist() == [0.0]


def test_p07_diversity_looks_back_and_never_ahead() -> None:
    e = torch.eye(4)
    rounds, siblings = [1, 1, 2, 2], [0, 1, 0, 1]
    same = torch.stack([e[0], e[0], e[1], e[1]])  # siblings alike, rounds apart
    assert diversity(same, rounds, siblings, scope="dialogue").tolist() == pytest.approx([0, 0, 2 / 3, 2 / 3])
    assert diversity(same, rounds, siblings, scope="round").tolist() == [0, 0, 0, 0]
    assert diversity(same, rounds, siblings, scope="rollout").tolist() == [0, 0, 1, 1]


def test_p07_consistency_sums_to_equation_7() -> None:
    rounds, siblings = [1, 1, 2, 2, 3, 3], [0, 1, 0, 1, 0, 1]
    features = normalize(torch.randn(6, 5, dtype=torch.float64), dim=1)
    increments = consistency(features, rounds, siblings)
    for sibling in (0, 1):
        chain = features[sibling::2]
        expected = float(chain[0] @ chain[1] + chain[1] @ chain[2])
        assert float(increments[sibling::2].sum()) == pytest.approx(expected)
    identical = consistency(torch.eye(3)[:1].expand(6, 3), rounds, siblings)
    assert identical[0::2].sum() == 2  # K - 1
    assert identical[:2].tolist() == [0, 0]


def test_later_rounds_are_credited_with_a_discount() -> None:
    rewards = torch.tensor([[1.0], [10.0], [2.0], [20.0], [4.0]])
    later = [2, 3, 4, None, None]
    assert discounted(rewards, later, discount=0.5).flatten().tolist() == [3.0, 20.0, 4.0, 20.0, 4.0]
    assert torch.equal(discounted(rewards, later, discount=0.0), rewards)


def test_p14_advantages_are_centred_and_scaled_within_groups() -> None:
    rewards = torch.randn(5, 8) * torch.tensor([1, 10, 0.1, 5, 2])[:, None] + torch.arange(5)[:, None]
    advantages = group_advantages(rewards.flatten(), siblings=8).view(5, 8)
    assert torch.allclose(advantages.sum(1), torch.zeros(5), atol=1e-5)
    assert torch.allclose(advantages.std(1, unbiased=False), torch.ones(5), atol=2e-3)

    order = torch.randperm(5)
    again = group_advantages(rewards[order].flatten(), siblings=8).view(5, 8)
    assert torch.equal(again, advantages[order])


def test_p14_a_group_that_does_not_spread_has_no_advantage() -> None:
    rewards = torch.tensor([3.0] * 8 + [1.0, 2.0] * 4)
    advantages = group_advantages(rewards, siblings=8)
    assert advantages[:8].tolist() == [0.0] * 8
    assert advantages.isfinite().all()
    assert (advantages[8:] != 0).all()


def test_sum_of_advantages_ignores_scales_and_sum_of_rewards_does_not() -> None:
    rewards = torch.randn(16, 3)
    weights = torch.tensor([[0.8, 0.1, 0.4]]).expand(16, 3)
    scaled = rewards * torch.tensor([100.0, 1.0, 1.0])
    a, b = advantage_sum(rewards, weights, siblings=8), advantage_sum(scaled, weights, siblings=8)
    assert torch.allclose(a, b, atol=5e-3)
    one = reward_sum(scaled, weights, siblings=8)
    assert torch.allclose(one, group_advantages(rewards[:, 0], siblings=8), atol=0.1)
    assert not torch.allclose(reward_sum(rewards, weights, siblings=8), one, atol=0.1)
    expected = group_advantages((rewards * weights).sum(1), siblings=8)
    assert torch.equal(reward_sum(rewards, weights, siblings=8), expected)


def test_permuted_rewards_stay_in_their_group() -> None:
    rewards = torch.arange(24.0).view(12, 2)
    generators = [torch.Generator().manual_seed(n) for n in range(3)]
    permuted = permute_in_groups(rewards, siblings=4, generators=generators)
    assert not torch.equal(permuted, rewards)
    for group in range(3):
        rows = slice(group * 4, group * 4 + 4)
        assert sorted(permuted[rows].tolist()) == rewards[rows].tolist()


def test_a_lone_sample_is_compared_with_its_prompts_history() -> None:
    history = PromptHistory(length=4, enough=2)
    assert history.advantages(["a"], [1.0]) == [0.0]
    first = history.advantages(["b"], [3.0])[0]
    assert first == pytest.approx(1.0, abs=1e-3)  # against everything so far: mean 2, std 1
    own = history.advantages(["a"], [2.0])[0]
    assert own == pytest.approx(0.5 / (0.5 + 1e-4))  # against [1, 2]

    copy = PromptHistory(length=4, enough=2)
    copy.load_state_dict(history.state_dict())
    assert copy.advantages(["a"], [5.0]) == history.advantages(["a"], [5.0])
    assert math.isfinite(own)
