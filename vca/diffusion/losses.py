"""Losses per sample, [B], in float32. Pure functions; the trainer weights and sums them.

Shapes: B batch, C channels, H W latent height and width. abar and the like broadcast as [B, 1, 1, 1].
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from vca.diffusion.schedule import Reduction, ddim_step, reduction_factor

_REFERENCE_ELEMENTS = 4 * 64 * 64  # a 512 px latent, for which clip ranges are given
_MAX_X0_WEIGHT = 5.0
_MIN_SNR = 5.0

NoiseWeighting = Literal["uniform", "min_snr", "posterior_step", "x0"]


def clip_for(clip_range: float, *, elements: int, reduction: Reduction) -> float:
    """The clip range for `elements` latent elements and a reduction, so that the trust region in nats stays the same.

    `clip_range` is DDPO's: of the mean log-ratio over the 16384 elements of a 512 px latent (1e-4 is 1.64 nats).
    """
    return clip_range * _REFERENCE_ELEMENTS * reduction_factor(reduction, elements=elements)


def ppo(logp_B: Tensor, old_logp_B: Tensor, advantages_B: Tensor, *, clip: float) -> tuple[Tensor, Tensor]:
    """The clipped surrogate max(-A r, -A clip(r)) and the ratio r = exp(logp - old) (Schulman et al. 2017)."""
    ratio_B = torch.exp(logp_B - old_logp_B)
    return torch.maximum(-advantages_B * ratio_B, -advantages_B * ratio_B.clamp(1 - clip, 1 + clip)), ratio_B


def gaussian_kl(mean: Tensor, reference: Tensor, sigma: Tensor) -> Tensor:
    """KL between two steps' Gaussians of the same sigma, mean over latent elements, [B]."""
    return ((mean - reference) ** 2 / (2 * sigma**2)).flatten(1).mean(1)


def prediction_distance(output: Tensor, reference: Tensor) -> Tensor:
    """Mean squared difference of two predictions, [B]: the divergence without its 1/variance."""
    return ((output - reference) ** 2).flatten(1).mean(1)


def add_noise(clean_BCHW: Tensor, noise_BCHW: Tensor, abar: Tensor) -> Tensor:
    return abar.sqrt() * clean_BCHW + (1 - abar).sqrt() * noise_BCHW


def noise_target(clean_BCHW: Tensor, noise_BCHW: Tensor, abar: Tensor, *, prediction_type: str) -> Tensor:
    """What the U-Net should say of the noised latent: the noise, or the velocity."""
    if prediction_type == "epsilon":
        return noise_BCHW
    return abar.sqrt() * noise_BCHW - (1 - abar).sqrt() * clean_BCHW


def noise_weights(abar_B: Tensor, next_abar_B: Tensor, *, weighting: NoiseWeighting, prediction_type: str) -> Tensor:
    """The denoising loss's weight by timestep, [B].

    posterior_step: c^2 of z' - DM(z) = c (eps - eps_hat), the paper's eq. 13 (next_abar_B after one sampler step).
    x0: the loss in x0-space, (1 - abar)/abar, at most 5. Both are given for a noise prediction; a velocity's error is
    the noise's divided by sqrt(abar).
    """
    if weighting == "uniform":
        return torch.ones_like(abar_B)
    if weighting == "min_snr":
        snr = abar_B / (1 - abar_B)
        return snr.clamp(max=_MIN_SNR) / (snr if prediction_type == "epsilon" else snr + 1)
    if weighting == "posterior_step":
        weight = ((1 - next_abar_B).sqrt() - (next_abar_B * (1 - abar_B) / abar_B).sqrt()) ** 2
    else:
        weight = ((1 - abar_B) / abar_B).clamp(max=_MAX_X0_WEIGHT)
    return weight if prediction_type == "epsilon" else weight * abar_B


def noise_loss(output: Tensor, target: Tensor, weights_B: Tensor) -> Tensor:
    """Weighted denoising error, [B]."""
    return weights_B * ((output - target) ** 2).flatten(1).mean(1)


def multi_round(
    output: Tensor,
    noised_BCHW: Tensor,
    goal_BCHW: Tensor,
    noise_BCHW: Tensor,
    abar: Tensor,
    next_abar: Tensor,
    *,
    prediction_type: str,
) -> Tensor:
    """Eq. 5, [B]: one deterministic step from the last round's noised latent, against the next round's true one.

    noised_BCHW: the last round's latent under noise_BCHW; goal_BCHW: the latent of the picture wanted in this round.
    """
    made, _, _ = ddim_step(output, noised_BCHW, abar, next_abar, eta=0.0, prediction_type=prediction_type)
    return ((add_noise(goal_BCHW, noise_BCHW, next_abar) - made) ** 2).flatten(1).mean(1)


def refl(rewards_B: Tensor, *, kind: Literal["linear", "hinge"], margin: float) -> Tensor:
    """phi(R), [B]: -R, or how far R falls short of the margin (Xu et al. 2023)."""
    return -rewards_B if kind == "linear" else (margin - rewards_B).clamp(min=0)
