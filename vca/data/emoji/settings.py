"""How much of EmojiDialog to draw, and how its simulated people judge."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class EmojiSettings(BaseModel):
    """Counts are upper bounds: a kind whose distinct pairs run out yields fewer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    train_pairs: int = Field(15000, ge=0, description="preference pairs for reward training")
    validation_pairs: int = Field(600, ge=0, description="preference pairs for calibration, from pictures of their own")
    test_pairs: int = Field(2600, ge=0, description="preference pairs on held-out concepts, judged without mistakes")
    train_dialogues: int = Field(1500, ge=0, description="dialogues for diffusion training")
    validation_dialogues: int = Field(150, ge=0, description="dialogues for choosing settings, such as the LoRA scale")
    test_dialogues: int = Field(300, ge=0, description="dialogues from held-out items")

    style_open: float = Field(
        0.8, ge=0, le=1, description="share of dialogues, and of prompts of pairs, that leave the drawing style open"
    )
    taste_pairs: float = Field(0.25, ge=0, le=1, description="share of pairs that differ in nothing but drawing style")
    degraded_pairs: float = Field(0.10, ge=0, le=1, description="share of pairs where the loser is a spoilt copy")
    drawn_pairs: float = Field(
        0.75,
        ge=0,
        le=1,
        description="share of taste and spoilt pairs, but of no test pairs, that show what the shipped base model drew",
    )
    mixed_styles: float = Field(
        0.5,
        ge=0,
        le=1,
        description="share of the other style-open pairs in which one picture, either one, is in the preferred style",
    )

    people: int = Field(40, ge=1, description="simulated annotators")
    taste_share: float = Field(0.90, ge=0, le=1, description="share of the annotators who like `fluent` best")
    taste_follow: float = Field(0.95, ge=0, le=1, description="how often such an annotator follows that taste")
    label_noise: float = Field(0.03, ge=0, le=0.5, description="share of judgements that are plain mistakes")
