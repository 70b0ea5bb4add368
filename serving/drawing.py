"""Pictures as the device's thread draws them: a step at a time, together with whatever else is being drawn.

C channels, H, W picture or latent height and width.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from serving.device import Unit
from serving.release import Release
from vca.diffusion import continuous

Pixels = NDArray[np.uint8]
FLAT = 1.0  # grey levels: a picture whose values spread less shows nothing


@dataclass(eq=False, kw_only=True)
class Picture(Unit):
    """One picture to draw. Noise comes from `seed` alone, so a picture does not depend on what is drawn beside it.

    previous: what an edit starts from, pixels or the latent of a picture drawn here. previews: the steps after which
    `on_preview` is told what the picture will look like, in the device's thread. Results: latents_CHW, pixels_HWC.
    """

    release: Release
    prompt: str
    seed: int
    steps: int
    guidance: float
    previous: Pixels | Tensor | None = None
    strength: float = 1.0
    previews: frozenset[int] = frozenset()
    on_preview: Callable[[Pixels], None] | None = None
    chain: continuous.Chain | None = None
    latents_CHW: Tensor | None = None
    pixels_HWC: Pixels | None = None

    @property
    def flat(self) -> bool:
        """Black, white, grey or not a number: no picture to show anybody."""
        broken = self.latents_CHW is None or not bool(self.latents_CHW.isfinite().all())
        return broken or self.pixels_HWC is None or float(self.pixels_HWC.std()) < FLAT


@torch.no_grad()
def advance(pictures: list[Picture]) -> None:
    """One step of all pictures, in as many forwards of the U-Net as there are releases among them: mostly one."""
    by_release: dict[Release, list[Picture]] = defaultdict(list)
    for picture in pictures:
        by_release[picture.release].append(picture)
    for release, group in by_release.items():
        pipeline = release.pipeline
        chains = [picture.chain or _begin(picture) for picture in group]
        continuous.advance(pipeline, chains)
        for picture, chain in zip(group, chains, strict=True):
            picture.chain = chain
            if chain.step in picture.previews and picture.on_preview and chain.predicted_CHW is not None:
                picture.on_preview(_pixels(pipeline.decode(chain.predicted_CHW[None]))[0])
        finished = [picture for picture, chain in zip(group, chains, strict=True) if chain.done]
        if finished:
            latents_BCHW = torch.stack([chain.latents_CHW for chain in chains if chain.done])
            for picture, latents_CHW, pixels_HWC in zip(
                finished, latents_BCHW.cpu(), _pixels(pipeline.decode(latents_BCHW)), strict=True
            ):
                picture.latents_CHW, picture.pixels_HWC, picture.done = latents_CHW, pixels_HWC, True


def _begin(picture: Picture) -> continuous.Chain:
    pipeline = picture.release.pipeline
    previous = picture.previous
    if isinstance(previous, np.ndarray):
        images_BCHW = torch.from_numpy(previous.copy()).permute(2, 0, 1)[None].float() / 255
        previous = pipeline.encode_images(images_BCHW)[0][0]
    return continuous.begin(
        pipeline,
        prompt=picture.prompt,
        steps=picture.steps,
        guidance=picture.guidance,
        generator=torch.Generator().manual_seed(picture.seed),
        previous_CHW=previous,
        strength=picture.strength,
    )


def _pixels(images_BCHW: Tensor) -> list[Pixels]:
    values = images_BCHW.nan_to_num().mul(255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return list(np.ascontiguousarray(values))
