"""Figures 6 and 7 of the paper, with the content judge in the place of human judges.

Figure 6: every selector picks its top 3 of n pictures of a prompt; the judge compares the triples' means. Figure 7:
which policy's picture the judge prefers in each round of a dialogue. The reward model never judges itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from vca.evaluation.metrics import top_three, verdict
from vca.evaluation.simulated_user import Session
from vca.evaluation.statistics import Array

TIE = 0.1  # standard deviations of the judge's score within which two triples or pictures tie


def top_three_of(n: int, *, reward_PN: Array, judge_PN: Array, rng: np.random.Generator) -> dict[str, dict[str, float]]:
    """Shares of prompts in which the reward model's triple of the first n wins, ties and loses, by opponent.

    reward_PN, judge_PN: scores of N ≥ n pictures for each of P prompts. Opponents: a random triple, and the best
    possible, the judge's own triple (which can only be tied).
    """
    counts: dict[str, Counter[str]] = {"random": Counter(), "best": Counter()}
    tie = TIE * float(judge_PN.std())
    for reward_N, judge_N in zip(reward_PN[:, :n], judge_PN[:, :n], strict=True):
        ours = set(top_three(reward_N))
        others = {"random": set(rng.permutation(n)[:3].tolist()), "best": set(top_three(judge_N))}
        for name, theirs in others.items():
            means = [float(judge_N[sorted(triple)].mean()) for triple in (ours, theirs)]
            counts[name]["tie" if ours == theirs else verdict(ours=means[0], theirs=means[1], tie=tie)] += 1
    return {name: {r: count[r] / len(reward_PN) for r in ("win", "tie", "lose")} for name, count in counts.items()}


def win_rates(*, base: Sequence[Session], trained: Sequence[Session], rounds: int) -> list[dict[str, float]]:
    """By round, shares of dialogues in which the trained policy's picture wins, ties and loses on the whole intent.

    A person who has accepted keeps that picture. A picture in the style that the person likes beats one that isn't;
    among equals in that, the content judge decides.
    """
    scores = [shown.content for session in (*base, *trained) for shown in session.shown]
    tie = TIE * float(np.std(scores))
    out = []
    for number in range(rounds):
        counts: Counter[str] = Counter()
        for one, other in zip(base, trained, strict=True):
            a, b = (session.shown[min(number, len(session.shown) - 1)] for session in (one, other))
            liked = [s.style == one.wanted_style for s in (a, b)]
            if one.wanted_style is not None and liked[0] != liked[1]:
                counts["win" if liked[1] else "lose"] += 1
            else:
                counts[verdict(ours=b.content, theirs=a.content, tie=tie)] += 1
        out.append({result: counts[result] / len(base) for result in ("win", "tie", "lose")})
    return out
