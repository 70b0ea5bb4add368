"""Which pictures one edit leads to: a graph over items, found through an index by factor, never by comparing pairs.

Two items are neighbours of a kind if they agree in everything that this kind leaves alone and differ in what it
changes. A graph is built over the items of one side of a split, so no edge leads from one side to another.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

from vca.data.emoji.catalogue import EmojiItem
from vca.data.emoji.wording import instruction

KINDS = (
    "skin_tone",
    "hair",
    "role",
    "gender",
    "colour",
    "style",
    "direction",
    "species",
    "expression",
    "replacement",
)
_NO_EXPRESSION = {"face-costume", "monkey-face"}
_NO_SKULLS = {"skull", "skull and crossbones"}
# Pictures of written words: their official names don't say what they look like in one noun.
_NO_REPLACEMENT = {"alphanum", "person-role", "family"}


@dataclass(frozen=True, kw_only=True)
class Edit:
    """One edge: said as `instruction`, it leads to the item `target_id`."""

    kind: str
    target_id: str
    instruction: str


def well_told(items: Iterable[EmojiItem]) -> list[EmojiItem]:
    """The items whose picture is theirs alone: a few vendors draw two names alike, and then no caption is the truth."""
    items = list(items)
    drawn = Counter(item.png for item in items)
    return [item for item in items if drawn[item.png] == 1]


class EditGraph:
    """The edit graph over `items`; building it takes one pass."""

    def __init__(self, items: Sequence[EmojiItem]) -> None:
        self.items = tuple(items)
        self.by_id = {item.item_id: item for item in self.items}
        self._buckets: defaultdict[Hashable, list[EmojiItem]] = defaultdict(list)
        for item in self.items:
            for kind in KINDS:
                if (fixed := _fixed(kind, item)) is not None and changed(kind, item) is not None:
                    self._buckets[kind, fixed].append(item)

    def neighbours(self, item: EmojiItem, kind: str) -> list[EmojiItem]:
        """The items that an edit of this kind leads to."""
        fixed = _fixed(kind, item)
        if fixed is None:
            return []
        now = changed(kind, item)
        return [other for other in self._buckets.get((kind, fixed), ()) if changed(kind, other) != now]

    def edits(self, item: EmojiItem, rng: random.Random | None = None) -> list[Edit]:
        """Every edge from `item`, put into words; `rng` varies them."""
        return [
            Edit(kind=kind, target_id=target.item_id, instruction=instruction(kind, target, rng))
            for kind in KINDS
            for target in self.neighbours(item, kind)
        ]

    def sources(self, kind: str) -> list[EmojiItem]:
        """The items that have a neighbour of this kind."""
        return [item for item in self.items if self.neighbours(item, kind)]


def _fixed(kind: str, item: EmojiItem) -> Hashable | None:
    """What an edit of this kind leaves alone; None where the kind doesn't apply to the item."""
    person = (item.tone, item.hair, item.direction)
    match kind:
        case "skin_tone":
            return (item.style, item.subject, item.hair, item.direction)
        case "hair":
            return (item.style, item.subject, item.tone, item.direction) if item.group == "people-body" else None
        case "role":
            return (item.style, item.gender, *person) if item.role else None
        case "gender":
            return (item.style, item.root, *person) if item.group == "people-body" else None
        case "colour":
            return (item.style, item.root) if item.color else None
        case "style":
            return (item.subject, *person)
        case "direction":
            return (item.style, item.subject, item.tone, item.hair)
        case "species":
            return (item.style, _as_face(item)) if _has_expression(item) else None
        case "expression":
            return (item.style, item.species) if _has_expression(item) else None
        case _:
            said = item.subgroup in _NO_REPLACEMENT or item.subject.startswith("input ")
            return None if said or _has_expression(item) else (item.style, item.subgroup, item.gender, *person)


def changed(kind: str, item: EmojiItem) -> str | None:
    """The value that an edit of this kind changes; None where no such edit can lead to the item."""
    match kind:
        case "role":
            return item.role if _is_noun_role(item) else None
        case "gender":  # "women", or a picture that shows one without saying so, is not what "make it a woman" gives
            return item.gender if item.gender in item.subject.split() else None
        case "expression":
            return item.subject
        case "replacement":
            return item.root
        case "skin_tone":
            return item.tone
        case "colour":
            return item.color
        case "hair" | "style" | "direction" | "species":
            value: str | None = getattr(item, kind)
            return value
        case _:
            raise ValueError(f"no kind of edit is called {kind!r}")


def _is_noun_role(item: EmojiItem) -> bool:
    """ "pilot" can be said as "make them a pilot"; "in tuxedo" and "person with veil" can't."""
    role = item.role or ""
    plain = item.subject in (role, f"{item.gender} {role}")
    return plain and not role.startswith(("in ", "wearing ", "feeding ")) and role.split()[0] != "person"


def _has_expression(item: EmojiItem) -> bool:
    return item.species is not None and item.subgroup not in _NO_EXPRESSION and item.subject not in _NO_SKULLS


def _as_face(item: EmojiItem) -> str:
    return " ".join("face" if word == "cat" else word for word in item.subject.split())
