"""Pictures of the base and of the trained policy from the same noise.

B batch, C channels, H, W latent or image height and width.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from vca.diffusion.sampler import Samples, generate, start_step
from vca.models.stable_diffusion import StableDiffusion


@dataclass(frozen=True, kw_only=True)
class Painter:
    """Generates in batches. The noise of a picture comes from `seed` and its key alone, whichever policy draws it."""

    pipeline: StableDiffusion
    steps: int
    guidance: float
    eta: float
    batch: int
    seed: int

    @contextmanager
    def policy(self, scale: float) -> Iterator[None]:
        """Draw with the LoRA at `scale`; 0 is the base."""
        if scale == 0:
            with self.pipeline.adapter_off():
                yield
        else:
            self.pipeline.set_scale(scale)
            yield

    def paint(
        self,
        *,
        prompts: Sequence[str],
        keys: Sequence[str],
        previous_BCHW: Tensor | None = None,
        strengths: Sequence[float | None] | None = None,
    ) -> Samples:
        """One picture per prompt. A strength re-draws that share of its previous latent; None starts from noise."""
        wanted = list(strengths or [None] * len(prompts))
        groups: dict[int | None, list[int]] = defaultdict(list)
        for row, strength in enumerate(wanted):
            groups[None if strength is None else start_step(strength, steps=self.steps)].append(row)
        chunks = [rows[at : at + self.batch] for rows in groups.values() for at in range(0, len(rows), self.batch)]
        latents: list[Tensor | None] = [None] * len(prompts)
        images: list[Tensor | None] = [None] * len(prompts)
        for rows in chunks:
            again = wanted[rows[0]] is not None
            part = generate(
                self.pipeline,
                prompts=[prompts[row] for row in rows],
                previous_latents=previous_BCHW[rows].to(self.pipeline.device)
                if again and previous_BCHW is not None
                else None,
                strength=wanted[rows[0]],
                steps=self.steps,
                guidance=self.guidance,
                eta=self.eta,
                generators=[self._generator(keys[row]) for row in rows],
            )
            for row, latent, image in zip(rows, part.latents_BCHW, part.images_BCHW, strict=True):
                latents[row], images[row] = latent.cpu(), image.cpu()
        return Samples(
            latents_BCHW=torch.stack([latent for latent in latents if latent is not None]),
            images_BCHW=torch.stack([image for image in images if image is not None]),
        )

    def _generator(self, key: str) -> torch.Generator:
        digest = hashlib.sha256(f"{self.seed} {key}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
