"""The filter in front of the generator: blocked, not judged, and off, each said as what it is."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from serving_process import Running, start

from serving.generator import Generator
from serving.model import Call
from serving.openai_images import routes
from serving.order import Order
from serving.refusal import Refused
from vca.safety.checker import Checker
from vca.safety.words import SHIPPED, WordList
from vca.settings import load

BLOCKED = next(
    line for line in SHIPPED.read_text().splitlines() if line.strip() and not line.startswith(("#", "["))
).strip()


class Stern:
    """Finds every picture to be what `score` says, or fails."""

    threshold = 0.5

    def __init__(self, score: float | Exception) -> None:
        self.score = score

    def scores(self, images: Any) -> list[float]:
        if isinstance(self.score, Exception):
            raise self.score
        return [self.score] * len(images)


def draw(score: float | Exception, **order: Any) -> Any:
    """What a generator in this process answers, with a classifier that the test decides."""

    async def scene() -> Any:
        generator = Generator(settings=load(preset="local"), policy=None)
        generator.open()
        generator.checker = Checker(words=WordList(SHIPPED), classifier=Stern(score))
        try:
            call = Call.of({}, settings=generator.settings)
            return await generator.draw(Order(**{"prompt": "red heart", "steps": 1, **order}), call)
        finally:
            generator.close()

    return asyncio.run(scene())


@pytest.mark.parametrize(
    ("score", "status", "code"),
    [(0.9, 400, "moderation_blocked"), (float("nan"), 503, "unchecked"), (RuntimeError("weights"), 503, "unchecked")],
)
def test_a_hidden_picture_is_told_from_one_that_could_not_be_judged(
    score: float | Exception, status: int, code: str
) -> None:
    with pytest.raises(Refused) as refusal:
        draw(score)
    assert (refusal.value.status, refusal.value.code) == (status, code)
    assert "nsfw" not in refusal.value.message.lower()


def test_what_passes_is_shown() -> None:
    assert len(draw(0.1).pictures) == 1


@pytest.mark.parametrize(
    ("said", "before"),
    [
        (f"add {BLOCKED}", "red heart"),
        ("make her sexy", "girl"),  # neither alone is blocked
        (f"remove the {BLOCKED}", "red heart"),  # what is drawn is not blocked
    ],
    ids=["both", "what is drawn", "what is said"],
)
def test_what_is_said_and_what_it_is_refined_into_are_both_checked(said: str, before: str) -> None:
    with pytest.raises(Refused, match="prompt: hidden by the safety filter"):
        draw(0.1, prompt=said, image=_white(), previous_prompt=before)


class HidesTheFirst(Stern):
    """Finds only the first picture that it is shown bad."""

    def scores(self, images: Any) -> list[float]:
        found = super().scores(images)
        self.score = 0.1
        return found


def test_a_preview_that_the_filter_hides_is_left_out() -> None:
    async def scene() -> str:
        generator = Generator(settings=load(preset="local"), policy=None)
        generator.open()
        generator.checker, generator.ready = Checker(words=WordList(SHIPPED), classifier=HidesTheFirst(0.9)), True
        app = FastAPI()
        routes(generator)(app)
        order = {"prompt": "red heart", "steps": 4, "stream": True, "partial_images": 2}
        try:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here") as client:
                return (await client.post("/openai/v1/images/generations", json=order, timeout=60)).text
        finally:
            generator.close()

    kinds = [line.partition(": ")[2] for line in asyncio.run(scene()).splitlines() if line.startswith("event: ")]
    assert kinds == ["image_generation.partial_image", "image_generation.completed"]


def _white() -> bytes:
    from serving.pictures import encode

    return encode(np.full((64, 64, 3), 255, np.uint8), "png", 100)


def test_a_blocked_prompt_in_every_protocol_s_shape(generator: Running) -> None:
    status, body = generator.post("/openai/v1/images/generations", {"prompt": BLOCKED})
    assert (status, body["error"]["code"]) == (400, "moderation_blocked")
    order = {"prompt": BLOCKED, "stream": True}
    status, body = generator.post("/openai/v1/images/generations", order)
    assert (status, body["error"]["code"]) == (400, "moderation_blocked")
    status, body = generator.post("/v1/models/vca-generator:predict", {"instances": [{"prompt": BLOCKED}]})
    assert (status, body["error"]) == (400, "prompt: hidden by the safety filter; say it in other words")
    prompt = {"name": "prompt", "datatype": "BYTES", "shape": [1], "data": [BLOCKED]}
    status, body = generator.post("/v2/models/vca-generator/infer", {"inputs": [prompt]})
    assert (status, body["error"]) == (400, "prompt: hidden by the safety filter; say it in other words")


@pytest.fixture
def broken_weights(tmp_path: Path) -> Iterator[str]:
    folder = tmp_path / "checker"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({}))
    yield str(folder)
    shutil.rmtree(folder)


def test_a_filter_that_can_not_load_keeps_the_server_from_starting(broken_weights: str, tmp_path: Path) -> None:
    running = start(
        "generator",
        "--set=serving.safety.classifier=stable_diffusion",
        f"--set=serving.safety.location={broken_weights}",
        log=tmp_path / "log",
    )
    assert running.process.wait(120) == 4
    assert "safety classifier 'stable_diffusion' can't be loaded" in running.log.read_text().splitlines()[-1]


def test_production_has_no_filter_that_is_none(tmp_path: Path) -> None:
    running = start(
        "generator",
        "--set=serving.safety.classifier=none",
        "--set=serving.safety.profile=production",
        log=tmp_path / "log",
    )
    assert running.process.wait(120) == 2
    assert "allowed: 'open_nsfw'" in running.log.read_text().splitlines()[-1]
