"""The edit graph: what an edge may change, how it is said, and that saying it leads to the target's caption."""

from __future__ import annotations

import random
import time
from collections import Counter

import pytest

from vca.data.emoji.catalogue import EmojiItem, caption, load_catalogue
from vca.data.emoji.graph import KINDS, EditGraph, changed, well_told
from vca.data.emoji.source import sides
from vca.data.emoji.wording import instruction, with_article
from vca.refine.rules import refine_rules

LEFT_ALONE = {
    "skin_tone": ("style", "subject", "hair", "direction"),
    "hair": ("style", "subject", "tone", "direction"),
    "role": ("style", "gender", "tone", "hair", "direction"),
    "gender": ("style", "root", "tone", "hair", "direction"),
    "colour": ("style", "root"),
    "style": ("subject", "tone", "hair", "direction"),
    "direction": ("style", "subject", "tone", "hair"),
    "species": ("style",),
    "expression": ("style", "species"),
    "replacement": ("style", "subgroup", "tone", "gender", "hair", "direction"),
}


@pytest.fixture(scope="module")
def train() -> EditGraph:
    return EditGraph(sides(load_catalogue())[0])


def sample(graph: EditGraph, kind: str, count: int) -> list[tuple[EmojiItem, EmojiItem]]:
    rng = random.Random(kind)
    sources = graph.sources(kind)
    return [(item, rng.choice(graph.neighbours(item, kind))) for item in rng.sample(sources, min(count, len(sources)))]


@pytest.mark.parametrize("kind", KINDS)
def test_an_edge_changes_its_factor_and_leaves_the_rest(train: EditGraph, kind: str) -> None:
    for item, target in sample(train, kind, 300):
        assert changed(kind, target) not in (None, changed(kind, item))
        for name in LEFT_ALONE[kind]:
            assert getattr(item, name) == getattr(target, name), (kind, item.item_id, target.item_id)


def test_every_kind_that_the_pictures_offer_has_edges(train: EditGraph) -> None:
    found = {kind for kind in KINDS if train.sources(kind)}
    assert found >= set(KINDS) - {"direction"}


def test_the_index_finds_what_comparing_all_pairs_finds(train: EditGraph) -> None:
    items = [item for item in train.items if item.root in ("heart", "firefighter", "singer")]
    graph = EditGraph(items)
    for item in items:
        tones = {t.item_id for t in graph.neighbours(item, "skin_tone")}
        expected = {
            t.item_id
            for t in items
            if t.tone and t.tone != item.tone and (t.style, t.subject, t.hair) == (item.style, item.subject, item.hair)
        }
        assert tones == expected
        colours = {t.color for t in graph.neighbours(item, "colour")}
        assert colours == (
            {t.color for t in items if t.style == item.style} - {item.color, None} if item.color else set()
        )


def test_sides_share_no_key_and_no_picture() -> None:
    parts = sides(load_catalogue())
    for a in range(3):
        for b in range(a):
            assert not {item.key for item in parts[a]} & {item.key for item in parts[b]}
            assert not {item.png for item in parts[a]} & {item.png for item in parts[b]}
    assert all(item.split == "test" for item in parts[2])
    assert not any(item.split == "test" for item in (*parts[0], *parts[1]))


def test_pictures_drawn_for_two_names_are_left_out() -> None:
    catalogue = load_catalogue()
    kept = well_told(catalogue.items)
    assert max(Counter(item.png for item in kept).values()) == 1
    assert 0 < len(catalogue.items) - len(kept) < 50


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_said_gives_the_targets_caption_by_the_rules(train: EditGraph, kind: str) -> None:
    rng = random.Random(1)
    wrong = []
    edges = sample(train, kind, 250)
    for item, target in edges:
        for style in (True,) if kind == "style" else (True, False):
            said = instruction(kind, target, rng)
            got = refine_rules(prompt=caption(item, style=style), feedback=said).prompt
            if got != caption(target, style=style):
                wrong.append((caption(item, style=style), said, got))
    # "index pointing at the viewer": the rules keep "at the viewer", which could be a place, when the subject changes
    allowed = 0.02 * len(edges) if kind == "replacement" else 0
    assert len(wrong) <= allowed, wrong[:5]


@pytest.mark.parametrize(
    ("phrase", "said"),
    [
        ("pilot", "a pilot"),
        ("astronaut", "an astronaut"),
        ("unicorn", "a unicorn"),
        ("umbrella", "an umbrella"),
        ("one-piece swimsuit", "a one-piece swimsuit"),
        ("hourglass done", "an hourglass done"),
        ("x-ray", "an x-ray"),
        ("euro banknote", "a euro banknote"),
        ("ewe", "a ewe"),
        ("peanuts", "peanuts"),
        ("bus", "a bus"),
        ("rhinoceros", "a rhinoceros"),
        ("glass of milk", "a glass of milk"),
        ("nest with eggs", "a nest with eggs"),
        ("person lifting weights", "a person lifting weights"),
        ("money with wings", "money with wings"),
        ("milky way", "the milky way"),
        ("Santa Claus", "Santa Claus"),
        ("seven-thirty", "seven-thirty"),
        ("cat with tears of joy", "a cat with tears of joy"),
    ],
)
def test_articles(phrase: str, said: str) -> None:
    assert with_article(phrase) == said


def test_edits_are_told_and_lead_to_items_of_the_graph(train: EditGraph) -> None:
    item = next(i for i in train.items if i.subject == "woman firefighter" and i.tone == "medium" and i.style == "noto")
    edits = train.edits(item)
    said = {edit.instruction for edit in edits}
    assert "make the skin dark" in said
    roles = {t.role for t in train.items if (t.style, t.gender, t.tone) == ("noto", "woman", "medium")}
    assert "artist" in roles
    assert "make them an artist" in said
    assert not any("firefighter" in words for words in said)
    assert "draw it in twemoji style" in said
    assert all(edit.target_id in train.by_id and edit.target_id != item.item_id for edit in edits)
    assert {edit.kind for edit in edits} >= {"skin_tone", "role", "gender", "style"}


def test_building_is_linear_not_quadratic(train: EditGraph) -> None:
    """Processor time of the whole graph; comparing all pairs of 7 000 items takes minutes."""
    start = time.process_time()
    EditGraph(train.items)
    assert time.process_time() - start < 2.0
