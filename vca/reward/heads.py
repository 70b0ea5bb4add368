"""From hidden states to one number per row (the paper's "mean of the logits with the final linear layer removed").

All readings of that sentence are r = pool(H) · w with w fixed to 1/D ("hidden_mean"), fixed to the mean row of the
output layer ("vocab_mean"), or learned from zero ("linear"). "linear_likelihood" learns one weight more, for
log p(P | x): up to a term of the prompt alone, that is the pointwise mutual information of prompt and image, the I(X;Y)
of the paper's R_MI. What a model knows from captioning it need not learn again from preferences.

In the base's own reading ("yes_no") w is the difference of the output layer's rows for Yes and No: how much likelier
the base calls it a match, before any training.

Shape suffixes: B rows, L tokens, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from vca.models.qwen_vl import Rows

Head = Literal["hidden_mean", "vocab_mean", "linear", "linear_likelihood"]
LEARNED = ("linear", "linear_likelihood")
Pooling = Literal["mean", "last"]


def weights(head: Head, *, output_VD: Tensor) -> Tensor:
    """The head's weights at the start of training, float32 [D], or [D + 1] with the likelihood's.

    Zero where they are learned, so that the reference is 0.
    """
    width = output_VD.shape[1]
    if head == "hidden_mean":
        return torch.full((width,), 1 / width, device=output_VD.device)
    if head == "vocab_mean":
        return output_VD.float().mean(0)
    return torch.zeros(width + (head == "linear_likelihood"), device=output_VD.device)


def pool(pooling: Pooling, *, hidden_BLD: Tensor, rows: Rows) -> Tensor:
    """One state per row, [B, D]: the mean over the tokens that have read the image, or the last token's.

    The end of a row comes from its mask, never from a search for padding ids, which fails where pad is also end.
    """
    if pooling == "last":
        return hidden_BLD[torch.arange(len(hidden_BLD)), rows.last_B.to(hidden_BLD.device)]
    after_BL1 = rows.after_BL.to(hidden_BLD.device).unsqueeze(-1)
    return (hidden_BLD * after_BL1).sum(1) / after_BL1.sum(1)


def score(*, pooled_BD: Tensor, weights_D: Tensor) -> Tensor:
    """r = pooled · w, in float32: [B]."""
    return pooled_BD.float() @ weights_D.float()
