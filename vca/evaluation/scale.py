"""How strongly the trained LoRA acts when it serves: chosen on validation prompts, never on test ones.

The rule: of the scales whose mean content judge on validation prompts is at least (1 - tolerance) times the base's,
the one with the largest share of pictures in the preferred style; at equal share the smaller scale. Where no taste is
measured, the calibrated reward stands in its place. 0, the base itself, is always allowed, so there always is a
choice, and a policy that only costs content is not served.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypedDict

from vca.evaluation.panel import Verdicts


class Candidate(TypedDict):
    """One scale on the validation prompts. `gain` is what is maximised: taste share or calibrated reward."""

    scale: float
    gain: float
    content_judge: float
    preference_score: float
    allowed: bool


def choose(candidates: Sequence[Candidate]) -> float:
    """The scale by the rule above."""
    allowed = [candidate for candidate in candidates if candidate["allowed"]]
    return max(allowed, key=lambda candidate: (candidate["gain"], -candidate["scale"]))["scale"]


def candidates(
    scales: Sequence[float], *, verdicts: Callable[[float], Verdicts], taste: int | None, tolerance: float
) -> list[Candidate]:
    """Every scale's figures; `verdicts(scale)` judges the validation pictures drawn at that scale."""
    out: list[Candidate] = []
    for scale in (0.0, *sorted(scales)):
        seen = verdicts(scale)
        content = float(seen.content_N.mean())
        reward = float(seen.reward_N.mean())
        out.append(
            {
                "scale": scale,
                "gain": reward if taste is None else float(seen.taste_N(taste).mean()),
                "content_judge": content,
                "preference_score": reward,
                "allowed": scale == 0 or content >= (1 - tolerance) * out[0]["content_judge"],
            }
        )
    return out
