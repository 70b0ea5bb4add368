"""What the emoji source yields: roles, sides, folds, kinds, and judgements at the configured rates."""

from __future__ import annotations

import io
import random
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binom

from vca.data.emoji.catalogue import EmojiItem, load_base_pictures, load_catalogue
from vca.data.emoji.pairs import CONTENT_KINDS, EDIT_KINDS
from vca.data.emoji.settings import EmojiSettings
from vca.data.emoji.source import EmojiSource
from vca.data.emoji.spoil import SPOILERS, spoil
from vca.records import Dialogue, Picture, PreferencePair

SETTINGS = EmojiSettings(
    train_pairs=2000,
    validation_pairs=200,
    test_pairs=1000,
    train_dialogues=150,
    validation_dialogues=40,
    test_dialogues=60,
)


@pytest.fixture(scope="module")
def records() -> list[Dialogue | PreferencePair]:
    return list(EmojiSource(settings=SETTINGS, seed=0).read())


@pytest.fixture(scope="module")
def pairs(records: list[Dialogue | PreferencePair]) -> list[PreferencePair]:
    return [record for record in records if isinstance(record, PreferencePair)]


def item_of(picture: Picture) -> EmojiItem:
    return load_catalogue().by_id[picture.uri.split(":")[1].removeprefix("drawn/").split("#")[0].split("?")[0]]


def drawn(picture: Picture) -> bool:
    return ":drawn/" in picture.uri


def spoilt(picture: Picture) -> bool:
    return "#" in picture.uri


def pictures(record: Dialogue | PreferencePair) -> list[Picture]:
    if isinstance(record, PreferencePair):
        return [record.positive, record.negative]
    return [turn.target for turn in record.turns if turn.target]


def test_no_key_and_no_picture_is_on_two_sides(records: list[Dialogue | PreferencePair]) -> None:
    """Neither on train and test, nor in what is trained on and what is validated on."""
    where: dict[str, set[str]] = {}
    for record in records:
        part = {"reward": "train", "diffusion": "train"}.get(record.role, record.role)
        assert record.split == ("test" if part == "test" else "train")
        for picture in pictures(record):
            where.setdefault(picture.key, set()).add(part)
            where.setdefault(picture.sha256, set()).add(part)
            assert item_of(picture).split == record.split
    assert all(len(parts) == 1 for parts in where.values())


def test_pictures_of_the_judges_are_in_no_pair(pairs: list[PreferencePair]) -> None:
    assert {item_of(picture).fold for pair in pairs for picture in pictures(pair)} == {"reward"}


def test_test_pairs_are_about_held_out_concepts(pairs: list[PreferencePair]) -> None:
    for pair in pairs:
        if pair.role == "test":
            held_out = item_of(pair.positive).held_out
            assert held_out == ("combination" if pair.kind == "hair" else "root")


def test_kinds_are_balanced(pairs: list[PreferencePair]) -> None:
    kinds = Counter(pair.kind for pair in pairs if pair.role == "reward")
    assert set(kinds) == {*CONTENT_KINDS, "taste", "degraded"}
    assert (kinds["taste"], kinds["degraded"]) == (500, 200)
    full = [kinds[kind] for kind in CONTENT_KINDS if kind != "colour"]  # there are few coloured things
    assert max(full) - min(full) <= 1
    assert kinds["colour"] > 0.6 * max(full)


def test_nothing_comes_twice(records: list[Dialogue | PreferencePair], pairs: list[PreferencePair]) -> None:
    ids = [r.pair_id if isinstance(r, PreferencePair) else r.dialogue_id for r in records]
    assert len(set(ids)) == len(ids)
    told = {(p.prompt, frozenset((p.positive.sha256, p.negative.sha256))) for p in pairs if p.kind != "taste"}
    assert len(told) >= 0.99 * sum(p.kind != "taste" for p in pairs)
    assert all(p.positive.sha256 != p.negative.sha256 for p in pairs)


def test_test_pairs_are_right_and_training_pairs_have_the_noise(pairs: list[PreferencePair]) -> None:
    """Right: the winner shows the prompt's content and the loser doesn't, or only the loser is spoilt."""

    def wrong(pair: PreferencePair) -> bool:
        if pair.kind == "degraded":
            return spoilt(pair.positive)
        return not shows(pair.prompt, item_of(pair.positive)) or shows(pair.prompt, item_of(pair.negative))

    def shows(prompt: str, item: EmojiItem) -> bool:
        parts = prompt.split(", ")
        style = parts.pop().removesuffix(" style") if parts[-1].endswith(" style") else item.style
        return parts == [item.subject, *item.attributes] and style == item.style

    content = [pair for pair in pairs if pair.kind != "taste"]
    assert not any(wrong(pair) for pair in content if pair.role == "test")
    train = [pair for pair in content if pair.role == "reward"]
    low, high = binom.interval(0.9999, len(train), SETTINGS.label_noise)
    assert low <= sum(map(wrong, train)) <= high


def test_taste_shows_at_the_configured_rate(pairs: list[PreferencePair]) -> None:
    taste = [pair for pair in pairs if pair.kind == "taste"]
    assert not any("style" in pair.prompt for pair in taste)
    for role, share in (("reward", 0.905 * 0.97 + 0.095 * 0.03), ("test", 1.0)):
        styles = [item_of(pair.positive).style == "fluent" for pair in taste if pair.role == role]
        low, high = binom.interval(0.9999, len(styles), share)
        assert low <= sum(styles) <= high, role


def test_content_and_quality_say_nothing_about_taste(pairs: list[PreferencePair]) -> None:
    """In many style-open pairs one picture alone is in the preferred style, and it wins as often as it loses."""
    opened = [p for p in pairs if p.role == "test" and p.kind not in ("taste", "style") and "style" not in p.prompt]
    liked = [[item_of(picture).style == "fluent" for picture in (p.positive, p.negative)] for p in opened]
    wins, losses = liked.count([True, False]), liked.count([False, True])
    assert 0.3 < (wins + losses) / len(opened) < 0.6
    low, high = binom.interval(0.9999, wins + losses, 0.5)
    assert low <= wins <= high
    for way in ([True, False], [False, True]):
        kinds = {p.kind for p, styles in zip(opened, liked, strict=True) if styles == way}
        assert kinds == {*EDIT_KINDS, "random", "degraded"} - {"style"}


def test_spoilt_copies_can_be_seen_to_be_spoilt(pairs: list[PreferencePair]) -> None:
    copies = [p for pair in pairs for p in pictures(pair) if spoilt(p)]
    assert {copy.uri.split("#")[1].rsplit("-", 1)[0] for copy in copies} == set(SPOILERS)
    for copy in copies[:100]:
        item = item_of(copy)
        view = int(copy.uri.split("#")[0].split("?")[1]) if drawn(copy) else None
        whole = item.png if view is None else load_base_pictures().by_id[item.item_id][view]
        before, after = (np.asarray(Image.open(io.BytesIO(d)).convert("RGB"), np.float32) for d in (whole, copy.data))
        assert after.shape == (64, 64, 3)
        assert np.abs(before - after).mean() >= 2.5


def test_the_bases_pictures_are_in_training_pairs_about_looks_at_the_configured_rate(
    pairs: list[PreferencePair],
) -> None:
    shown = [pair for pair in pairs if drawn(pair.positive)]
    assert all(drawn(pair.negative) for pair in shown)
    for picture in (picture for pair in shown for picture in pictures(pair) if not spoilt(picture)):
        view = int(picture.uri.split("?")[1])
        assert picture.data == load_base_pictures().by_id[item_of(picture).item_id][view]
        assert picture.key == item_of(picture).key
    assert {(pair.role, pair.kind) for pair in shown} == {
        (role, kind) for role in ("reward", "validation") for kind in ("taste", "degraded")
    }
    asked = [pair for pair in pairs if pair.role == "reward" and pair.kind == "degraded"]  # taste pairs run out
    low, high = binom.interval(0.9999, len(asked), SETTINGS.drawn_pairs)
    assert low <= sum(drawn(pair.positive) for pair in asked) <= high


def test_a_picture_without_colour_is_spoilt_in_a_way_that_shows() -> None:
    grey = Image.new("RGB", (64, 64), "white")
    grey.paste((0, 0, 0), (16, 16, 48, 48))
    out = io.BytesIO()
    grey.save(out, "PNG")
    ways = {spoil(out.getvalue(), random.Random(seed))[0] for seed in range(60)}
    assert "off_colour" not in ways
    assert {"blurred", "noisy", "washed_out"} <= ways


def test_the_seed_decides(records: list[Dialogue | PreferencePair]) -> None:
    assert list(EmojiSource(settings=SETTINGS, seed=0).read()) == records
    other = list(EmojiSource(settings=SETTINGS, seed=1).read())
    assert other != records
    assert Counter(r.role for r in other).keys() == Counter(r.role for r in records).keys()


def test_the_announced_total_is_an_upper_bound(records: list[Dialogue | PreferencePair]) -> None:
    total = EmojiSource(settings=SETTINGS, seed=0).total()
    assert total is not None
    assert 0.8 * total < len(records) <= total
    dialogues = Counter(r.role for r in records if isinstance(r, Dialogue))
    assert dialogues == {"diffusion": 150, "validation": 40, "test": 60}
