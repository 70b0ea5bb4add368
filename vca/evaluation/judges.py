"""Who judges content: the shipped judge of the emoji world, or a CLIP model. Style and distance are always the shipped.

B batch, C channels, H, W, E embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from vca.errors import ArtifactError
from vca.models.judge import Judge
from vca.models.location import resolve

SHIPPED = "package:judge"


class ContentJudge(Protocol):
    """Pictures and texts as unit vectors of one space."""

    def embed_images(self, *, images_BCHW: Tensor) -> Tensor: ...

    def embed_texts(self, *, texts: list[str]) -> Tensor: ...


def content_scores(judge: ContentJudge, *, prompts: list[str], images_BCHW: Tensor) -> Tensor:
    """Cosine of each picture and its own prompt, [B]."""
    return (judge.embed_images(images_BCHW=images_BCHW) * judge.embed_texts(texts=prompts)).sum(1)


@dataclass(frozen=True, kw_only=True)
class Clip:
    """The real CLIP (Radford et al. 2021), loaded by transformers."""

    model: Any
    tokenizer: Any
    processor: Any

    @classmethod
    def load(cls, location: str) -> Clip:
        """ArtifactError where no CLIP model is at `location`."""
        from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

        source = resolve(location)
        try:
            model = CLIPModel.from_pretrained(source).eval()
            processor = CLIPImageProcessorPil.from_pretrained(source)
            tokenizer = AutoTokenizer.from_pretrained(source)
        except Exception as error:  # the loaders raise whatever their file formats raise
            line = (str(error).splitlines() or [type(error).__name__])[0]
            raise ArtifactError(
                f"evaluation.content_judge {location!r} is no CLIP model ({line}); give one, or {SHIPPED}"
            ) from error
        return cls(model=model, tokenizer=tokenizer, processor=processor)

    @torch.inference_mode()
    def embed_images(self, *, images_BCHW: Tensor) -> Tensor:
        size = self.model.config.vision_config.image_size
        pixels = F.interpolate(images_BCHW.float(), size=(size, size), mode="bicubic", antialias=True).clamp(0, 1)
        mean, std = (torch.tensor(v)[:, None, None] for v in (self.processor.image_mean, self.processor.image_std))
        parts = [
            self.model.get_image_features(pixel_values=(p - mean) / std).pooler_output for p in torch.split(pixels, 32)
        ]
        return F.normalize(torch.cat(parts), dim=1)

    @torch.inference_mode()
    def embed_texts(self, *, texts: list[str]) -> Tensor:
        length = self.model.config.text_config.max_position_embeddings
        parts = []
        for start in range(0, len(texts), 64):
            tokens = self.tokenizer(
                texts[start : start + 64], padding=True, truncation=True, max_length=length, return_tensors="pt"
            )
            parts.append(self.model.get_text_features(**tokens).pooler_output)
        return F.normalize(torch.cat(parts), dim=1)


def load_content_judge(location: str, *, shipped: Judge) -> ContentJudge:
    """The shipped judge for `package:judge`, else the CLIP model at `location`."""
    return shipped if location == SHIPPED else Clip.load(location)
