"""What can be set about reward training. The defaults are the paper's figures and readings, to the letter."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from vca.errors import SettingsError


class RewardSettings(BaseModel):
    """Reward training: a Qwen-VL with LoRA adapters over 4-bit weights, on preference pairs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = Field(0, description="seed of adapters, dropout and the order of pairs", ge=0, lt=2**31)

    base: str = Field(
        "Qwen/Qwen2-VL-7B-Instruct",
        description="base model: a folder, package:NAME, a hub id, or s3:// gs:// oci:// as the platform mounts it",
        min_length=1,
    )
    image_size: int = Field(448, description="side of the square images the model reads, pixels", ge=28, le=2048)
    layout: Literal["prompt_first", "image_first"] = Field(
        "prompt_first", description="what comes first in a row; prompt_first lets the images of a prompt share a prefix"
    )
    instruction: str = Field(
        "Does the image match this description? Answer Yes or No.",
        description="question after prompt and image; at its end the score is read",
        min_length=1,
    )

    head: Literal["hidden_mean", "vocab_mean", "linear", "linear_likelihood"] = Field(
        "hidden_mean",
        description="how a hidden state becomes a number: mean, mean row of lm_head, learned weights, or learned "
        "weights on it and on the prompt's log-likelihood",
    )
    pooling: Literal["mean", "last"] = Field(
        "mean", description="over all tokens after the image, or the last token alone"
    )
    loss: Literal["dpo", "bt", "bce", "btt"] = Field(
        "dpo", description="dpo: against the base as reference; bt: Bradley-Terry; bce: each image; btt: with ties"
    )
    beta: float = Field(1.0, description="factor on score differences in the loss", gt=0, le=1000)
    label_smoothing: float = Field(0.0, description="share of pairs assumed to be labelled wrongly", ge=0, lt=0.5)
    center: float = Field(0.0, description="weight of the squared mean score of a pair, which stops drift", ge=0, le=1)

    lora_rank: int = Field(64, description="rank of the adapters", ge=1, le=512)
    lora_alpha: float = Field(16.0, description="alpha of the adapters; their scale is alpha / rank", gt=0, le=1024)
    lora_dropout: float = Field(0.05, description="dropout in front of the adapters, share", ge=0, lt=1)

    learning_rate: float = Field(1e-4, description="highest learning rate of AdamW", gt=0, le=1)
    warmup: float = Field(
        0.03, description="share of the steps in which the rate rises; then it falls as a cosine", ge=0, lt=1
    )
    clip_norm: float = Field(1.0, description="largest norm of the gradient", gt=0)
    epochs: int = Field(1, description="passes over the pairs", ge=1, le=1000)
    batch: int = Field(128, description="pairs per optimizer step, over all processes", ge=1)
    micro_batch: int = Field(4, description="pairs per forward pass of one process", ge=1)
    negative_mix: float = Field(
        0.5, description="largest share of a batch that random mismatches may take; they are trivially easy", gt=0, le=1
    )
    gradient_checkpointing: bool = Field(True, description="recompute activations: a third more time, far less memory")
    compute_dtype: Literal["float32", "bfloat16"] = Field("bfloat16", description="precision of the forward pass")
    image_cache_mb: int = Field(
        2048, description="memory for what the frozen vision tower says of the images, MB; 0: always ask it anew", ge=0
    )

    @model_validator(mode="after")
    def _combination(self) -> Self:
        if self.head == "linear_likelihood" and self.layout != "image_first":
            raise ValueError(
                f"reward.layout {self.layout}: a prompt that comes before the picture has no likelihood given it; "
                "set layout to image_first, or head to linear"
            )
        if self.batch % self.micro_batch:
            below = max(n for n in range(1, self.micro_batch + 1) if self.batch % n == 0)
            raise ValueError(
                f"reward.batch {self.batch} is no multiple of reward.micro_batch {self.micro_batch}; "
                f"set micro_batch to {below}, or batch to {self.micro_batch * max(1, self.batch // self.micro_batch)}"
            )
        return self

    def accumulation(self, *, world: int) -> int:
        """Forward passes per optimizer step and process, in a run of `world` processes.

        Raises SettingsError where the batch can't be shared out evenly.
        """
        if self.batch % (self.micro_batch * world):
            raise SettingsError(
                f"reward.batch {self.batch} is not shared evenly by {world} processes in micro-batches "
                f"of {self.micro_batch}: set reward.batch to a multiple of {self.micro_batch * world}"
            )
        return self.batch // (self.micro_batch * world)

    def arithmetic(self, *, world: int) -> str:
        """The batch in words: "128 pairs = 4 in a micro-batch × 4 accumulated × 8 processes"."""
        return (
            f"{self.batch} pairs = {self.micro_batch} in a micro-batch × {self.accumulation(world=world)} accumulated "
            f"× {world} process{'es' if world > 1 else ''}"
        )
