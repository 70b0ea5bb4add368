"""The reward scorer: how well a picture fits its prompt and people's taste.

    python -m serving scorer --reward FOLDER --http_port 8082 --grpc_port 8083

Scores are those of vca.reward.scorer, so that training may ask this server instead (vca.reward.remote).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import torch
from torch import Tensor

from serving import tensors
from serving.device import Device, Unit
from serving.model import Call, TensorSpec, VcaModel, on_device
from serving.pictures import open_picture, picture_bytes
from serving.refusal import Refused
from serving.rows import utf8
from vca.errors import ArtifactError
from vca.monitoring import metrics
from vca.refine.refiner import Refiner
from vca.reward import adapter
from vca.reward.scorer import RewardScorer
from vca.settings import Settings

logger = logging.getLogger(__name__)

NAME = "vca-reward"
COMPONENTS = ("preference", "likelihood")


@dataclass(frozen=True, eq=False, kw_only=True)
class Release:
    name: str
    scorer: RewardScorer
    marker: dict[str, Any]


@dataclass(eq=False, kw_only=True)
class Row(Unit):
    """A prompt and its picture, [3, H, W] in [0, 1]. found: score, raw_score and the components."""

    release: Release
    prompt: str
    image_CHW: Tensor
    found: dict[str, float] | None = None


def advance(rows: list[Row]) -> None:
    """Score all rows: pictures of one size and release share a forward."""
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault((row.release, row.image_CHW.shape), []).append(row)
    for (release, _), group in groups.items():
        scores = release.scorer.score(
            prompts=[row.prompt for row in group], images_BCHW=torch.stack([row.image_CHW for row in group])
        )
        values = {"score": scores.calibrated_B, "raw_score": scores.raw_B, **scores.components}
        for at, row in enumerate(group):
            row.found = {name: float(values_B[at]) for name, values_B in values.items()}
            row.done = True


class Scorer(VcaModel[Release]):
    """Serves the reward adapter in `folder`."""

    inputs = (
        TensorSpec(name="prompt", datatype="BYTES", shape=[-1]),
        TensorSpec(name="image", datatype="BYTES", shape=[-1]),
        TensorSpec(name="history", datatype="BYTES", shape=[-1]),
    )
    outputs = (
        TensorSpec(name="score", datatype="FP32", shape=[-1]),
        TensorSpec(name="raw_score", datatype="FP32", shape=[-1]),
        *(TensorSpec(name=name, datatype="FP32", shape=[-1]) for name in COMPONENTS),
    )

    def __init__(self, *, settings: Settings, folder: Path, device: str = "cpu") -> None:
        super().__init__(NAME, settings=settings.serving)
        self.folder, self.place = folder, device
        # prompts of the reward model have no 77 tokens to fit in; what is counted is words
        self.refiner = Refiner(settings=settings.refine, count_tokens=lambda text: len(text.split()) + 2)

    # What it is

    def open(self) -> None:
        self.release = self.open_release()
        self.device = Device(
            name=NAME, advance=advance, batch=self.settings.scorer_batch, queue=self.settings.scorer_queue
        )

    def open_release(self) -> Release:
        scorer = RewardScorer.load(self.folder, device=self.place)
        name = f"reward-{adapter.digest(self.folder)[:12]}"
        return Release(name=name, scorer=scorer, marker=adapter.verify(self.folder))

    async def try_release(self, release: Release) -> None:
        """Score a grey picture."""
        size = release.scorer.model.settings.image_size
        row = Row(release=release, prompt="a picture", image_CHW=torch.full((3, size, size), 0.5))
        await self.device.run([row])
        if row.found is None or not all(np.isfinite(value) for value in row.found.values()):
            raise ArtifactError(f"release {release.name} gives scores that are no numbers; train it again")

    def facts(self) -> dict[str, str]:
        marker, calibration = self.release.marker, self.release.scorer.calibration
        return {
            "base": str(marker["base"]),
            "base_digest": str(marker["base_digest"]),
            "adapter_digest": str(marker["files"]["adapter_model.safetensors"]),
            "data_watermark": str(marker["data_watermark"]),
            "head": str(marker["settings"]["head"]),
            "image_size": str(marker["settings"]["image_size"]),
            "calibration_mu": f"{calibration.mu:.9g}",
            "calibration_s": f"{calibration.s:.9g}",
            "calibration_n": str(calibration.n),
        }

    # What it does

    async def score(self, rows: Sequence[tuple[str, Tensor]], call: Call) -> list[dict[str, float]]:
        """Score, raw score and components of (prompt, [3, H, W]) rows."""
        if not 1 <= len(rows) <= self.settings.scored_rows:
            raise Refused(f"{len(rows)} rows: 1 to {self.settings.scored_rows} may be asked for at once")
        release = self.release
        call.release = release.name
        units = [
            Row(release=release, prompt=prompt, image_CHW=image_CHW, deadline=call.deadline)
            for prompt, image_CHW in rows
        ]
        await on_device(self.device, units)
        found = [unit.found for unit in units if unit.found is not None]
        for values in found:
            metrics.SCORE.labels(NAME, release.name).observe(values["score"])
        metrics.PICTURES.labels(NAME, release.name).inc(len(found))
        return found

    async def answer(self, request: tensors.Request, call: Call) -> Sequence[tensors.Tensor]:
        for name in request.inputs:
            if name not in ("prompt", "image", "history"):
                raise Refused(f"unknown input {name[:40]!r}; known are prompt, image, history", param=name[:40])
        prompts = [self._prompt(text) for text in _texts_of(request, "prompt")]
        if "history" in request.inputs:
            said = _texts_of(request, "history")
            if len(said) != len(prompts):
                raise Refused(f"history has {len(said)} rows for {len(prompts)} prompts", param="history")
            prompts = [self._after(prompt, _feedback(text)) for prompt, text in zip(prompts, said, strict=True)]
        if "image" not in request.inputs:
            raise Refused("input image is missing", param="image")
        images = await asyncio.to_thread(self._images, request.inputs["image"], len(prompts))
        found = await self.score(list(zip(prompts, images, strict=True)), call)
        named = [name for name in COMPONENTS if name in request.outputs or request.parameters.get("components") is True]
        return [
            tensors.Tensor(name=name, datatype="FP32", values=np.array([row[name] for row in found], np.float32))
            for name in ("score", "raw_score", *named)
            if name in found[0]
        ]

    async def answer_v1(self, instances: list[dict[str, Any]], call: Call) -> list[dict[str, Any]]:
        rows = []
        for at, instance in enumerate(instances):
            if unknown := [name for name in instance if name not in ("prompt", "image", "history")]:
                raise Refused(f"instances[{at}]: unknown field {unknown[0][:40]!r}; known are prompt, image, history")
            prompt, image = instance.get("prompt"), instance.get("image")
            if not isinstance(prompt, str):
                raise Refused(f"instances[{at}].prompt: expected text", param="prompt")
            history = instance.get("history", [])
            if not isinstance(history, list) or not all(isinstance(text, str) for text in history):
                raise Refused(f"instances[{at}].history: expected a list of texts", param="history")
            data = picture_bytes(image.get("b64") if isinstance(image, dict) else image)
            rows.append((self._after(self._prompt(prompt), history), await asyncio.to_thread(self._open, data)))
        found = await self.score(rows, call)
        return [{name: row[name] for name in ("score", "raw_score")} for row in found]

    def _prompt(self, text: str) -> str:
        if not text.strip() or len(text) > self.settings.max_prompt:
            raise Refused(
                f"prompt: {len(text)} characters; 1 to {self.settings.max_prompt} are allowed, not all blank",
                param="prompt",
            )
        return text

    def _after(self, prompt: str, feedback: Sequence[str]) -> str:
        """The prompt after what was said since, as the generator would refine it."""
        for said in feedback:
            prompt = self.refiner.refine(prompt=prompt, feedback=self._prompt(said)).refined_prompt
        return prompt

    def _open(self, data: bytes) -> Tensor:
        pixels = open_picture(data, size=self.release.scorer.model.settings.image_size, limits=self.settings)
        return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255

    def _images(self, tensor: tensors.Tensor, count: int) -> list[Tensor]:
        """[3, H, W] in [0, 1] each, from encoded pictures, UINT8 [n, H, W, 3] or FP32 [n, 3, H, W]."""
        shape = tensor.shape
        if tensor.datatype == "BYTES":
            if tensor.values.size != count:
                raise Refused(f"image has {tensor.values.size} rows for {count} prompts", param="image")
            return [self._open(picture_bytes(element)) for element in tensor.values.reshape(-1)]
        colours = {"UINT8": 3, "FP32": 1}.get(tensor.datatype)
        if colours is None or len(shape) != 4 or shape[0] != count or shape[colours] != 3:
            raise Refused(
                f"image is {tensor.datatype} {shape}; expected are BYTES [{count}], UINT8 [{count}, H, W, 3] or "
                f"FP32 [{count}, 3, H, W]",
                param="image",
            )
        if not 0 < shape[2] * shape[1 if colours == 3 else 3] <= self.settings.max_pixels:
            raise Refused(f"image: at most {self.settings.max_pixels} pixels", status=413, param="image")
        if tensor.datatype == "UINT8":
            return list(torch.from_numpy(tensor.values.copy()).permute(0, 3, 1, 2).float() / 255)
        if not bool(((tensor.values >= 0) & (tensor.values <= 1)).all()):
            raise Refused("image: FP32 values must lie in [0, 1]", param="image")
        return list(torch.from_numpy(tensor.values.copy()))


def _texts_of(request: tensors.Request, name: str) -> list[str]:
    tensor = request.inputs.get(name)
    if tensor is None or tensor.datatype != "BYTES":
        raise Refused(f"input {name} is missing or no BYTES", param=name)
    return [utf8(value, name) for value in tensor.values.reshape(-1)]


def _feedback(text: str) -> list[str]:
    try:
        said = orjson.loads(text or "[]")
    except orjson.JSONDecodeError:
        said = None
    if not isinstance(said, list) or not all(isinstance(one, str) for one in said):
        raise Refused('history: each element is a JSON list of what was said, as in ["make it blue"]', param="history")
    return said
