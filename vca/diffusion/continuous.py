"""Continuous batching: pictures at different steps of different schedules share one forward of the U-Net.

A step of DDIM is a function of its own latent, timestep and coefficients alone, so nothing but the network's forward
need be common: prompts, seeds, strengths, guidance and the number of steps may all differ, and a picture may join or
leave between any two steps.

Shapes: B pictures in a forward, C channels, H W latent height and width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vca.diffusion.sampler import draw, schedule_of, start_step, starting_latents
from vca.diffusion.schedule import Schedule, ddim_step
from vca.models.stable_diffusion import StableDiffusion


@dataclass(kw_only=True)
class Chain:
    """One picture on its way from noise: `step` is the next one, `latents_CHW` stands before it.

    predicted_CHW: the clean latent that the last step predicted, a preview.
    """

    prompt: str
    guidance: float
    schedule: Schedule
    step: int
    latents_CHW: Tensor
    predicted_CHW: Tensor | None = None

    @property
    def done(self) -> bool:
        return self.step == self.schedule.steps


def begin(
    pipeline: StableDiffusion,
    *,
    prompt: str,
    steps: int,
    guidance: float,
    generator: torch.Generator,
    previous_CHW: Tensor | None = None,
    strength: float = 1.0,
) -> Chain:
    """A chain before its first step; with `previous_CHW`, an edit that re-draws `strength` (0 to 1) of that latent."""
    schedule = schedule_of(pipeline, steps=steps)
    noise_BCHW = draw([generator], pipeline.latent_shape, pipeline.device)
    start = 0 if previous_CHW is None else start_step(strength, steps=steps)
    previous_BCHW = None if previous_CHW is None else previous_CHW.to(pipeline.device)[None]
    latents_BCHW = starting_latents(schedule, noise_BCHW, previous_BCHW=previous_BCHW, start_steps=[start])
    return Chain(prompt=prompt, guidance=guidance, schedule=schedule, step=start, latents_CHW=latents_BCHW[0])


@torch.no_grad()
def advance(pipeline: StableDiffusion, chains: Sequence[Chain]) -> None:
    """Take every chain one deterministic step further (DDIM, eta 0). None of them may be done."""
    device = pipeline.device
    latents_BCHW = torch.stack([chain.latents_CHW for chain in chains])
    timesteps_B = torch.stack([chain.schedule.timesteps_S[chain.step] for chain in chains]).to(device)
    states_BLD = pipeline.encode_prompts([chain.prompt for chain in chains])
    guided = [b for b, chain in enumerate(chains) if chain.guidance != 1]
    if guided:
        null_BLD = pipeline.encode_prompts([""]).expand(len(guided), -1, -1)
        both = pipeline.predict(
            torch.cat([latents_BCHW, latents_BCHW[guided]]),
            torch.cat([timesteps_B, timesteps_B[guided]]),
            torch.cat([states_BLD, null_BLD]),
        )
        output_BCHW, unconditional_BCHW = both[: len(chains)].clone(), both[len(chains) :]
        guidance_B111 = torch.tensor([chains[b].guidance for b in guided], device=device)[:, None, None, None]
        conditional_BCHW = output_BCHW[guided]
        output_BCHW[guided] = unconditional_BCHW + guidance_B111 * (conditional_BCHW - unconditional_BCHW)
    else:
        output_BCHW = pipeline.predict(latents_BCHW, timesteps_B, states_BLD)
    abar_B111, next_abar_B111 = (
        torch.stack([getattr(chain.schedule, name)[chain.step] for chain in chains]).to(device)[:, None, None, None]
        for name in ("abar_S", "next_abar_S")
    )
    after_BCHW, _, predicted_BCHW = ddim_step(
        output_BCHW, latents_BCHW, abar_B111, next_abar_B111, eta=0, prediction_type=pipeline.prediction_type
    )
    for chain, after_CHW, predicted_CHW in zip(chains, after_BCHW, predicted_BCHW, strict=True):
        chain.latents_CHW, chain.predicted_CHW = after_CHW, predicted_CHW
        chain.step += 1
