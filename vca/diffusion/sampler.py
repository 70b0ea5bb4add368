"""Sampling: one chain of denoising steps, shared by training, evaluation and serving.

Shapes: B batch, C channels, H W latent or image height and width, L text tokens, D text width, S steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vca.diffusion.schedule import Schedule, Spacing, ddim_step, make_schedule
from vca.models.stable_diffusion import StableDiffusion


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Finished latents (float32) and pictures (float32 in [0, 1])."""

    latents_BCHW: Tensor
    images_BCHW: Tensor


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of the samples that took part in it: rows_N says which of the batch they are.

    latents before, the network's output at them (with its graph where one was asked for), actions after, the Gaussian
    the action was drawn from, and the clean latent predicted before.
    """

    index: int
    rows_N: Tensor
    latents_NCHW: Tensor
    output_NCHW: Tensor
    actions_NCHW: Tensor
    mean_NCHW: Tensor
    sigma: Tensor
    x0_NCHW: Tensor


def schedule_of(pipeline: StableDiffusion, *, steps: int, spacing: Spacing = "trailing") -> Schedule:
    return make_schedule(
        pipeline.alphas_cumprod_T,
        steps=steps,
        prediction_type=pipeline.prediction_type,
        final_alpha_cumprod=pipeline.final_alpha_cumprod,
        spacing=spacing,
    )


def guided_prediction(
    pipeline: StableDiffusion,
    latents_BCHW: Tensor,
    timesteps_B: Tensor,
    states_BLD: Tensor,
    *,
    guidance: float,
    gradient: str = "both",
) -> Tensor:
    """The U-Net's output under classifier-free guidance, out = u + w (c - u); one forward of B where w = 1.

    gradient: `both` lets gradients through both halves, `cond` through the conditional one only, which is then a
    forward of its own and saves the other's backward.
    """
    if guidance == 1:
        return pipeline.predict(latents_BCHW, timesteps_B, states_BLD)
    null_BLD = pipeline.encode_prompts([""]).expand(len(states_BLD), -1, -1)
    if gradient == "cond":
        with torch.no_grad():
            unconditional = pipeline.predict(latents_BCHW, timesteps_B, null_BLD)
        conditional = pipeline.predict(latents_BCHW, timesteps_B, states_BLD)
    else:
        both = pipeline.predict(
            latents_BCHW.repeat(2, 1, 1, 1), timesteps_B.repeat(2), torch.cat([null_BLD, states_BLD])
        )
        unconditional, conditional = both.chunk(2)
    return unconditional + guidance * (conditional - unconditional)


def starting_latents(
    schedule: Schedule, noise_BCHW: Tensor, *, previous_BCHW: Tensor | None, start_steps: Sequence[int]
) -> Tensor:
    """z before the first step: noise, or the last round's latent noised to where this round starts (SDEdit)."""
    if previous_BCHW is None:
        return noise_BCHW
    abar_B = schedule.abar_S[list(start_steps)].to(noise_BCHW)[:, None, None, None]
    return abar_B.sqrt() * previous_BCHW + (1 - abar_B).sqrt() * noise_BCHW


@torch.no_grad()
def denoise(
    pipeline: StableDiffusion,
    schedule: Schedule,
    *,
    latents_BCHW: Tensor,
    states_BLD: Tensor,
    start_steps: Sequence[int],
    stop_steps: Sequence[int] | None = None,
    guidance: float,
    eta: Callable[[int], float],
    noise: Callable[[int, Tensor], Tensor],
    on_step: Callable[[Step], None] | None = None,
    graph: Callable[[int], bool] = lambda index: False,
    gradient: str = "both",
) -> Tensor:
    """Run the chain. Sample b takes steps start_steps[b] … stop_steps[b]-1 (default: to the end).

    eta: per step. noise: (step, rows_N) -> standard normal [N,C,H,W], called for steps with sigma > 0 only.
    graph: the steps whose network output keeps its graph; gradient: which half of a guided one then does.
    Returns latents_BCHW after each sample's last step.
    """
    latents_BCHW = latents_BCHW.clone()
    stops = list(stop_steps) if stop_steps is not None else [schedule.steps] * len(latents_BCHW)
    for index in range(min(start_steps), max(stops)):
        rows = [b for b, (start, stop) in enumerate(zip(start_steps, stops, strict=True)) if start <= index < stop]
        if not rows:
            continue
        rows_N = torch.tensor(rows, device=latents_BCHW.device)
        everyone = len(rows) == len(latents_BCHW)
        before_NCHW = latents_BCHW if everyone else latents_BCHW[rows_N]
        with torch.set_grad_enabled(graph(index)):
            output_NCHW = guided_prediction(
                pipeline,
                before_NCHW,
                schedule.timesteps_S[index].to(before_NCHW.device).expand(len(rows)),
                states_BLD if everyone else states_BLD[rows_N],
                guidance=guidance,
                gradient=gradient,
            )
        mean_NCHW, sigma, x0_NCHW = ddim_step(
            output_NCHW.detach(),
            before_NCHW,
            schedule.abar_S[index].to(before_NCHW.device),
            schedule.next_abar_S[index].to(before_NCHW.device),
            eta=eta(index),
            prediction_type=schedule.prediction_type,
        )
        noisy = schedule.sigma(index, eta=eta(index)) > 0
        after_NCHW = mean_NCHW + sigma * noise(index, rows_N) if noisy else mean_NCHW
        if on_step is not None:
            on_step(
                Step(
                    index=index,
                    rows_N=rows_N,
                    latents_NCHW=before_NCHW,
                    output_NCHW=output_NCHW,
                    actions_NCHW=after_NCHW,
                    mean_NCHW=mean_NCHW,
                    sigma=sigma,
                    x0_NCHW=x0_NCHW,
                )
            )
        latents_BCHW = after_NCHW if everyone else latents_BCHW.index_copy(0, rows_N, after_NCHW)
    return latents_BCHW


def draw(generators: Sequence[torch.Generator], shape: tuple[int, int, int], device: torch.device) -> Tensor:
    """Standard normal [B,C,H,W], each sample from its own generator on the CPU: the same on every machine."""
    return torch.stack([torch.randn(shape, generator=g) for g in generators]).to(device)


def start_step(strength: float, *, steps: int) -> int:
    """Where a round that re-draws `strength` (0 to 1) of the picture starts: round(strength * S) steps remain."""
    return steps - max(1, round(strength * steps))


@torch.no_grad()
def generate(
    pipeline: StableDiffusion,
    *,
    prompts: list[str],
    previous_latents: Tensor | None = None,
    strength: float | None = None,
    steps: int,
    guidance: float,
    eta: float,
    generators: list[torch.Generator],
) -> Samples:
    """One picture per prompt; with `previous_latents` and `strength`, an edit of the last round's pictures.

    generators: one CPU generator per sample, advanced by this call. A sample depends on its own prompt, previous
    latent and generator only, never on the rest of the batch (up to float rounding).
    """
    schedule = schedule_of(pipeline, steps=steps)
    shape = pipeline.latent_shape
    if (previous_latents is None) != (strength is None):
        raise ValueError("previous_latents and strength belong together")
    start = 0 if strength is None else start_step(strength, steps=steps)
    starts = [start] * len(prompts)
    noise_BCHW = draw(generators, shape, pipeline.device)
    latents_BCHW = denoise(
        pipeline,
        schedule,
        latents_BCHW=starting_latents(schedule, noise_BCHW, previous_BCHW=previous_latents, start_steps=starts),
        states_BLD=pipeline.encode_prompts(prompts),
        start_steps=starts,
        guidance=guidance,
        eta=lambda index: eta,
        noise=lambda index, rows_N: draw([generators[row] for row in rows_N.tolist()], shape, pipeline.device),
    )
    return Samples(latents_BCHW=latents_BCHW, images_BCHW=pipeline.decode(latents_BCHW))
