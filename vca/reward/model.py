"""The reward model: a Qwen-VL in NF4, LoRA adapters on its language model, and a head. r(P, x) is one number per row.

Shape suffixes: B rows, C channels, H, W pixels, I image tokens of one image, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vca.models import qwen_vl
from vca.reward import heads
from vca.reward.settings import RewardSettings

# Attention and MLP of the language model; the vision tower's layers carry some of the same names and stay frozen.
TARGETS = r".*language_model\..*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


class RewardModel(nn.Module):
    """Score rows of prompt and image; `parameters()` that require gradients are the adapters and a learned head."""

    def __init__(self, *, settings: RewardSettings, device: str = "cpu", adapter: Path | None = None) -> None:
        """Fresh adapters, or those saved in `adapter`. On a CPU the base computes in float32."""
        from peft import LoraConfig, PeftModel, get_peft_model

        super().__init__()
        self.settings = settings
        self.reader = qwen_vl.load(
            location=settings.base,
            image_size=settings.image_size,
            layout=settings.layout,
            instruction=settings.instruction,
            device=device,
            dtype=torch.float32 if device == "cpu" else getattr(torch, settings.compute_dtype),
        )
        base = self.reader.model
        start_D = heads.weights(settings.head, output_VD=base.lm_head.weight.detach())
        if adapter is None:
            torch.manual_seed(settings.seed)
            config = LoraConfig(
                r=settings.lora_rank,
                lora_alpha=settings.lora_alpha,
                lora_dropout=settings.lora_dropout,
                target_modules=TARGETS,
                base_model_name_or_path=settings.base,
            )
            self.adapted: Any = get_peft_model(base, config)
        else:
            self.adapted = PeftModel.from_pretrained(base, adapter)
        self.adapted.eval()
        self.register_buffer("start_D", start_D, persistent=False)
        self.start_D: Tensor
        self.head_D = nn.Parameter(start_D.clone(), requires_grad=settings.head in heads.LEARNED)
        yes, no = self.reader.answer_ids
        weight = base.lm_head.weight.detach().float()
        self.register_buffer("yes_no_D", weight[yes] - weight[no], persistent=False)
        self.yes_no_D: Tensor

    def forward(self, *, prompts: Sequence[str], image_tokens_BID: Tensor) -> Tensor:
        """r, float32 [B]; prompts and images pair up row by row."""
        return heads.score(
            pooled_BD=self.pooled(prompts=prompts, image_tokens_BID=image_tokens_BID), weights_D=self.head_D
        )

    def pooled(self, *, prompts: Sequence[str], image_tokens_BID: Tensor) -> Tensor:
        """What the head weighs, [B, D], or [B, D + 1] with the log-likelihood of the prompt last."""
        rows = self.reader.rows(prompts=prompts)
        hidden_BLD = self.reader.hidden(rows=rows, image_tokens_BID=image_tokens_BID)
        pooled_BD = heads.pool(self.settings.pooling, hidden_BLD=hidden_BLD, rows=rows)
        if self.settings.head == "linear_likelihood":
            logp_B = self.reader.log_likelihood(rows=rows, hidden_BLD=hidden_BLD)
            pooled_BD = torch.cat([pooled_BD, logp_B[:, None]], 1)
        return pooled_BD

    def components(self, *, pooled_BD: Tensor) -> dict[str, Tensor]:
        """The parts that r is the sum of, [B] each: what was learned from preferences, and the prompt's likelihood."""
        if self.settings.head != "linear_likelihood":
            return {"preference": heads.score(pooled_BD=pooled_BD, weights_D=self.head_D)}
        return {
            "preference": heads.score(pooled_BD=pooled_BD[:, :-1], weights_D=self.head_D[:-1]),
            "likelihood": heads.score(pooled_BD=pooled_BD[:, -1:], weights_D=self.head_D[-1:]),
        }

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Within: no adapters, the head as it was at the start, no dropout, no gradients. This is r_ref."""
        training, trained_D = self.training, self.head_D.data
        self.eval()
        self.head_D.data = self.start_D
        try:
            with self.adapted.disable_adapter(), torch.no_grad():
                yield
        finally:
            self.head_D.data = trained_D
            self.train(training)

    def base_match(self, *, prompts: Sequence[str], image_tokens_BID: Tensor) -> Tensor:
        """The untrained base's own opinion: log-odds of Yes against No where the score is read, [B]."""
        with self.reference():
            rows = self.reader.rows(prompts=prompts)
            hidden_BLD = self.reader.hidden(rows=rows, image_tokens_BID=image_tokens_BID)
            pooled_BD = heads.pool("last", hidden_BLD=hidden_BLD, rows=rows)
            return heads.score(pooled_BD=pooled_BD, weights_D=self.yes_no_D)

    def trainable(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def train(self, mode: bool = True) -> RewardModel:
        """Training mode for the adapters' dropout; the base itself has none, and the vision tower is frozen."""
        super().train(mode)
        self.adapted.train(mode)
        return self
