"""The generator with its device in the test's hands: what it is asked for, flat pictures, failures. In this process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from serving import generator as module
from serving.drawing import Picture, advance
from serving.generator import Generator, Result
from serving.model import Call
from serving.order import SEEDS, Order
from serving.pictures import encode
from serving.refusal import Refused
from vca.settings import load


def draw(monkeypatch: pytest.MonkeyPatch, turn: Callable[[list[Picture]], None], **order: Any) -> Result:
    """What a generator answers whose device does `turn`."""
    monkeypatch.setattr(module, "advance", turn)

    async def scene() -> Result:
        generator = Generator(settings=load(preset="local"), policy=None)
        generator.open()
        try:
            call = Call.of({}, settings=generator.settings)
            return await generator.draw(Order(**{"prompt": "red heart", "steps": 1, "seed": 7, **order}), call)
        finally:
            generator.close()

    return asyncio.run(scene())


def spoiling(spoilt: Callable[[int], bool], how: str) -> Callable[[list[Picture]], None]:
    """The device, but pictures of some seeds come out spoilt."""

    def turn(pictures: list[Picture]) -> None:
        advance(pictures)
        for picture in pictures:
            if picture.done and spoilt(picture.seed):
                assert picture.latents_CHW is not None
                if how == "NaN":
                    picture.latents_CHW = picture.latents_CHW * float("nan")
                else:
                    picture.pixels_HWC = np.full((64, 64, 3), 255 if how == "white" else 0, np.uint8)

    return turn


@pytest.mark.parametrize("how", ["black", "white", "NaN"])
def test_a_flat_picture_is_drawn_again_from_other_noise(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    result = draw(monkeypatch, spoiling(lambda seed: seed == 8, how), n=3)
    first, second, third = (picture.seed for picture in result.pictures)
    assert (first, third) == (7, 9)
    assert second not in (7, 8, 9)
    assert min(picture.pixels.std() for picture in result.pictures) > 1


def test_what_was_ordered_reaches_the_device_and_a_second_try_differs_in_its_noise_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: dict[int, tuple[Any, ...]] = {}

    def turn(pictures: list[Picture]) -> None:
        for picture in pictures:
            start = float(np.asarray(picture.previous).mean())
            seen[picture.seed] = (picture.prompt, picture.steps, picture.guidance, picture.strength, start)
        spoiling(lambda seed: seed == 7, "black")(pictures)

    grey = encode(np.full((64, 64, 3), 90, np.uint8), "png", 100)
    draw(monkeypatch, turn, prompt="x", refine=False, image=grey, steps=3, guidance=2.25, strength=0.4)
    assert list(seen.values()) == [("x", 3, 2.25, 0.4, 90.0)] * 2
    assert len(seen) == 2


def test_seeds_count_on_from_the_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    result = draw(monkeypatch, advance, seed=SEEDS - 1, n=2)
    assert [picture.seed for picture in result.pictures] == [SEEDS - 1, 0]


def test_a_caller_shortens_the_deadline_and_never_lengthens_it() -> None:
    settings = load(preset="local", overrides=["serving.deadline_s=50"]).serving
    now = time.monotonic()
    left = {asked: Call.of({"X-Request-Timeout": asked}, settings=settings).deadline - now for asked in ("20", "1000")}
    assert left == {"20": pytest.approx(20, abs=5), "1000": pytest.approx(50, abs=5)}


def test_flat_twice_is_told_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Refused, match="nothing but an empty picture") as refusal:
        draw(monkeypatch, spoiling(lambda seed: True, "black"))
    assert refusal.value.code == "empty_picture"


def test_a_device_that_fails_is_told_without_its_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    def turn(pictures: list[Picture]) -> None:
        raise RuntimeError("CUDA out of memory at 0x7f")

    with pytest.raises(Refused) as refusal:
        draw(monkeypatch, turn)
    assert (refusal.value.status, refusal.value.code) == (503, "device_failed")
    assert "CUDA" not in refusal.value.message
