"""f(z) of eq. 6 and 7: what makes two pictures of a dialogue alike.

The default asks the base model (LoRA off, so that the policy can't change its own yardstick) about the finished
latent, slightly noised with one fixed noise, under the empty prompt, and takes what enters the U-Net's last
convolution. The mean over all pictures so far is subtracted, else every cosine is close to 1.

Shapes: N samples, C channels, H W latent height and width, F features (channels × 8 × 8).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, normalize

from vca.diffusion.losses import add_noise
from vca.models.stable_diffusion import StableDiffusion

_POOLED = 8
_PROBE_TIMESTEP = 50
_PROBE_SEED = 1234
_SLOWEST = 0.01  # the running mean follows the policy at this rate at least


class LastLayer:
    """Keeps what entered the U-Net's last convolution in the latest forward pass, while the context lasts."""

    def __init__(self, unet: nn.Module) -> None:
        self.unet, self.input_NCHW = unet, torch.empty(0)

    def __enter__(self) -> LastLayer:
        def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self.input_NCHW = inputs[0]

        self.handle = self.unet.conv_out.register_forward_pre_hook(keep)  # type: ignore[union-attr,operator]
        return self

    def __exit__(self, *exc: object) -> None:
        self.handle.remove()

    def pooled(self, rows: int) -> Tensor:
        """[rows, F]: of a guided pass, the conditional half, which stands last."""
        return pool(self.input_NCHW[-rows:])


def pool(maps_NCHW: Tensor) -> Tensor:
    """[N, F] in float32."""
    return adaptive_avg_pool2d(maps_NCHW.float(), (_POOLED, _POOLED)).flatten(1)


def probe(pipeline: StableDiffusion, latents_NCHW: Tensor) -> Tensor:
    """[N, F] of finished latents; differentiable in them."""
    generator = torch.Generator().manual_seed(_PROBE_SEED)
    noise_CHW = torch.randn(pipeline.latent_shape, generator=generator).to(latents_NCHW)
    noised_NCHW = add_noise(latents_NCHW, noise_CHW, pipeline.alphas_cumprod_T[_PROBE_TIMESTEP].to(latents_NCHW))
    timesteps_N = torch.full((len(latents_NCHW),), _PROBE_TIMESTEP, device=latents_NCHW.device)
    null_NLD = pipeline.encode_prompts([""]).expand(len(latents_NCHW), -1, -1)
    with pipeline.adapter_off(), LastLayer(pipeline.unet) as last:
        pipeline.predict(noised_NCHW, timesteps_N, null_NLD)
        return last.pooled(len(latents_NCHW))


class RunningMean:
    """The features' mean over all pictures so far; later ones count by 1 % at least."""

    def __init__(self) -> None:
        self.mean_F: Tensor | None = None
        self.seen = 0

    def update(self, batch_mean_F: Tensor) -> None:
        self.seen += 1
        rate = max(1 / self.seen, _SLOWEST)
        self.mean_F = batch_mean_F if self.mean_F is None else self.mean_F + rate * (batch_mean_F - self.mean_F)

    def unit(self, features_NF: Tensor) -> Tensor:
        """Centred, and of length 1."""
        centred = features_NF if self.mean_F is None else features_NF - self.mean_F.to(features_NF)
        return normalize(centred, dim=1)

    def state_dict(self) -> dict[str, Any]:
        return {"mean": None if self.mean_F is None else self.mean_F.cpu(), "seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.mean_F, self.seen = state["mean"], state["seen"]
