"""Scoring with a trained reward model: for the policy trainer, evaluation and serving.

Shape suffixes: B rows, C channels, H, W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vca.reward import adapter, heads
from vca.reward.adapter import CLAMP, Calibration
from vca.reward.model import RewardModel

# Rows per forward pass. Larger gains nothing on a CPU and only costs memory elsewhere.
ROWS = 64


@dataclass(frozen=True, kw_only=True)
class Scores:
    """raw_B: r. calibrated_B: R_MI = clamp((r - mu) / s, -4, 4), mu and s from validation pairs. Float32.

    components: the parts that raw_B is the sum of, by name, [B] each.
    """

    raw_B: Tensor
    calibrated_B: Tensor
    components: dict[str, Tensor]


class RewardScorer:
    """r(P, x) of a saved adapter. A score depends on neither padding nor the other rows of a batch."""

    def __init__(self, *, model: RewardModel, calibration: Calibration) -> None:
        self.model, self.calibration = model, calibration

    @classmethod
    def load(cls, adapter_folder: Path, *, device: str = "cpu") -> RewardScorer:
        """Raises ArtifactError where the adapter is damaged or made for another base model."""
        model, calibration = adapter.load(adapter_folder, device=device)
        return cls(model=model, calibration=calibration)

    def score(self, *, prompts: list[str], images_BCHW: Tensor) -> Scores:
        """Score image i under prompt i; images float in [0, 1], of any size.

        If the images require gradients, so do the scores (the clamp passes none beyond ±4).
        """
        if len(prompts) != len(images_BCHW):
            raise ValueError(f"{len(prompts)} prompts for {len(images_BCHW)} images; give one prompt per image")
        with torch.set_grad_enabled(images_BCHW.requires_grad):
            parts = []
            for start in range(0, len(prompts), ROWS):
                rows = slice(start, start + ROWS)
                tokens = self.model.reader.image_tokens(images_BCHW=images_BCHW[rows])
                parts.append(self.model.pooled(prompts=prompts[rows], image_tokens_BID=tokens))
            pooled_BD = torch.cat(parts)
            raw_B = heads.score(pooled_BD=pooled_BD, weights_D=self.model.head_D)
            calibrated_B = ((raw_B - self.calibration.mu) / self.calibration.s).clamp(-CLAMP, CLAMP)
            components = self.model.components(pooled_BD=pooled_BD)
        return Scores(raw_B=raw_B, calibrated_B=calibrated_B, components=components)
