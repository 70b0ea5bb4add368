"""Preference pairs: two pictures are laid before the simulated people, and what they prefer becomes the positive.

Kinds: an edit kind ("skin_tone", ..., "replacement"): the right picture against an edit neighbour; "random": against
a picture of another concept; "taste": one content in two drawing styles, the prompt naming none; "degraded": against a
spoilt copy. Groups of emoji have equal chances within a kind, and the content kinds get equal counts.

A share of the pairs of the last two kinds, which are about looks, shows what the base model drew for the items'
captions: what people say of emoji alone teaches little about generated pictures.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Literal

from vca.data.emoji.catalogue import BasePictures, EmojiItem
from vca.data.emoji.dialogues import by_group
from vca.data.emoji.graph import EditGraph
from vca.data.emoji.people import PREFERRED_STYLE, Candidate, Panel, Wish
from vca.data.emoji.settings import EmojiSettings
from vca.data.emoji.spoil import spoil
from vca.records import Picture, PreferencePair, Role

EDIT_KINDS = ("skin_tone", "hair", "role", "gender", "colour", "style", "expression", "replacement")
CONTENT_KINDS = (*EDIT_KINDS, "random")
ABOUT_LOOKS = ("taste", "degraded")
_TRIES = 400  # proposals in a row without a new pair: then a kind has run out

Proposal = tuple[Wish, Candidate, Candidate]


def counts_by_kind(*, total: int, settings: EmojiSettings) -> dict[str, int]:
    """How many of `total` pairs each kind gets."""
    taste, degraded = round(total * settings.taste_pairs), round(total * settings.degraded_pairs)
    rest = max(0, total - taste - degraded)
    shares = {kind: (rest + n) // len(CONTENT_KINDS) for n, kind in enumerate(CONTENT_KINDS)}
    return {**shares, "taste": taste, "degraded": degraded}


class PairMaker:
    """Proposes pairs among `items`, of which only the reward fold is used.

    held_out: "root" or "combination": only items held out in that way are right pictures; None: only others are.
    base: its pictures of the items; without them every pair shows emoji.
    """

    def __init__(
        self,
        *,
        items: Sequence[EmojiItem],
        settings: EmojiSettings,
        held_out: str | None = None,
        base: BasePictures | None = None,
    ) -> None:
        self.settings, self.held_out, self.base = settings, held_out, base
        self.graph = EditGraph([item for item in items if item.fold == "reward"])
        right = [item for item in self.graph.items if item.held_out == held_out]
        self.by_style: dict[str, list[EmojiItem]] = {}
        for item in self.graph.items:
            self.by_style.setdefault(item.style, []).append(item)
        self.wrong = {
            kind: by_group([item for item in self.graph.sources(kind) if self._targets(item, kind)])
            for kind in EDIT_KINDS
        }
        self.right = {"random": by_group(right), "degraded": by_group(right)}
        self.right["taste"] = by_group(
            [item for item in right if item.style == PREFERRED_STYLE and self.graph.neighbours(item, "style")]
        )

    def propose(self, kind: str, rng: random.Random) -> Proposal | None:
        """A wish, the better and the worse picture; None if this draw led nowhere."""
        style_named = kind == "style" or (kind != "taste" and rng.random() >= self.settings.style_open)
        groups = self.wrong[kind] if kind in EDIT_KINDS else self.right[kind]
        if not groups:
            return None
        drawn = rng.choice(rng.choice(groups))
        match kind:
            case "taste":
                right, wrong = drawn, rng.choice(self.graph.neighbours(drawn, "style"))
            case "degraded":
                right = wrong = drawn
            case "random":
                right, wrong = drawn, rng.choice(self.by_style[drawn.style])
                if wrong.root == right.root:
                    return None
            case _:
                right, wrong = rng.choice(self._targets(drawn, kind)), drawn
        if kind != "taste" and not style_named and rng.random() < self.settings.mixed_styles:
            right, wrong = self._in_two_styles(right, wrong, rng)
        base = self.base if kind in ABOUT_LOOKS and rng.random() < self.settings.drawn_pairs else None
        better, worse = (Candidate(item, base.one_of(item, rng) if base else item.picture()) for item in (right, wrong))
        return Wish(item=right, style_named=style_named), better, _spoilt(worse, rng) if kind == "degraded" else worse

    def _targets(self, item: EmojiItem, kind: str) -> list[EmojiItem]:
        return [target for target in self.graph.neighbours(item, kind) if target.held_out == self.held_out]

    def _in_two_styles(self, right: EmojiItem, wrong: EmojiItem, rng: random.Random) -> tuple[EmojiItem, EmojiItem]:
        """The same two contents with one of them, either one, alone in the preferred style, where there are such."""
        right_is_liked = rng.random() < 0.5
        liked, other = (right, wrong) if right_is_liked else (wrong, right)
        in_preferred = [t for t in self._versions(liked) if t.style == PREFERRED_STYLE]
        in_others = [t for t in self._versions(other) if t.style != PREFERRED_STYLE]
        if not in_preferred or not in_others:
            return right, wrong
        first, second = rng.choice(in_preferred), rng.choice(in_others)
        return (first, second) if right_is_liked else (second, first)

    def _versions(self, item: EmojiItem) -> list[EmojiItem]:
        return [item, *self.graph.neighbours(item, "style")]


def pairs(
    *, maker: PairMaker, panel: Panel, counts: dict[str, int], role: Role, seed: int, source: str
) -> Iterator[PreferencePair]:
    """Up to `counts[kind]` distinct pairs of each kind, in mixed order, one at a time."""
    rng = random.Random(f"{seed}:{role}:{sorted(counts)}:pairs")
    order = [kind for kind, count in counts.items() for _ in range(count)]
    rng.shuffle(order)
    seen: set[tuple[str, str, str]] = set()
    empty: set[str] = set()
    for n, kind in enumerate(order):
        proposal = None if kind in empty else _fresh(maker, kind, seen, rng)
        if proposal is None:
            empty.add(kind)
            continue
        wish, right, wrong = proposal
        first_wins = panel.prefers_first(wish=wish, first=right, second=wrong, rng=rng)
        positive, negative = (right, wrong) if first_wins else (wrong, right)
        yield PreferencePair(
            pair_id=f"{source}-{role}-{kind}-{n:06d}",
            prompt=wish.prompt,
            positive=positive.picture,
            negative=negative.picture,
            source=source,
            kind=kind,
            negative_kind=_negative_kind(kind),
            split="test" if role == "test" else "train",
            role=role,
        )


def _fresh(maker: PairMaker, kind: str, seen: set[tuple[str, str, str]], rng: random.Random) -> Proposal | None:
    for _ in range(_TRIES):
        proposal = maker.propose(kind, rng)
        if proposal is None:
            continue
        wish, right, wrong = proposal
        key = (wish.prompt, right.picture.uri, wrong.picture.uri)
        if key not in seen:
            seen.add(key)
            return proposal
    return None


def _spoilt(candidate: Candidate, rng: random.Random) -> Candidate:
    how, png = spoil(candidate.picture.data, rng)
    uri = f"{candidate.picture.uri}#{how}-{rng.getrandbits(64):016x}"
    return Candidate(candidate.item, Picture(data=png, uri=uri, key=candidate.item.key), spoilt=True)


def _negative_kind(kind: str) -> Literal["mismatch", "edited_prompt", "taste", "degraded"]:
    match kind:
        case "random":
            return "mismatch"
        case "taste":
            return "taste"
        case "degraded":
            return "degraded"
        case _:
            return "edited_prompt"
