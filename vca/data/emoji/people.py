"""Simulated people who say which of two pictures they prefer. Real data sources have real people instead.

How each of them judges, in this order:

1. Content first. A picture that shows what the prompt says beats one that doesn't.
2. Then quality. A clean picture beats a spoilt one.
3. Then taste, only where the prompt leaves the drawing style open. Most people (`taste_share`) like `fluent` best and
   follow that most of the time (`taste_follow`); the others have no taste and toss a coin.

Some judgements (`label_noise`) are plain mistakes: the other picture is named. The panel is drawn once per seed, each
pair goes to one person of it, and nothing in a pair tells who judged or whether it was a mistake.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from vca.data.emoji.catalogue import EmojiItem, caption
from vca.data.emoji.settings import EmojiSettings
from vca.records import Picture

PREFERRED_STYLE = "fluent"


@dataclass(frozen=True)
class Candidate:
    """A picture to judge, and the truth about it: which item it shows and whether it is a spoilt copy."""

    item: EmojiItem
    picture: Picture
    spoilt: bool = False


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What the prompt asks for: the item's content, and its drawing style too if that is named."""

    item: EmojiItem
    style_named: bool

    @property
    def prompt(self) -> str:
        return caption(self.item, style=self.style_named)

    def shown_by(self, candidate: Candidate) -> bool:
        return caption(candidate.item, style=self.style_named) == self.prompt


class Panel:
    """The annotators. `taste_share` of them, rounded to whole people, have the taste."""

    def __init__(self, *, settings: EmojiSettings) -> None:
        self.settings = settings
        self.with_taste = round(settings.taste_share * settings.people)

    def prefers_first(self, *, wish: Wish, first: Candidate, second: Candidate, rng: random.Random) -> bool:
        """One person's answer; `rng` draws the person, their whim and their mistakes."""
        has_taste = rng.randrange(self.settings.people) < self.with_taste
        answer = self._judge(wish, first, second, has_taste, rng)
        return answer != (rng.random() < self.settings.label_noise)

    def _judge(self, wish: Wish, first: Candidate, second: Candidate, has_taste: bool, rng: random.Random) -> bool:
        if wish.shown_by(first) != wish.shown_by(second):
            return wish.shown_by(first)
        if first.spoilt != second.spoilt:
            return second.spoilt
        first_is_liked = first.item.style == PREFERRED_STYLE
        differ = first_is_liked != (second.item.style == PREFERRED_STYLE)
        if has_taste and differ and not wish.style_named:
            return first_is_liked == (rng.random() < self.settings.taste_follow)
        return rng.random() < 0.5


def majority(settings: EmojiSettings) -> Panel:
    """What most people say in the end, without mistakes: the judges of test pairs."""
    return Panel(settings=settings.model_copy(update={"taste_share": 1.0, "taste_follow": 1.0, "label_noise": 0.0}))
