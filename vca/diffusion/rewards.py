"""The three rewards of eq. 6-9 and their weights by round. Pure functions in float32.

Shapes: N samples, F features, J the three rewards in the order div, cons, mi. Rounds count from 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

REWARDS = ("div", "cons", "mi")


class RewardFunction(Protocol):
    """The reward model, as training sees it: calibrated scores (mean 0, standard deviation 1 on validation)."""

    def __call__(self, *, prompts: Sequence[str], images_BCHW: Tensor) -> Tensor:
        """scores_B for images in [0, 1]; differentiable in them where ReFL is to train with it."""


def diversity(
    features_NF: Tensor,
    rounds_N: Sequence[int],
    siblings_N: Sequence[int],
    *,
    scope: Literal["dialogue", "round", "rollout"],
) -> Tensor:
    """Each sample's share of eq. 6 within one dialogue, [N]: the mean of 1 - cos to the samples it is compared with.

    features_NF have length 1. A sample of round k is compared with those of rounds up to k (`dialogue`), of round k
    (`round`), or of its own chain up to k (`rollout`); with none, it gets 0. Where every sample is compared with every
    other, the mean over samples is eq. 6.
    """
    device = features_NF.device
    rounds, siblings = torch.tensor(list(rounds_N), device=device), torch.tensor(list(siblings_N), device=device)
    compared_NN = {
        "dialogue": rounds[None, :] <= rounds[:, None],
        "round": rounds[None, :] == rounds[:, None],
        "rollout": (rounds[None, :] <= rounds[:, None]) & (siblings[None, :] == siblings[:, None]),
    }[scope] & ~torch.eye(len(rounds), dtype=torch.bool, device=device)
    distance_NN = 1 - features_NF @ features_NF.T
    return (distance_NN * compared_NN).sum(1) / compared_NN.sum(1).clamp(min=1)


def consistency(features_NF: Tensor, rounds_N: Sequence[int], siblings_N: Sequence[int]) -> Tensor:
    """Each sample's increment of eq. 7 within one dialogue, [N]: cos to its own chain's last round, 0 in round 1.

    Summed over the rounds of a chain this is eq. 7.
    """
    row = {(k, g): n for n, (k, g) in enumerate(zip(rounds_N, siblings_N, strict=True))}
    increments = [
        (features_NF[n] * features_NF[row[k - 1, g]]).sum() if k > 1 else features_NF.new_zeros(())
        for (k, g), n in row.items()
    ]
    return torch.stack(increments)


def reward_weights(
    dialogue_round: int,
    *,
    schedule: Literal["paper", "text", "constant", "custom"],
    offset: int = 1,
    custom: Sequence[Sequence[float]] = (),
    ablate: str = "none",
) -> tuple[float, float, float]:
    """lambda_div, lambda_cons, lambda_mi of a round (eq. 9).

    `paper` is the printed formula; `text` lets mutual information rise as the text says; `constant` is the paper's
    RC25. `offset` is t of the first round. `custom` holds three lists by round, whose last value goes on.
    """
    t = dialogue_round - 1 + offset
    if schedule == "constant":
        weights = (0.25, 0.25, 0.25)
    elif schedule == "custom":
        div, cons, mi = (values[min(dialogue_round, len(values)) - 1] for values in custom)
        weights = (div, cons, mi)
    else:
        falling = 0.5 * math.exp(-0.075 * t)
        weights = (math.exp(-0.15 * t), 1 - math.exp(-0.1 * t), falling if schedule == "paper" else 0.5 - falling)
    div, cons, mi = (0.0 if name == ablate else weight for name, weight in zip(REWARDS, weights, strict=True))
    return div, cons, mi


def discounted(rewards_NJ: Tensor, later_N: Sequence[int | None], *, discount: float) -> Tensor:
    """R_k + gamma R_{k+1} + …: later_N is the row of the same chain's next round, None in the last."""
    total = rewards_NJ.clone()
    for n in reversed(range(len(later_N))):
        following = later_N[n]
        if following is not None:
            total[n] += discount * total[following]
    return total
