"""A training run of seconds: a tiny pipeline, four dialogues of two rounds, a reward that likes red."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vca.diffusion.dialogues import Corpus, Script, Target
from vca.diffusion.distributed import World
from vca.diffusion.settings import DiffusionSettings
from vca.diffusion.trainer import Trainer
from vca.models.stable_diffusion import StableDiffusion

ALONE = World(0, 1, torch.device("cpu"))


def redness(*, prompts: Sequence[str], images_BCHW: Tensor) -> Tensor:
    return 10 * (images_BCHW[:, 0] - images_BCHW[:, 1:].mean(1)).flatten(1).mean(1)


def settings(**changes: Any) -> DiffusionSettings:
    small = {
        "compute_dtype": "float32",
        "engine": "torch",
        "iterations": 2,
        "dialogues": 2,
        "siblings": 4,
        "rounds": 1,
        "batch": 8,
        "micro_batch": 8,
        "steps": 5,
        "window": (3, 5),
        "steps_per_sample": 2,
        "strength": (0.6, 0.8),
        "strength_floor": 0.6,
        "guidance": 1,
        "learning_rate": 1e-2,
        "warmup": 0,
        "noise_weight": 0,
        "checkpoint_every": 100,
    }
    return DiffusionSettings.model_validate(small | changes)


def corpus(*, targets: bool = False) -> Corpus:
    from io import BytesIO

    from PIL import Image

    names = ["a cat", "a dog", "a heart", "a square"]
    pictures = []
    for n, name in enumerate(names):
        stream = BytesIO()
        Image.new("RGB", (16, 16), (60 * n, 200 - 40 * n, 90)).save(stream, "PNG")
        pictures.append(Target(prompt=f"{name} big", data=stream.getvalue()))
    return Corpus(
        scripts=tuple(
            Script(
                dialogue_id=name,
                intent=f"{name} big",
                prompts=(name, f"{name} big", f"{name} small"),
                targets=(None, n if targets else None, None),
            )
            for n, name in enumerate(names)
        ),
        targets=tuple(pictures) if targets else (),
    )


def trainer(pipeline: StableDiffusion, output: Path, *, targets: bool = False, **changes: Any) -> Trainer:
    return Trainer(
        pipeline=pipeline,
        config=settings(**changes),
        corpus=corpus(targets=targets),
        reward=redness,
        world=ALONE,
        output=output,
        facts={},
    )


def log(output: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def lora_vector(pipeline: StableDiffusion) -> Tensor:
    return torch.cat([p.detach().flatten() for p in pipeline.lora().values()])
