"""The generator: pictures from words, and the next round from a picture and feedback.

    python -m serving generator --policy FOLDER --http_port 8080 --grpc_port 8081

Protocols are thin: each makes an `Order` of what was sent and writes down the `Drawn` that come back.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from serving import tensors
from serving.device import Device
from serving.dialogues import Dialogues, Round
from serving.drawing import Picture, Pixels, advance
from serving.model import Call, TensorSpec, VcaModel, on_device, together
from serving.order import SEEDS, Order
from serving.pictures import encode, open_picture
from serving.refusal import Refused
from serving.release import Release, open_release, untrained
from serving.rows import instance_of, rows_of, texts
from vca.errors import ArtifactError, ResourceError
from vca.models.stable_diffusion import StableDiffusion, load_pipeline
from vca.monitoring import metrics
from vca.provenance.credentials import Facts
from vca.provenance.keys import Keys
from vca.provenance.stamp import Stamp
from vca.refine.refiner import Refinement, Refiner, fit, token_counter
from vca.refine.words import split_parts
from vca.reward.remote import RemoteScorer
from vca.safety import checker as safety
from vca.settings import Settings

logger = logging.getLogger(__name__)

NAME = "vca-generator"
_AGAIN = 1_000_003  # added to the seed of a picture that came out flat


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """One finished picture. pixels: [H, W, 3]. score: the reward model's, where best_of asked for it."""

    pixels: Pixels
    seed: int
    score: float | None = None


@dataclass(frozen=True, kw_only=True)
class Result:
    """What an order came to. prompt: what was drawn. notice: a line for the person. cut: words that did not fit."""

    pictures: Sequence[Drawn]
    prompt: str
    dialogue_id: str
    round: int
    release: str
    notice: str | None
    cut: tuple[str, ...]


class Generator(VcaModel[Release]):
    """Serves the policy in `policy`, or the untrained base where there is none."""

    inputs = (
        TensorSpec(name="prompt", datatype="BYTES", shape=[-1]),
        TensorSpec(name="image", datatype="BYTES", shape=[-1]),
        TensorSpec(name="previous_prompt", datatype="BYTES", shape=[-1]),
        TensorSpec(name="dialogue_id", datatype="BYTES", shape=[-1]),
        TensorSpec(name="round", datatype="INT32", shape=[-1]),
        TensorSpec(name="seed", datatype="INT64", shape=[-1]),
        TensorSpec(name="steps", datatype="INT32", shape=[-1]),
        TensorSpec(name="guidance", datatype="FP32", shape=[-1]),
        TensorSpec(name="strength", datatype="FP32", shape=[-1]),
        TensorSpec(name="refine", datatype="BOOL", shape=[-1]),
    )
    outputs = (
        TensorSpec(name="image", datatype="BYTES", shape=[-1]),
        TensorSpec(name="prompt", datatype="BYTES", shape=[-1]),
        TensorSpec(name="seed", datatype="INT64", shape=[-1]),
        TensorSpec(name="dialogue_id", datatype="BYTES", shape=[-1]),
    )
    as_text: ClassVar[Mapping[str, Callable[[bytes], str]]] = {"image": lambda data: base64.b64encode(data).decode()}

    def __init__(self, *, settings: Settings, policy: Path | None, device: str = "cpu") -> None:
        super().__init__(NAME, settings=settings.serving)
        self.everything, self.policy, self.place = settings, policy, device
        self.base: StableDiffusion
        self.refiner: Refiner
        self.checker: safety.Checker
        self.stamp: Stamp | None = None
        url = self.settings.scorer_url
        self.scorer = None if url is None else RemoteScorer(url, timeout_s=self.settings.deadline_s, retries=1)
        self.dialogues = Dialogues(limit=self.settings.dialogues_mb * 1_000_000)

    # What it is

    def open(self) -> None:
        base = self.everything.diffusion.base
        self.base = load_pipeline(
            base, device=self.place, dtype=torch.float32 if self.place == "cpu" else torch.bfloat16
        )
        self.release = self.open_release()
        self.refiner = Refiner(settings=self.everything.refine, count_tokens=token_counter(self.base.tokenizer))
        self.checker = safety.load(self.settings.safety)
        if (folder := self.settings.keys) is not None:
            signs, marks = self.settings.credentials, self.settings.watermark
            self.stamp = Stamp.of(Keys.load(folder), sign=signs, watermark=marks)
        self.device = Device(name=NAME, advance=advance, batch=self.settings.batch, queue=self.settings.queue)

    def open_release(self) -> Release:
        return untrained(self.base) if self.policy is None else open_release(self.base, self.policy)

    async def try_release(self, release: Release) -> None:
        """Draw one picture that nobody sees."""
        picture = self._picture(release, prompt="a picture", seed=0)
        await self.device.run([picture])
        if picture.latents_CHW is None or not bool(picture.latents_CHW.isfinite().all()):
            raise ArtifactError(f"release {release.name} draws nothing but noise; train it again")

    def facts(self) -> dict[str, str]:
        card = self.release.facts
        facts = {
            "base": self.everything.diffusion.base,
            "base_digest": self.base.base_digest,
            "image_size": str(self.base.image_size),
        }
        for key in ("watermark", "reward_digest", "data_digest", "scale"):
            if key in card:
                facts[{"watermark": "data_watermark"}.get(key, key)] = str(card[key])
        return facts

    # What it does

    async def draw(self, order: Order, call: Call, *, previews: int = 0, on_preview: Any = None) -> Result:
        """Draw what was ordered. `previews` times on the way `on_preview` gets a picture, in the event loop."""
        release = self.release
        call.release = release.name
        if order.best_of is not None and self.scorer is None:
            raise Refused("best_of: no reward scorer is configured here (serving.scorer_url)", param="best_of")
        before = self._before(order)
        refinement = await asyncio.to_thread(self._refined, order, before)
        for words in (order.prompt, refinement.refined_prompt):
            self._allow("prompt", self.checker.check_prompt(words))
        previous = await self._previous(order, before)
        seed = order.first_seed()
        asked = {
            "steps": order.steps,
            "guidance": order.guidance,
            "strength": order.strength if order.edits else None,
        }
        units = [
            self._picture(
                release,
                prompt=refinement.refined_prompt,
                seed=(seed + number) % SEEDS,
                previous=previous,
                deadline=call.deadline,
                **{name: value for name, value in asked.items() if value is not None},
            )
            for number in range(order.drawn)
        ]
        if previews:
            _send_previews(units[0], number=previews, to=on_preview)
        await on_device(self.device, units)
        units = await self._not_flat(units)
        for verdict in await asyncio.to_thread(self.checker.check_images, [_drawn(unit) for unit in units]):
            self._allow("image", verdict)
        metrics.PICTURES.labels(NAME, release.name).inc(len(units))
        units, scores = await self._best(order, units)
        pictures = [
            Drawn(pixels=_drawn(unit), seed=unit.seed, score=score) for unit, score in zip(units, scores, strict=True)
        ]
        done = Round(
            feedback=order.prompt if order.edits else "",
            prompt=refinement.refined_prompt,
            latents=[unit.latents_CHW for unit in units if unit.latents_CHW is not None],
        )
        return Result(
            pictures=pictures,
            prompt=refinement.refined_prompt,
            dialogue_id=self.dialogues.add(done, after=before, dialogue_id=order.dialogue_id),
            round=len(before) + 1,
            release=release.name,
            notice=refinement.notice,
            cut=refinement.truncated,
        )

    def _allow(self, stage: str, verdict: safety.Verdict) -> None:
        """Raises Refused for what the safety filter hides; what it could not judge is hidden too."""
        metrics.SAFETY.labels(NAME, stage, verdict.reason or "allowed").inc()
        if verdict.reason == "unknown":
            raise Refused(f"{stage}: {verdict.message}; try again later", status=503, code="unchecked", retry_after=5)
        if not verdict.allowed:
            raise Refused(f"{stage}: {verdict.message}; say it in other words", code="moderation_blocked", param=stage)

    def may_show(self, pixels: Pixels) -> bool:
        """Whether a preview passes the safety filter."""
        return self.checker.check_images([pixels])[0].allowed

    def finish(self, pixels: Pixels, call: Call, kind: str = "png", quality: int = 100) -> bytes:
        """The file that a caller gets, marked and signed."""
        if self.stamp is None:
            return encode(pixels, kind, quality)
        facts = Facts(release=call.release, request_id=call.request_id, model=NAME)
        return self.stamp.file(pixels, facts=facts, encode=lambda marked: encode(marked, kind, quality))

    def _picture(self, release: Release, *, prompt: str, seed: int, **changed: Any) -> Picture:
        usual = {"steps": self.settings.steps, "guidance": self.settings.guidance, "strength": self.settings.strength}
        return Picture(release=release, prompt=prompt, seed=seed, **{**usual, **changed})

    def _before(self, order: Order) -> list[Round]:
        """The rounds of this server's own memory that the order goes on from."""
        return [] if order.dialogue_id is None else self.dialogues.before(order.dialogue_id, order.round)

    def _refined(self, order: Order, before: Sequence[Round]) -> Refinement:
        """What to draw: the prompt itself in round 1 and where refinement is off or has nothing to go on."""
        previous = before[-1].prompt if before else order.previous_prompt
        if order.refine and order.edits and previous is not None:
            said = [(done.feedback, done.prompt) for done in before] or [(text, "") for text in order.history]
            return self.refiner.refine(prompt=previous, feedback=order.prompt, history=said)
        parts = split_parts(order.prompt) or [order.prompt.strip()]
        limit = self.everything.refine.max_tokens
        kept, cut = fit(parts, (), limit, token_counter(self.base.tokenizer))
        text = order.prompt.strip() if not cut else ", ".join(kept)
        return Refinement(refined_prompt=text, action="generate", truncated=cut, backend="rules")

    async def _previous(self, order: Order, before: Sequence[Round]) -> Any:
        if before:
            latents = before[-1].latents
            if order.pick >= len(latents):
                raise Refused(f"pick {order.pick}: that round drew pictures 0 to {len(latents) - 1}", param="pick")
            return latents[order.pick]
        if order.image is None:
            return None
        return await asyncio.to_thread(open_picture, order.image, size=self.base.image_size, limits=self.settings)

    async def _not_flat(self, units: list[Picture]) -> list[Picture]:
        """Pictures that came out black, white or broken are drawn once more from other noise, and never shown."""
        flat = [at for at, unit in enumerate(units) if unit.flat]
        if not flat:
            return units
        metrics.DEGENERATE.labels(NAME, units[0].release.name).inc(len(flat))
        again = {
            at: self._picture(
                units[at].release,
                prompt=units[at].prompt,
                seed=(units[at].seed + _AGAIN) % SEEDS,
                steps=units[at].steps,
                guidance=units[at].guidance,
                strength=units[at].strength,
                previous=units[at].previous,
                deadline=units[at].deadline,
            )
            for at in flat
        }
        await on_device(self.device, list(again.values()))
        if any(unit.flat for unit in again.values()):
            raise Refused(
                "nothing but an empty picture came out, twice; say it in other words",
                status=422,
                code="empty_picture",
                param="prompt",
            )
        return [again.get(at, unit) for at, unit in enumerate(units)]

    async def _best(self, order: Order, units: list[Picture]) -> tuple[list[Picture], list[float | None]]:
        """The order's n pictures; with best_of, those that the reward scorer likes best, best first."""
        if order.best_of is None:
            return units, [None] * len(units)
        images_BCHW = torch.stack([torch.from_numpy(_drawn(unit)).permute(2, 0, 1).float() / 255 for unit in units])
        prompts = [unit.prompt for unit in units]
        assert self.scorer is not None  # asked for before anything was drawn
        try:
            found = await asyncio.to_thread(self.scorer.score, prompts=prompts, images_BCHW=images_BCHW)
        except ResourceError as error:
            raise Refused(f"best_of: {error}", status=503, code="no_scorer", param="best_of", retry_after=5) from None
        scores = found.calibrated_B.tolist()
        best = sorted(range(len(units)), key=lambda at: -scores[at])[: order.n]
        return [units[at] for at in best], [scores[at] for at in best]

    # Protocols

    async def answer(self, request: tensors.Request, call: Call) -> Sequence[tensors.Tensor]:
        orders = [Order.read(row, limits=self.settings) for row in rows_of(request, self.inputs)]
        self._bounded(orders)
        results = await together([self.draw(order, call) for order in orders])
        pictures = [await asyncio.to_thread(self.finish, result.pictures[0].pixels, call) for result in results]
        seeds = np.array([result.pictures[0].seed for result in results], np.int64)
        return [
            tensors.Tensor(name="image", datatype="BYTES", values=tensors.bytes_array(pictures)),
            texts("prompt", [result.prompt for result in results]),
            tensors.Tensor(name="seed", datatype="INT64", values=seeds),
            texts("dialogue_id", [result.dialogue_id for result in results]),
        ]

    async def answer_v1(self, instances: list[dict[str, Any]], call: Call) -> list[dict[str, Any]]:
        orders = [Order.read(instance_of(instance), limits=self.settings) for instance in instances]
        self._bounded(orders)
        results = await together([self.draw(order, call) for order in orders])
        predictions = []
        for result in results:
            pictures = [await asyncio.to_thread(self.finish, drawn.pixels, call) for drawn in result.pictures]
            predictions.append(
                {
                    "images": [
                        {"b64": base64.b64encode(data).decode(), "seed": drawn.seed}
                        for data, drawn in zip(pictures, result.pictures, strict=True)
                    ],
                    "prompt": result.prompt,
                    "dialogue_id": result.dialogue_id,
                    "round": result.round,
                }
            )
        return predictions

    def _bounded(self, orders: Sequence[Order]) -> None:
        asked = sum(order.drawn for order in orders)
        if not 1 <= asked <= self.settings.max_pictures:
            raise Refused(f"{asked} pictures: 1 to {self.settings.max_pictures} may be asked for at once")


def _drawn(unit: Picture) -> Pixels:
    assert unit.pixels_HWC is not None  # it is done
    return unit.pixels_HWC


def _send_previews(unit: Picture, *, number: int, to: Callable[[Pixels], None]) -> None:
    loop = asyncio.get_running_loop()
    steps = unit.steps
    unit.previews = frozenset(max(1, steps * at // (number + 1)) for at in range(1, number + 1)) - {steps}

    def tell(pixels: Pixels) -> None:
        loop.call_soon_threadsafe(to, pixels)

    unit.on_preview = tell
