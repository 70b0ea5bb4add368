"""Dialogues as seeded walks on the edit graph: a picture in mind, reached in 3 to 8 edits said in words.

No real person is quoted: the walk is simulated, but each round's target is a real picture with a true caption.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vca.data.emoji.catalogue import EmojiItem, caption
from vca.data.emoji.graph import KINDS, EditGraph, changed
from vca.data.emoji.wording import instruction
from vca.records import Dialogue, Role, Turn

MIN_EDITS, MAX_EDITS = 3, 8
_TRIES = 400  # walks in a row without a new dialogue: then there are hardly any more


@dataclass(frozen=True)
class _Step:
    kind: str
    item: EmojiItem


def dialogues(
    *, items: Sequence[EmojiItem], count: int, role: Role, style_open: float, seed: int, source: str
) -> Iterator[Dialogue]:
    """Up to `count` distinct dialogues among `items`, one at a time.

    A share `style_open` of them leaves the drawing style open: no caption names it, no edit changes it, and the
    targets' style is drawn evenly, so that a term that imitates the targets can't teach a taste. No walk comes back to
    a value it had before, so none shows a picture twice. Kinds of edits that were rare so far are preferred, and
    starts are spread over the groups, or people, most of the pictures, would fill every dialogue with skin tones.
    """
    rng = random.Random(f"{seed}:{role}:dialogues")
    graph = EditGraph(items)
    starts = {kind: by_group(found) for kind in KINDS if (found := graph.sources(kind))}
    used: Counter[str] = Counter()
    seen: set[tuple[object, ...]] = set()
    misses = 0
    while len(seen) < count and misses < _TRIES and starts:
        opened = rng.random() < style_open
        walk = _walk(graph, starts, used, opened, rng)
        key = (opened, *(step.item.item_id for step in walk))
        if len(walk) <= MIN_EDITS or key in seen:
            misses += 1
            continue
        misses = 0
        seen.add(key)
        used.update("expression" if step.kind == "species" else step.kind for step in walk[1:])
        yield _told(walk, opened, f"{source}-{role}-{len(seen):05d}", role, source, rng)


def _walk(
    graph: EditGraph, starts: dict[str, list[list[EmojiItem]]], used: Counter[str], style_open: bool, rng: random.Random
) -> list[_Step]:
    """The start and its edits; fewer than asked for where the graph ends."""
    kinds = [kind for kind in starts if not (style_open and kind == "style")]
    first = rng.choice(rng.choice(starts[_rarest(kinds, used, rng)]))
    walk, had = [_Step("initial", first)], {(kind, changed(kind, first)) for kind in KINDS}
    for _ in range(rng.randint(MIN_EDITS, MAX_EDITS)):
        ways = {
            kind: fresh
            for kind in kinds
            if (fresh := [t for t in graph.neighbours(walk[-1].item, kind) if (kind, changed(kind, t)) not in had])
        }
        if not ways:
            break
        kind = _rarest(list(ways), used + Counter(step.kind for step in walk), rng)
        walk.append(_Step(kind, rng.choice(ways[kind])))
        had |= {(kind, changed(kind, walk[-1].item)) for kind in KINDS}
    return walk


def by_group(items: Sequence[EmojiItem]) -> list[list[EmojiItem]]:
    """The items by group, for choices that give each group the same chance."""
    groups: dict[str, list[EmojiItem]] = {}
    for item in items:
        groups.setdefault(item.group, []).append(item)
    return list(groups.values())


def _rarest(kinds: list[str], used: Counter[str], rng: random.Random) -> str:
    """One of `kinds`, the less used the likelier. Species, a handful of cats, counts as an expression."""
    weights = [(1 + used["expression" if kind == "species" else kind]) ** -2.0 for kind in kinds]
    return rng.choices(kinds, weights=weights)[0]


def _told(walk: list[_Step], style_open: bool, name: str, role: Role, source: str, rng: random.Random) -> Dialogue:
    captions = [caption(step.item, style=not style_open) for step in walk]
    turns = tuple(
        Turn(
            round=n,
            feedback="" if n == 1 else instruction(step.kind, step.item, rng),
            refined_prompt=text,
            operation=step.kind,
            target=step.item.picture(),
        )
        for n, (step, text) in enumerate(zip(walk, captions, strict=True), start=1)
    )
    return Dialogue(
        dialogue_id=name,
        source=source,
        theme=walk[-1].item.group,
        style=None if style_open else walk[-1].item.style,
        initial_prompt=captions[0],
        intent=captions[-1],
        turns=turns,
        split="test" if role == "test" else "train",
        role=role,
    )
