"""What the figures say, in plain words: nothing is claimed whose interval includes zero."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vca.evaluation.statistics import excludes_zero


@dataclass(frozen=True, kw_only=True)
class Told:
    """How a figure of the policy is shown. style: share, score or rounds. better: +1 higher, -1 lower, 0 neither."""

    name: str
    style: str
    better: int
    meaning: str


POLICY_FIGURES = {
    "taste_share": Told(
        name="Drawn the way people like",
        style="share",
        better=1,
        meaning="share of pictures in the preferred style where the prompt leaves it open, by a judge of its own",
    ),
    "rounds_to_satisfaction": Told(
        name="Rounds to satisfaction",
        style="rounds",
        better=-1,
        meaning="rounds until a simulated person accepts; who gives up counts with the cap",
    ),
    "preference_score": Told(
        name="Preference score",
        style="score",
        better=1,
        meaning="the reward model's calibrated score: what the policy was trained on, so no independent witness",
    ),
    "content_judge": Told(
        name="Fits the words",
        style="score",
        better=1,
        meaning="CLIP-style cosine of picture and prompt, by a judge that no training used",
    ),
    "content_judge_equal_style": Told(
        name="Fits the words, at equal style",
        style="score",
        better=1,
        meaning="the same, with the judge's own liking for some drawing styles taken out",
    ),
    "recall_at_1": Told(name="Own prompt found first", style="share", better=1, meaning="R@1 among all prompts"),
    "recall_at_5": Told(name="Own prompt in the first 5", style="share", better=1, meaning="R@5 among all prompts"),
    "recall_at_10": Told(name="Own prompt in the first 10", style="share", better=1, meaning="R@10 among all prompts"),
    "lpips_style": Told(
        name="Change between rounds",
        style="score",
        better=0,
        meaning="LPIPS-style distance of consecutive pictures of a dialogue; low keeps the picture",
    ),
}

KINDS = {
    "overall": "all pairs",
    "edited": "edited captions, mean over kinds",
    "skin_tone": "skin tone",
    "color": "colour",
    "random": "another subject at random",
    "replacement": "a similar subject",
    "style": "drawing style",
    "taste": "taste: the preferred style",
    "degraded": "washed-out or blurred",
}


def headline(figures: Mapping[str, Any], *, taste: str | None) -> str:
    """One sentence: what was learned, or that nothing could be shown."""
    policy = figures["policy"]
    if taste is not None and excludes_zero(policy["taste_share"]["delta"]):
        before, after = (round(100 * policy["taste_share"][name]["value"]) for name in ("base", "trained"))
        verb = "learned what people like" if after > before else "moved away from what people like"
        return f"The model {verb}: {after} of 100 pictures are drawn their way, {before} before training."
    if excludes_zero(policy["preference_score"]["delta"]):
        change = policy["preference_score"]["delta"]["value"]
        direction = "higher" if change > 0 else "lower"
        return (
            f"The reward model, which learned from people's choices, scores the trained model's pictures {direction}."
        )
    return "In this run no difference between the trained model and the base could be shown."


def sentences(figures: Mapping[str, Any], *, taste: str | None) -> list[str]:
    """Two to four further sentences on what it means and what it cost."""
    policy, accuracy = figures["policy"], figures["reward"]["accuracy"]
    out = []
    rounds = policy["rounds_to_satisfaction"]
    base, trained = (f"{rounds[name]['value']:.1f}" for name in ("base", "trained"))
    if excludes_zero(rounds["delta"]):
        out.append(
            f"A simulated person now needs {trained} rounds to a picture they accept, {base} with the base model."
        )
    else:
        out.append(
            f"A simulated person needs {trained} rounds to a picture they accept, {base} with the base model: "
            "no clear difference."
        )
    content = policy["content_judge"]
    share = 100 * content["delta"]["value"] / content["base"]["value"]
    if not excludes_zero(content["delta"]):
        out.append(
            f"How well the pictures fit the words shows no clear change ({share:+.1f} %), "
            "by a judge that took no part in training."
        )
    elif share < 0:
        out.append(
            f"The price: the pictures fit the words {-share:.1f} % less well, by a judge that took no part in training."
        )
    else:
        out.append(f"The pictures fit the words {share:.1f} % better, by a judge that took no part in training.")
    before, after = (round(100 * figures["reward"][name]["overall"]["value"]) for name in ("accuracy_base", "accuracy"))
    out.append(
        f"The reward model behind it picks the picture that people preferred in {after} of 100 held-out pairs "
        f"({before} before training, {round(accuracy['overall']['n']):,} pairs)."
    )
    return out + people(figures)


def people(figures: Mapping[str, Any]) -> list[str]:
    """Whose judgements it learned from, where real people were asked."""
    asked = [source for source in figures["data"]["sources"].values() if source["people"]]
    if not asked:
        return []
    pairs, number = (sum(source[name] for source in asked) for name in ("pairs", "people"))
    return [
        f"Among what it was trained and tested on are {pairs:,} pair{'s' * (pairs != 1)} of pictures that "
        f"{number:,} {'person' if number == 1 else 'people'} compared in the studio."
    ]
