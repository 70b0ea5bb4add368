"""What is measured on pictures: pure functions on arrays, one value per prompt.

N prompts or pictures, S styles, R resamples.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vca.evaluation.statistics import Array, Compared, compare_statistic

Labels = NDArray[np.int64]


def retrieval_ranks(*, similarity_NN: Array) -> Labels:
    """How many other prompts the judge finds fitter for picture i than prompt i itself; 0 is a hit at 1. [N]"""
    ranks_N: Labels = (similarity_NN > similarity_NN.diagonal()[:, None]).sum(1)
    return ranks_N


def at_equal_style(
    *,
    base_N: Array,
    trained_N: Array,
    base_style_N: Labels,
    trained_style_N: Labels,
    styles: int,
    seed: int,
    resamples: int,
    confidence: float = 0.95,
) -> Compared:
    """A content score with the judge's own liking for some drawing styles taken out.

    Each policy's score is the mean over its pictures of one judged style, weighted by the base's share of that style:
    what the trained policy would score if it drew as often in each style as the base does. Styles that one of the two
    never draws (in a resample) carry no weight there.
    """

    def by_style(score_RN: Array, style_RN: Labels) -> tuple[Array, Array]:
        of_RNS = style_RN[..., None] == np.arange(styles)
        count_RS = of_RNS.sum(1)
        return (score_RN[..., None] * of_RNS).sum(1) / np.maximum(count_RS, 1), count_RS

    def statistic(rows_RN: Labels) -> tuple[Array, Array]:
        base_RS, base_count = by_style(base_N[rows_RN], base_style_N[rows_RN])
        trained_RS, trained_count = by_style(trained_N[rows_RN], trained_style_N[rows_RN])
        weight_RS = base_count * (trained_count > 0)
        weight_RS = weight_RS / np.maximum(weight_RS.sum(1, keepdims=True), 1)
        return (base_RS * weight_RS).sum(1), (trained_RS * weight_RS).sum(1)

    return compare_statistic(statistic, size=len(base_N), seed=seed, resamples=resamples, confidence=confidence)


def top_three(scores_N: Array) -> list[int]:
    """The three best of n, best first; equal scores keep their order."""
    return [int(at) for at in np.argsort(-scores_N, kind="stable")[:3]]


def verdict(*, ours: float, theirs: float, tie: float) -> str:
    """ "win", "tie" or "lose" of `ours`; a difference below `tie` is a tie (algorithm of figures 6 and 7)."""
    if abs(ours - theirs) < tie:
        return "tie"
    return "win" if ours > theirs else "lose"
