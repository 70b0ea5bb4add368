"""The generator's own faults, made on purpose: flat pictures, a device that fails. In this process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from serving import generator as module
from serving.drawing import Picture, advance
from serving.generator import Generator, Result
from serving.model import Call
from serving.order import Order
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
