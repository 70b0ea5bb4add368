"""What both sides of ppo_vs_trl share: the workload, the reward, what is counted, and how the driver talks to them.

Imports nothing that only one of the two environments has. Shapes: B images, C channels, H W, L tokens, D text width.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

LORA_RANK = 4  # TRL fixes it, with alpha 4 on q, k, v and out
LEARNING_RATE = 3e-4
CLIP_RANGE = 1e-4
SIBLINGS = 8
PROMPTS = tuple(f"{colour} {thing}" for colour in ("red", "blue") for thing in ("heart", "apple", "car", "cat"))


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One iteration: `images` sampled in `steps`, `trained` steps of each in the gradient, one optimizer step.

    folder: a StableDiffusionPipeline. A forward pass holds all images. keep_graphs: ours alone, see DiffusionSettings.
    """

    folder: str
    images: int
    steps: int
    trained: int
    guidance: float
    precision: str
    keep_graphs: bool


# An iteration of a prepared trainer; returns what was seen of the PPO ratio.
Iterate = Callable[[], dict[str, float]]


def reward(images_BCHW: Tensor) -> Tensor:
    """Warmth, red minus blue, [B]."""
    return (images_BCHW[:, 0] - images_BCHW[:, 2]).mean((1, 2)).float()


class Count:
    """Rows that went through the networks, with and without a graph, and optimizer steps."""

    def __init__(self, *, unet: Any, vae: Any) -> None:
        self.numbers: dict[str, int] = {}
        self.handles = [
            unet.register_forward_pre_hook(self._unet),
            vae.decoder.register_forward_pre_hook(lambda module, args: self._add("decoded", len(args[0]))),
            register_optimizer_step_post_hook(lambda *_: self._add("optimizer_steps", 1)),
        ]

    def take(self) -> dict[str, int]:
        """The counts since the last call."""
        numbers, self.numbers = self.numbers, {}
        return dict(sorted(numbers.items()))

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()

    def _unet(self, module: Any, args: tuple[Tensor, ...]) -> None:
        self._add("unet_rows_with_graph" if torch.is_grad_enabled() else "unet_rows_without_graph", len(args[0]))

    def _add(self, name: str, number: int) -> None:
        self.numbers[name] = self.numbers.get(name, 0) + number


@torch.no_grad()
def fingerprint(*, unet: Any, vae: Any, states_1LD: Tensor) -> list[float]:
    """The size of each network's output for one fixed input: equal on both sides only where the weights are."""
    channels, size = unet.config.in_channels, unet.config.sample_size
    latents_1CHW = torch.linspace(-2, 2, channels * size * size).view(1, channels, size, size).to(states_1LD.dtype)
    denoised = unet(latents_1CHW, torch.tensor([500]), encoder_hidden_states=states_1LD).sample
    return [float(output.double().abs().sum()) for output in (states_1LD, denoised, vae.decode(latents_1CHW).sample)]


def serve(prepare: Callable[[Workload], tuple[Iterate, Count, list[float]]]) -> None:
    """A worker: read a request per line, a workload to prepare (and warm up) or null to iterate, and answer each.

    prepare: workload -> iterate, count, fingerprint. Whatever the libraries print goes to stderr.
    """
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    iterate: Iterate | None = None
    count: Count | None = None
    for line in sys.stdin:
        request = json.loads(line)
        if request is not None:
            if count is not None:
                count.remove()
            iterate, count, prints = prepare(Workload(**request))
            answer: dict[str, Any] = {"first_update": iterate(), "fingerprint": prints}
            count.take()
        else:
            assert iterate is not None
            assert count is not None
            started = time.process_time()
            iterate()
            answer = {"cpu_s": time.process_time() - started, "counts": count.take()}
        print(json.dumps(answer), file=answers, flush=True)
