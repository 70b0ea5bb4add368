"""How often the score prefers the picture that people preferred, with intervals.

Accuracy is the mean over pairs of 1[r(w) > r(l)] + 0.5 · 1[equal]; pairs that people called a tie have no winner and
are left out. An interval is `{value, low, high, n}`, 95 %.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

Interval = dict[str, float]

Z95 = 1.959963984540054
EDITED = ("edited_prompt", "opposite_prompt")
EASY = "mismatch"


class Judged(Protocol):
    """What is asked of a pair."""

    @property
    def kind(self) -> str: ...
    @property
    def negative_kind(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def label(self) -> float: ...


def wilson(*, successes: float, n: int) -> Interval:
    """Wilson's score interval of a share (1927, eq. 4); ties may count half."""
    share = successes / n
    middle = (share + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * math.sqrt(share * (1 - share) / n + Z95**2 / (4 * n**2))
    return {"value": share, "low": max(0.0, middle - half), "high": min(1.0, middle + half), "n": n}


def mean(intervals: Sequence[Interval]) -> Interval:
    """The unweighted mean of independent shares; limits by square-and-add (Zou and Donner 2008)."""
    count = len(intervals)
    value = sum(i["value"] for i in intervals) / count
    below = math.sqrt(sum((i["value"] - i["low"]) ** 2 for i in intervals)) / count
    above = math.sqrt(sum((i["high"] - i["value"]) ** 2 for i in intervals)) / count
    return {"value": value, "low": value - below, "high": value + above, "n": sum(i["n"] for i in intervals)}


def by(pairs: Iterable[Judged], right: Iterable[float], *, field: str) -> dict[str, Interval]:
    """Accuracy for every value of `field` ("kind", "source", "negative_kind")."""
    groups: dict[str, list[float]] = defaultdict(list)
    for pair, value in zip(pairs, right, strict=True):
        groups[getattr(pair, field)].append(value)
    return {name: wilson(successes=sum(values), n=len(values)) for name, values in sorted(groups.items())}


def accuracy(
    pairs: Sequence[Judged], *, r_w: Sequence[float], r_l: Sequence[float]
) -> dict[str, Mapping[str, Interval]]:
    """All accuracies of one scorer: `accuracy` (overall, edited and every kind), `by_source`, `by_negative_kind`.

    edited: mean over the kinds of pairs whose wrong picture is one edit away (expression and replacement among them).
    overall: mean of edited and random mismatches, or of all pairs alike where the data have not both.
    """
    kept = [(pair, a, b) for pair, a, b in zip(pairs, r_w, r_l, strict=True) if pair.label != 0.5]
    decided = [pair for pair, _, _ in kept]
    right = [1.0 if a > b else 0.5 if a == b else 0.0 for _, a, b in kept]
    kinds = by(decided, right, field="kind")
    edit_kinds = sorted({pair.kind for pair in decided if pair.negative_kind in EDITED})
    easy_kinds = sorted({pair.kind for pair in decided if pair.negative_kind == EASY})
    summary: dict[str, Interval] = {}
    if edit_kinds:
        summary["edited"] = mean([kinds[kind] for kind in edit_kinds])
    if edit_kinds and easy_kinds:
        summary["overall"] = mean([summary["edited"], mean([kinds[kind] for kind in easy_kinds])])
    else:
        summary["overall"] = wilson(successes=sum(right), n=len(right))
    return {
        "accuracy": {**summary, **kinds},
        "by_source": by(decided, right, field="source"),
        "by_negative_kind": by(decided, right, field="negative_kind"),
    }
