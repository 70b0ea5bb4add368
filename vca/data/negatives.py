"""Pairs made from dialogues (paper, section 4.2; algorithm: labels 0/1).

For each round with a target picture, up to one pair of each kind:

* edited_prompt: the negative is the dialogue's own previous picture. It was right for the prompt before the edit.
* opposite_prompt: the negative belongs to another dialogue whose prompt says the opposite of a word of this one.
* mismatch: the negative is any picture of another dialogue. Easy: accuracies are reported per kind for that reason.

Pictures of other dialogues come from a pool of the last few hundred, drawn at random, so that memory stays bounded and
every picture serves as a negative about as often as it serves as a positive. There is a pool per source, split and
role: a negative never comes from the other side of the split, nor from validation into training.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vca.data.settings import NegativeKind
from vca.data.splits import unit
from vca.records import Dialogue, Picture, PreferencePair

POOL = 256

_OPPOSITES = (
    "black white", "dark light", "dark bright", "long short", "large small", "big small", "big little", "old young",
    "man woman", "men women", "men's women's", "male female", "boy girl", "day night", "summer winter", "hot cold",
    "warm cool", "happy sad", "smiling crying", "open closed", "left right", "front back", "sleeveless sleeved",
    "plain patterned", "plain colorful", "striped solid", "tight loose", "thick thin", "wide narrow", "high low",
    "tall short", "full empty", "new old", "sunny rainy", "indoor outdoor", "simple intricate", "red green",
    "blue orange", "yellow purple", "formal casual", "modern ancient", "land sea", "fire ice",
)  # fmt: skip
OPPOSITES: dict[str, frozenset[str]] = {}
for _pair in _OPPOSITES:
    _a, _b = _pair.split()
    OPPOSITES[_a] = OPPOSITES.get(_a, frozenset()) | {_b}
    OPPOSITES[_b] = OPPOSITES.get(_b, frozenset()) | {_a}

_WORD = re.compile(r"[a-z]+(?:'s)?")


def words_of(prompt: str) -> frozenset[str]:
    """The words of a prompt, in lower case."""
    return frozenset(_WORD.findall(prompt.lower()))


def contradicts(words: frozenset[str], other: frozenset[str]) -> bool:
    """Whether `other` has the opposite of a word of `words`, which neither of them has on both sides."""
    return any(
        opposite in other and opposite not in words and word not in other
        for word in words
        for opposite in OPPOSITES.get(word, ())
    )


@dataclass(frozen=True, kw_only=True)
class _Entry:
    group: str
    words: frozenset[str]
    picture: Picture


class NegativeMaker:
    """Makes pairs from one dialogue after the other, and keeps its pictures for the next ones."""

    def __init__(self, *, seed: int) -> None:
        self.seed = seed
        self._pools: dict[tuple[str, str, str], list[_Entry]] = {}

    def pairs(self, dialogue: Dialogue, *, kinds: Sequence[NegativeKind]) -> Iterator[PreferencePair]:
        """Up to one pair of each kind and round. The dialogue must carry its split and role."""
        pool = self._pools.setdefault((dialogue.source, dialogue.split, dialogue.role), [])
        draw = random.Random(unit(dialogue.dialogue_id, salt=f"negatives{self.seed}"))
        previous: Picture | None = None
        shown: list[_Entry] = []
        for turn in dialogue.turns:
            picture = turn.target or turn.image
            if picture is None:
                continue
            words = words_of(turn.refined_prompt)
            if turn.target:
                for kind in kinds:
                    negative = self._negative(kind, picture, previous, words, pool, draw)
                    if negative is not None:
                        yield PreferencePair(
                            pair_id=f"{dialogue.dialogue_id}/{turn.round}/{kind}",
                            prompt=turn.refined_prompt,
                            positive=picture,
                            negative=negative,
                            source=dialogue.source,
                            kind=kind,
                            negative_kind=kind,
                            dialogue_id=dialogue.dialogue_id,
                            split=dialogue.split,
                            role=dialogue.role,
                        )
            previous = picture
            shown.append(_Entry(group=picture.key, words=words, picture=picture))
        for entry in shown:
            if len(pool) < POOL:
                pool.append(entry)
            else:
                pool[draw.randrange(POOL)] = entry

    def _negative(
        self,
        kind: NegativeKind,
        picture: Picture,
        previous: Picture | None,
        words: frozenset[str],
        pool: list[_Entry],
        draw: random.Random,
    ) -> Picture | None:
        if kind == "edited_prompt":
            return previous if previous is not None and previous.data != picture.data else None
        others = [entry for entry in pool if entry.group != picture.key]
        if kind == "opposite_prompt":
            others = [entry for entry in others if contradicts(words, entry.words)]
        return draw.choice(others).picture if others else None
