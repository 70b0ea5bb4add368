"""Intervals for figures that were measured on the same prompts with both policies.

Efron & Tibshirani 1993, percentile bootstrap. What is resampled are prompts or dialogues, with both policies' values
together, so differences between prompts cancel. The interval covers the choice of prompts, not the randomness of
training: a claim about training needs several training seeds beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Interval(TypedDict):
    """A figure and the ends of its confidence interval."""

    value: float
    low: float
    high: float


class Compared(TypedDict):
    """Base, trained, and trained minus base."""

    base: Interval
    trained: Interval
    delta: Interval


def _interval(value: float, resampled: Array, confidence: float) -> Interval:
    tail = 50 * (1 - confidence)
    low, high = np.percentile(resampled, [tail, 100 - tail])
    return {"value": float(value), "low": float(low), "high": float(high)}


def compare(
    *,
    base_N: Array,
    trained_N: Array,
    seed: int,
    resamples: int,
    confidence: float = 0.95,
) -> Compared:
    """Means of paired values and their difference. One value per prompt and policy; ValueError if lengths differ."""

    def means(rows_RN: NDArray[np.int64]) -> tuple[Array, Array]:
        return base_N[rows_RN].mean(1), trained_N[rows_RN].mean(1)

    if base_N.shape != trained_N.shape or base_N.ndim != 1:
        raise ValueError(f"paired values need one shape [N]; got {base_N.shape} and {trained_N.shape}")
    return compare_statistic(means, size=len(base_N), seed=seed, resamples=resamples, confidence=confidence)


def compare_statistic(
    statistic: Callable[[NDArray[np.int64]], tuple[Array, Array]],
    *,
    size: int,
    seed: int,
    resamples: int,
    confidence: float = 0.95,
) -> Compared:
    """The same for any statistic: it gets row numbers [R,N] and returns base's and trained's figures, [R] each."""
    rng = np.random.default_rng(seed)
    base, trained = statistic(np.arange(size)[None])
    parts = [
        statistic(rng.integers(0, size, size=(min(500, resamples - start), size))) for start in range(0, resamples, 500)
    ]
    base_R, trained_R = (np.concatenate([part[which] for part in parts]) for which in (0, 1))
    return {
        "base": _interval(base[0], base_R, confidence),
        "trained": _interval(trained[0], trained_R, confidence),
        "delta": _interval(trained[0] - base[0], trained_R - base_R, confidence),
    }


def excludes_zero(interval: Interval) -> bool:
    """Whether all of the interval lies on one side of zero."""
    return interval["low"] > 0 or interval["high"] < 0
