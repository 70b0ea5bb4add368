"""The published EfficientNet-Lite0 weights, rewritten for `vca.models.efficientnet_lite`."""

from __future__ import annotations

import torch
from torch import Tensor

from vca.models.efficientnet_lite import STAGES


def fold_batch_norms(state: dict[str, Tensor], *, epsilon: float = 1e-3) -> dict[str, Tensor]:
    """The published state dict (`_conv_stem`, `_blocks.N._expand_conv`, …) as this module's, batch norms folded in."""

    def folded(conv: str, norm: str) -> tuple[Tensor, Tensor]:
        gain = state[f"{norm}.weight"] / torch.sqrt(state[f"{norm}.running_var"] + epsilon)
        bias = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * gain
        return state[f"{conv}.weight"] * gain[:, None, None, None], bias

    out: dict[str, Tensor] = {}
    out["stem.weight"], out["stem.bias"] = folded("_conv_stem", "_bn0")
    out["head.weight"], out["head.bias"] = folded("_conv_head", "_bn1")
    number = 0
    for s, (_, _, expansion, _, repeats) in enumerate(STAGES):
        for r in range(repeats):
            parts = (
                ["_depthwise_conv", "_project_conv"]
                if expansion == 1
                else ["_expand_conv", "_depthwise_conv", "_project_conv"]
            )
            norms = ["_bn1", "_bn2"] if expansion == 1 else ["_bn0", "_bn1", "_bn2"]
            for place, (conv, norm) in enumerate(zip(parts, norms, strict=True)):
                at = f"stages.{s}.{r}.layers.{2 * place}"
                out[f"{at}.weight"], out[f"{at}.bias"] = folded(f"_blocks.{number}.{conv}", f"_blocks.{number}.{norm}")
            number += 1
    return out
