"""The autoencoder of the small Stable Diffusion, and what its training shares with the U-Net's."""

from __future__ import annotations

import io
import itertools
import math
import time
from collections.abc import Iterator

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from vca.data.emoji.catalogue import EmojiItem
from vca.models.stable_diffusion import StableDiffusion

LATENT_CHANNELS = 12


def images_of(items: list[EmojiItem]) -> Tensor:
    """uint8 [N,3,64,64]."""
    arrays = [np.asarray(Image.open(io.BytesIO(item.png)).convert("RGB")) for item in items]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


def batches(count: int, size: int, steps: int, generator: torch.Generator) -> Iterator[Tensor]:
    """`steps` index batches over shuffled epochs."""
    stream: Iterator[Tensor] = itertools.chain.from_iterable(
        torch.randperm(count, generator=generator).split(size) for _ in itertools.count()
    )
    return itertools.islice((batch for batch in stream if len(batch) == size), steps)


def cosine(step: int, steps: int, warmup: int) -> float:
    return min((step + 1) / warmup, 1.0) * 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0))) + 1e-3


class Log:
    """A line every few seconds: step, loss, CPU seconds."""

    def __init__(self, phase: str, steps: int) -> None:
        self.phase, self.steps, self.start, self.last, self.mean = phase, steps, time.process_time(), 0.0, 0.0

    def __call__(self, step: int, loss: float) -> None:
        self.mean = loss if step == 0 else 0.98 * self.mean + 0.02 * loss
        seconds = time.process_time() - self.start
        if seconds - self.last > 15 or step + 1 == self.steps:
            self.last = seconds
            print(f"{self.phase} {step + 1}/{self.steps} loss {self.mean:.4f} cpu {seconds:.0f}s", flush=True)


class Averages:
    """Exponential moving averages of parameters, and a way to look through them."""

    def __init__(self, parameters: list[torch.nn.Parameter]) -> None:
        self.parameters = parameters
        self.values = [parameter.detach().clone() for parameter in parameters]

    def update(self, step: int) -> None:
        decay = min(0.999, (step + 1) / (step + 10))
        torch._foreach_lerp_(self.values, [parameter.detach() for parameter in self.parameters], 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        for parameter, value in zip(self.parameters, self.values, strict=True):
            kept = parameter.clone()
            parameter.copy_(value)
            value.copy_(kept)


def new_autoencoder() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 96),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def edges(images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    return images_BCHW.diff(dim=-1), images_BCHW.diff(dim=-2)


def outline_loss(output_BCHW: Tensor, images_BCHW: Tensor) -> Tensor:
    """L1 on pixels and on edges; the second keeps outlines sharp where a perceptual net would be used at scale."""
    loss = F.l1_loss(output_BCHW, images_BCHW)
    for ours, theirs in zip(edges(output_BCHW), edges(images_BCHW), strict=True):
        loss = loss + F.l1_loss(ours, theirs)
    return loss


def colour_loss(output_BCHW: Tensor, images_BCHW: Tensor) -> Tensor:
    """Squared error of pixels and of averages over 4x4 and 8x8. L1 alone settles on the median hue, orange or blue."""
    coarse = [F.mse_loss(F.avg_pool2d(output_BCHW, k), F.avg_pool2d(images_BCHW, k)) for k in (4, 8)]
    return F.mse_loss(output_BCHW, images_BCHW) + 4 * (coarse[0] + coarse[1])


def train_autoencoder(
    vae: AutoencoderKL, images: Tensor, *, colour: bool, steps: int, warmup: int, seed: int
) -> AutoencoderKL:
    """One phase on train-side pictures and their mirror images, then the latent scale. Returns averaged weights."""
    torch.manual_seed(seed)
    vae.train().to(memory_format=torch.channels_last)
    parameters = list(vae.parameters())
    averages = Averages(parameters)
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, betas=(0.9, 0.99), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: cosine(step, steps, warmup))
    generator, log = torch.Generator().manual_seed(seed), Log("autoencoder", steps)
    for step, index in enumerate(batches(len(images), 16, steps, generator)):
        batch_BCHW = images[index].float() / 127.5 - 1
        if step % 2:
            batch_BCHW = batch_BCHW.flip(-1)
        batch_BCHW = batch_BCHW.to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(batch_BCHW).latent_dist
            output_BCHW = vae.decode(posterior.sample(generator=generator)).sample.float()
        divergence = (posterior.mean.float().square() + posterior.var.float() - 1 - posterior.logvar.float()).mean()
        loss = outline_loss(output_BCHW, batch_BCHW) + 1e-4 * divergence
        if colour:
            loss = loss + colour_loss(output_BCHW, batch_BCHW)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        averages.update(step)
        log(step, loss.item())
    averages.swap()
    vae.eval()
    with torch.no_grad():
        sample = torch.cat([vae.encode(b.float() / 127.5 - 1).latent_dist.mean for b in images[::14].split(64)])
    vae.register_to_config(scaling_factor=round(1 / float(sample.std()), 4))
    return vae


@torch.no_grad()
def psnr(vae: AutoencoderKL, images: Tensor) -> float:
    """dB, mean over pictures."""
    values = []
    for part in images.split(64):
        target = part.float() / 127.5 - 1
        output = vae.decode(vae.encode(target).latent_dist.mean).sample.clamp(-1, 1)
        values.append(-10 * torch.log10(((output - target) / 2).square().mean((1, 2, 3))))
    return float(torch.cat(values).mean())


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Tensor) -> tuple[Tensor, Tensor]:
    """Scaled posterior mean and standard deviation of each picture."""
    posteriors = [vae.encode(part.float() / 127.5 - 1).latent_dist for part in images.split(64)]
    scale = vae.config.scaling_factor
    return torch.cat([p.mean for p in posteriors]) * scale, torch.cat([p.std for p in posteriors]) * scale


@torch.no_grad()
def redrawn(images: Tensor, base: StableDiffusion, noise: float) -> Tensor:
    """Through the policy's autoencoder, whose traces must not pass for a drawing style; `noise` on the latents."""
    out = []
    for part in torch.split(images, 64):
        mean = base.encode_images(part)[0]
        out.append(base.decode(mean + noise * torch.randn_like(mean)))
    return torch.cat(out)
