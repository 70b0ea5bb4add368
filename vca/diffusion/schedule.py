"""The sampler's steps and their Gaussians: DDIM with its own, exact next timestep.

`step` i runs 0..S-1 from noise to picture, `remaining` n = S - i is what Algorithm 1 calls t, `timestep` is the
training timestep 0..T-1. diffusers' trailing spacing takes `t - T // S` for the next timestep, which is not the
schedule's own in 20 of 69 steps at S = 70; here the next timestep is read from the schedule.

Shapes: S steps, B batch, C channels, H W latent height and width. Scalars per sample are broadcast as [B, 1, 1, 1].
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Spacing = Literal["trailing", "leading"]
Reduction = Literal["mean", "sum", "sqrt"]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """S steps: timesteps_S (int64), abar_S and next_abar_S (float64, the cumulative alpha before and after a step)."""

    timesteps_S: Tensor
    abar_S: Tensor
    next_abar_S: Tensor
    prediction_type: str

    @property
    def steps(self) -> int:
        return len(self.timesteps_S)

    def sigma(self, step: int, *, eta: float) -> float:
        """Standard deviation of a step's Gaussian; 0 for a deterministic one."""
        abar, after = float(self.abar_S[step]), float(self.next_abar_S[step])
        return eta * math.sqrt(max((1 - after) / (1 - abar) * (1 - abar / after), 0.0))


def make_schedule(
    alphas_cumprod_T: Tensor,
    *,
    steps: int,
    prediction_type: str,
    final_alpha_cumprod: float,
    spacing: Spacing = "trailing",
) -> Schedule:
    """Spread `steps` over the training timesteps. `trailing` starts at the noisiest one, `leading` as SD 2.1 ships."""
    if prediction_type not in ("epsilon", "v_prediction"):
        raise ValueError(f"prediction_type {prediction_type!r}: allowed are epsilon, v_prediction")
    total = len(alphas_cumprod_T)
    if not 1 <= steps <= total:
        raise ValueError(f"steps {steps}: allowed are 1 to {total}")
    if spacing == "trailing":
        timesteps_S = torch.round(torch.arange(total, 0, -total / steps, dtype=torch.float64)[:steps]).long() - 1
    else:
        # offset 1, as in every Stable Diffusion scheduler; it has no room when every timestep is a step
        timesteps_S = torch.arange(steps - 1, -1, -1) * (total // steps) + (1 if total // steps > 1 else 0)
    abar_S = alphas_cumprod_T.double()[timesteps_S.to(alphas_cumprod_T.device)].cpu()
    next_abar_S = torch.cat([abar_S[1:], torch.tensor([final_alpha_cumprod], dtype=torch.float64)])
    return Schedule(timesteps_S=timesteps_S, abar_S=abar_S, next_abar_S=next_abar_S, prediction_type=prediction_type)


def split_prediction(output: Tensor, latents: Tensor, abar: Tensor, *, prediction_type: str) -> tuple[Tensor, Tensor]:
    """The clean latent and the noise that the network's `output` at `latents` stands for: (x0, eps)."""
    signal, noise = abar.sqrt().to(latents), (1 - abar).sqrt().to(latents)
    if prediction_type == "epsilon":
        return (latents - noise * output) / signal, output
    return signal * latents - noise * output, signal * output + noise * latents


def ddim_step(
    output: Tensor, latents: Tensor, abar: Tensor, next_abar: Tensor, *, eta: float, prediction_type: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, standard deviation and predicted clean latent of one step (Song et al. 2021, eq. 12 and 16).

    In the dtype of `latents` (float32 in training), the coefficients computed in that of abar (float64: the difference
    of two close abar loses its digits in float32). abar and next_abar broadcast against the latents. eta = 1 is the
    posterior of the sub-sampled DDPM chain, eta = 0 deterministic.
    """
    x0, eps = split_prediction(output, latents, abar, prediction_type=prediction_type)
    variance = eta**2 * (1 - next_abar) / (1 - abar) * (1 - abar / next_abar)
    mean = next_abar.sqrt().to(latents) * x0 + (1 - next_abar - variance).clamp(min=0).sqrt().to(latents) * eps
    return mean, variance.clamp(min=0).sqrt().to(latents), x0


def log_prob(action: Tensor, mean: Tensor, sigma: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """log N(action | mean, sigma^2) per sample, [B], reduced over the D latent elements (`reduction_factor`)."""
    terms = -((action - mean) ** 2) / (2 * sigma**2) - sigma.log() - 0.5 * math.log(2 * math.pi)
    return terms.flatten(1).sum(1) * reduction_factor(reduction, elements=action[0].numel())


def reduction_factor(reduction: Reduction, *, elements: int) -> float:
    """What a log-probability in nats is multiplied by: 1/D is what the public trainers report."""
    return {"mean": 1 / elements, "sum": 1.0, "sqrt": 1 / math.sqrt(elements)}[reduction]
