"""The noise loss on real pictures (Algorithm 1, lines 15-17), which keeps the policy near what pictures look like.

Shapes: B pictures of one forward pass, C channels, H W latent height and width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from vca.diffusion import dialogues as d
from vca.diffusion.dialogues import Target
from vca.diffusion.distributed import World
from vca.diffusion.losses import add_noise, noise_loss, noise_target, noise_weights
from vca.diffusion.settings import DiffusionSettings
from vca.models.stable_diffusion import StableDiffusion

_NULL_PROMPT = 0.1  # share of pictures shown without their prompt, so that guidance keeps working


class Anchor:
    """Draws real pictures and says how badly the network denoises them."""

    def __init__(
        self, *, pipeline: StableDiffusion, config: DiffusionSettings, targets: Sequence[Target], world: World
    ) -> None:
        self.pipeline, self.config, self.targets, self.world = pipeline, config, targets, world
        self.posteriors: dict[int, tuple[Tensor, Tensor]] = {}

    def losses(self, *, iteration: int, step: int) -> Iterator[Tensor]:
        """Per forward pass a scalar; together, over all processes, they average to noise_weight × the mean loss."""
        config = self.config
        mine = range(self.world.rank, config.noise_batch, self.world.size)
        for first in range(0, len(mine), config.micro_batch):
            keys = [(config.seed, "anchor", iteration, step, n) for n in mine[first : first + config.micro_batch]]
            yield config.noise_weight * self._loss(keys).sum() * self.world.size / config.noise_batch

    def _loss(self, keys: Sequence[tuple[object, ...]]) -> Tensor:
        pipeline, shape = self.pipeline, self.pipeline.latent_shape
        total = len(pipeline.alphas_cumprod_T)
        prompts, timesteps, clean, noise = [], [], [], []
        for key in keys:
            lot = d.generator(*key)
            index, timestep = (int(torch.randint(n, (), generator=lot)) for n in (len(self.targets), total))
            hidden = float(torch.rand((), generator=lot)) < _NULL_PROMPT
            mean_CHW, std_CHW = self.posterior(index)
            prompts.append("" if hidden else self.targets[index].prompt)
            timesteps.append(timestep)
            clean.append(mean_CHW + std_CHW * torch.randn(shape, generator=lot).to(mean_CHW))
            noise.append(torch.randn(shape, generator=lot).to(mean_CHW))
        clean_BCHW, noise_BCHW = torch.stack(clean), torch.stack(noise)
        timesteps_B = torch.tensor(timesteps)
        abar_B = pipeline.alphas_cumprod_T[timesteps_B].to(clean_BCHW)
        abar = abar_B[:, None, None, None]
        earlier_B = (timesteps_B - total // self.config.steps).clamp(min=0)
        weights_B = noise_weights(
            abar_B,
            pipeline.alphas_cumprod_T[earlier_B].to(clean_BCHW),
            weighting=self.config.noise_weighting,
            prediction_type=pipeline.prediction_type,
        )
        output_BCHW = pipeline.predict(
            add_noise(clean_BCHW, noise_BCHW, abar),
            timesteps_B.to(pipeline.device),
            pipeline.encode_prompts(prompts),
        )
        target_BCHW = noise_target(clean_BCHW, noise_BCHW, abar, prediction_type=pipeline.prediction_type)
        return noise_loss(output_BCHW, target_BCHW, weights_B)

    def posterior(self, index: int) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of a target's latent, [C,H,W]; encoded when first asked for."""
        if index not in self.posteriors:
            from vca.data.images import decode

            pixels = torch.from_numpy(decode(self.targets[index].data, size=self.pipeline.image_size).copy())
            mean, std = self.pipeline.encode_images(pixels.permute(2, 0, 1)[None].float() / 255)
            self.posteriors[index] = mean[0], std[0]
        return self.posteriors[index]
