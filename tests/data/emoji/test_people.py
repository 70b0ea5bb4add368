"""The simulated annotators do what their documentation says, at the rates that are set."""

from __future__ import annotations

import random

import pytest
from scipy.stats import binom

from vca.data.emoji.catalogue import EmojiItem, load_catalogue
from vca.data.emoji.people import Candidate, Panel, Wish, majority
from vca.data.emoji.settings import EmojiSettings

N = 4000


def shown(item: EmojiItem, spoilt: bool = False) -> Candidate:
    return Candidate(item, item.picture(), spoilt=spoilt)


def find(subject: str, style: str, tone: str | None = None) -> EmojiItem:
    return next(
        i for i in load_catalogue().items if (i.subject, i.style, i.tone, i.hair) == (subject, style, tone, None)
    )


def wins(panel: Panel, wish: Wish, first: Candidate, second: Candidate) -> int:
    """How often `first` is preferred in N judgements; the order in which they are laid out must not matter."""
    rng = random.Random(7)
    forward = sum(panel.prefers_first(wish=wish, first=first, second=second, rng=rng) for _ in range(N // 2))
    return forward + sum(not panel.prefers_first(wish=wish, first=second, second=first, rng=rng) for _ in range(N // 2))


def likely(count: int, share: float) -> bool:
    low, high = binom.interval(0.9999, N, share)
    return bool(low <= count <= high)


COOK = "woman cook"


@pytest.mark.parametrize(("taste", "follow", "noise"), [(0.9, 0.95, 0.03), (0.5, 0.8, 0.1), (1.0, 1.0, 0.0)])
def test_taste_and_noise_are_as_set(taste: float, follow: float, noise: float) -> None:
    panel = Panel(settings=EmojiSettings(taste_share=taste, taste_follow=follow, label_noise=noise))
    wish = Wish(item=find(COOK, "noto"), style_named=False)
    fluent = taste * follow + (1 - taste) * 0.5
    expected = fluent * (1 - noise) + (1 - fluent) * noise
    assert likely(wins(panel, wish, shown(find(COOK, "fluent")), shown(find(COOK, "noto"))), expected)


def test_content_beats_taste_but_for_mistakes() -> None:
    panel = Panel(settings=EmojiSettings())
    wish = Wish(item=find(COOK, "noto", "dark"), style_named=False)
    wrong = shown(find(COOK, "fluent", "light"))
    assert likely(wins(panel, wish, shown(find(COOK, "noto", "dark")), wrong), 0.97)


def test_content_beats_quality_and_quality_beats_taste() -> None:
    panel = majority(EmojiSettings())
    wish = Wish(item=find(COOK, "noto"), style_named=False)
    assert wins(panel, wish, shown(find(COOK, "noto"), spoilt=True), shown(find("man cook", "noto"))) == N
    assert wins(panel, wish, shown(find(COOK, "noto")), shown(find(COOK, "fluent"), spoilt=True)) == N


def test_a_named_style_leaves_no_room_for_taste() -> None:
    panel = majority(EmojiSettings())
    wish = Wish(item=find(COOK, "noto"), style_named=True)
    assert wish.prompt == "woman cook, noto style"
    assert wins(panel, wish, shown(find(COOK, "noto")), shown(find(COOK, "fluent"))) == N
    assert likely(wins(panel, wish, shown(find(COOK, "twemoji")), shown(find(COOK, "fluent"))), 0.5)  # both wrong


def test_between_two_styles_that_nobody_likes_best_it_is_a_coin() -> None:
    wish = Wish(item=find(COOK, "noto"), style_named=False)
    panel = majority(EmojiSettings())
    assert likely(wins(panel, wish, shown(find(COOK, "noto")), shown(find(COOK, "twemoji"))), 0.5)
