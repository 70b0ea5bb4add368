"""The judges at one table: everything that is said of pictures in an evaluation. B batch, C channels, H, W, N = B."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from vca.evaluation.judges import ContentJudge
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

    def see(self, images_BCHW: Tensor) -> tuple[Tensor, Labels]:
        """Content vectors [B,E], and the number of the likeliest drawing style of each picture."""
        features_BF = self.shipped.features(images_BCHW=images_BCHW)
        if self.content is self.shipped:
            vectors_BE = self.shipped.embed_features(features_BF=features_BF)
        else:
            vectors_BE = self.content.embed_images(images_BCHW=images_BCHW)
        return vectors_BE, self.shipped.style_logp(features_BF=features_BF).argmax(1).numpy()

    def look(self, *, prompts: list[str], images_BCHW: Tensor) -> Verdicts:
        """All verdicts; a picture's retrieval rank is among these very prompts."""
        vectors_BE, style_N = self.see(images_BCHW)
        similarity = (vectors_BE @ self.content.embed_texts(texts=prompts).T).double()
        return Verdicts(
            content_N=similarity.diagonal().numpy(),
            rank_N=retrieval_ranks(similarity_NN=similarity.numpy()),
            style_N=style_N,
            reward_N=self.rewards(prompts=prompts, images_BCHW=images_BCHW),
        )

    def rewards(self, *, prompts: list[str], images_BCHW: Tensor) -> Array:
        """Calibrated reward: standard deviations above the mean of validation pictures, [N]."""
        scores = self.reward.score(prompts=prompts, images_BCHW=images_BCHW)
        return scores.calibrated_B.detach().cpu().double().numpy()

    def appraise(self, intents: list[str], images_BCHW: Tensor) -> tuple[list[float], list[str]]:
        """What a simulated person sees: content of the intent, and the drawing style's name."""
        vectors_BE, styles = self.see(images_BCHW)
        content = (vectors_BE * self.content.embed_texts(texts=intents)).sum(1)
        return content.tolist(), [self.shipped.styles[style] for style in styles]
