"""Edited captions: for one picture, what it would be called if one thing about it were different."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from random import Random

from vca.data.emoji.catalogue import STYLES, EmojiItem, caption


def _rest(item: EmojiItem, *without: str) -> tuple[Hashable, ...]:
    names = ("root", "tone", "gender", "hair", "role", "color", "species", "direction")
    return tuple(getattr(item, name) for name in names if name not in without)


# Items with the same key and different values are one edit of that kind apart; a key of None: not of that kind.
RULES: dict[str, tuple[Callable[[EmojiItem], Hashable], Callable[[EmojiItem], Hashable]]] = {
    "skin_tone": (lambda i: _rest(i, "tone") if i.tone else None, lambda i: i.tone),
    "gender": (lambda i: _rest(i, "gender"), lambda i: i.gender),
    "hair": (lambda i: _rest(i, "hair", "root") if i.hair else None, lambda i: i.hair),
    "role": (lambda i: _rest(i, "role", "root") if i.role else None, lambda i: i.role),
    "color": (lambda i: _rest(i, "color") if i.color else None, lambda i: i.color),
    "direction": (lambda i: _rest(i, "direction"), lambda i: i.direction),
    "expression": (lambda i: i.group if "face-" in i.subgroup else None, lambda i: i.subject),
    "replacement": (lambda i: None if i.tone else i.subgroup, lambda i: i.root),
    "random": (lambda i: "any", lambda i: i.root),
}
KINDS = (*RULES, "style")


class Edits:
    """Draws captions that are wrong in exactly one respect, from the captions of `items`."""

    def __init__(self, items: Sequence[EmojiItem], *, seed: int) -> None:
        self.random = Random(seed)
        self.groups: dict[str, dict[Hashable, list[EmojiItem]]] = {}
        for kind, (key, value) in RULES.items():
            groups: dict[Hashable, list[EmojiItem]] = defaultdict(list)
            for item in items:
                if key(item) is not None:
                    groups[key(item)].append(item)
            self.groups[kind] = {k: group for k, group in groups.items() if len({value(i) for i in group}) > 1}

    def of(self, item: EmojiItem, kind: str) -> str | None:
        """A wrong caption, or None where this kind doesn't apply. Only kind "style" names a style."""
        right = caption(item, style=False)
        if kind == "style":
            return f"{right}, {self.random.choice([style for style in STYLES if style != item.style])} style"
        key, value = RULES[kind]
        group = self.groups[kind].get(key(item))
        for _ in range(20 if group else 0):
            other = self.random.choice(group or [])
            if value(other) != value(item) and caption(other, style=False) != right:
                return caption(other, style=False)
        return None

    def some(self, item: EmojiItem, number: int, kinds: Iterable[str]) -> list[str]:
        """Up to `number` wrong captions of different random kinds."""
        order = list(kinds)
        self.random.shuffle(order)
        return [wrong for wrong in (self.of(item, kind) for kind in order) if wrong][:number]
