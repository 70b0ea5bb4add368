"""What can be set about data preparation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from vca.data.emoji.settings import EmojiSettings

NegativeKind = Literal["edited_prompt", "opposite_prompt", "mismatch"]


class FolderSettings(BaseModel):
    """A data set in its published layout on disk.

    image_reward: the ImageRewardDB folder, or the train/test JSON of the ImageReward repository with its images.
    deepfashion: In-shop Clothes Retrieval, or Category and Attribute Prediction. fashion_iq: captions, image_splits,
    images. dialogues: one JSON file per dialogue. preferences: one large JSON file of labelled pairs.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["image_reward", "deepfashion", "fashion_iq", "dialogues", "preferences"]
    path: Path = Field(description="the data set's folder; for preferences the JSON file")
    name: str = Field(default="", description="what reports call it; empty: its kind", max_length=64)
    fraction: float = Field(
        default=1.0, description="share of its dialogues to use, drawn by hash of the id", gt=0, le=1
    )
    negatives: tuple[NegativeKind, ...] = Field(
        default=("edited_prompt", "opposite_prompt", "mismatch"),
        description="kinds of pairs to make from its dialogues, where the data allow them",
    )
    keep_split: bool = Field(
        default=False,
        description="dialogues and preferences: keep the split and role that each record states, as an export does",
    )

    @model_validator(mode="after")
    def _only_own_layouts_state_splits(self) -> FolderSettings:
        if self.keep_split and self.kind not in ("dialogues", "preferences"):
            raise ValueError(f"keep_split is for kinds dialogues and preferences, not for {self.kind}")
        return self


class EmojiDialogSettings(EmojiSettings):
    """The data set that comes with the package."""

    kind: Literal["emoji"] = "emoji"
    name: str = Field(default="", description="what reports call it; empty: its kind", max_length=64)


class FeedbackSourceSettings(BaseModel):
    """What people said in the studio: a snapshot, as `vca feedback snapshot` writes one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["feedback"] = "feedback"
    path: Path = Field(description="the snapshot's folder")
    objects: str = Field(description="where its pictures are kept: feedback.objects of the store")
    name: str = Field(default="", description="what reports call it; empty: its kind", max_length=64)
    even_slots: bool = Field(
        default=False,
        description="weigh picks so that every place on the screen counts alike, where people favour one",
    )


AnySource = FolderSettings | EmojiDialogSettings | FeedbackSourceSettings
SourceSettings = Annotated[AnySource, Field(discriminator="kind")]


class DataSettings(BaseModel):
    """Fractions are of the whole data set and disjoint; what they leave of the train side is unused (section 4.2)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = Field(0, description="seed of splits, roles, negatives and simulated people", ge=0, lt=2**31)
    sources: tuple[SourceSettings, ...] = Field(
        (EmojiDialogSettings.model_validate({}),),
        description="the data sets, in the order in which they are read",
        min_length=1,
    )
    test_fraction: float = Field(0.2, description="share of the keys on the test side", gt=0, lt=1)
    reward_fraction: float = Field(0.38, description="share of all dialogues that train the reward model", ge=0, le=1)
    diffusion_fraction: float = Field(
        0.17, description="share of all dialogues that train the diffusion model", ge=0, le=1
    )
    validation_fraction: float = Field(
        0.05, description="share of all dialogues kept for choices made in training", ge=0, le=1
    )
    image_size: int = Field(
        512, description="longer side of stored pictures, px; smaller ones stay as they are", ge=8, le=4096
    )
    min_side: int = Field(64, description="filter: shorter side of the original picture, px", ge=1, le=4096)
    min_sharpness: float = Field(
        20.0, description="filter: variance of the Laplacian of the stored picture's grey values (0..255)", ge=0
    )
    unsafe_images: float | None = Field(
        None,
        description="filter: probability of open_nsfw (extra `serve`) above which a picture is unsafe; none: not asked",
        ge=0,
        lt=1,
    )
    style_keyword_limit: int = Field(
        4, description="filter: prompts with this many different style keywords, or more", ge=1
    )
    max_bad_share: float = Field(
        0.05, description="largest share of a source's records that may be unusable", ge=0, le=1
    )
    max_pixels: int = Field(64_000_000, description="largest picture to decode, px in all", ge=1)
    max_file_mb: int = Field(64, description="largest picture file to read, MiB", ge=1)
    shard_mb: int = Field(256, description="size at which a new shard is begun, MiB", ge=1, le=4096)

    @model_validator(mode="after")
    def _fits(self) -> DataSettings:
        parts = (self.test_fraction, self.reward_fraction, self.diffusion_fraction, self.validation_fraction)
        if sum(parts) > 1 + 1e-9:
            raise ValueError(
                "test_fraction + reward_fraction + diffusion_fraction + validation_fraction = "
                f"{sum(parts):g}; together they may be 1 at most"
            )
        names = [source_name(source) for source in self.sources]
        double = sorted({name for name in names if names.count(name) > 1})
        if double:
            raise ValueError(f"two sources are called {double[0]!r}; give each its own name")
        return self


def source_name(source: AnySource) -> str:
    """What counts and reports call the source."""
    return source.name or source.kind
