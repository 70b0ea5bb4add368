"""The judges at one table: everything that is said of pictures in an evaluation. B batch, C channels, H, W, N = B."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from vca.evaluation.judges import ContentJudge, content_scores
from vca.evaluation.metrics import Labels, retrieval_ranks
from vca.evaluation.statistics import Array
from vca.models.judge import Judge
from vca.reward.scorer import RewardScorer


@dataclass(frozen=True, kw_only=True)
class Verdicts:
    """One figure per picture: content judge, its retrieval rank, judged style (number), calibrated reward."""

    content_N: Array
    rank_N: Labels
    style_N: Labels
    reward_N: Array

    def taste_N(self, style: int) -> Array:
        """1 where the picture is drawn in `style`."""
        share_N: Array = (self.style_N == style).astype(np.float64)
        return share_N


@dataclass(frozen=True, kw_only=True)
class Panel:
    """content: "CLIP-style" or CLIP. shipped: style and distance. reward: the trained reward model."""

    content: ContentJudge
    shipped: Judge
    reward: RewardScorer

    def look(self, *, prompts: list[str], images_BCHW: Tensor) -> Verdicts:
        """All verdicts; a picture's retrieval rank is among these very prompts."""
        similarity = self.content.embed_images(images_BCHW=images_BCHW) @ self.content.embed_texts(texts=prompts).T
        return Verdicts(
            content_N=similarity.diagonal().double().numpy(),
            rank_N=retrieval_ranks(similarity_NN=similarity.double().numpy()),
            style_N=self.styles(images_BCHW),
            reward_N=self.rewards(prompts=prompts, images_BCHW=images_BCHW),
        )

    def styles(self, images_BCHW: Tensor) -> Labels:
        """Number of the likeliest drawing style, [N]."""
        return self.shipped.style_logp(images_BCHW=images_BCHW).argmax(1).numpy()

    def rewards(self, *, prompts: list[str], images_BCHW: Tensor) -> Array:
        """Calibrated reward: standard deviations above the mean of validation pictures, [N]."""
        scores = self.reward.score(prompts=prompts, images_BCHW=images_BCHW)
        return scores.calibrated_B.detach().cpu().double().numpy()

    def appraise(self, intents: list[str], images_BCHW: Tensor) -> tuple[list[float], list[str]]:
        """What a simulated person sees: content of the intent, and the drawing style's name."""
        content = content_scores(self.content, prompts=intents, images_BCHW=images_BCHW)
        return content.tolist(), [self.shipped.styles[style] for style in self.styles(images_BCHW)]
