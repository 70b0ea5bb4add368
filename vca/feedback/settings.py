"""What can be set about the feedback store."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field


class RuleSettings(BaseModel):
    """How events become training pairs. Thresholds are of `vca.feedback.rules`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    accept_vs_previous: bool = Field(
        False, description="whether an accepted picture is also preferred to the one it was made from (prompts differ)"
    )
    near_duplicate_bits: int = Field(
        4, description="two pictures whose perceptual hashes differ in so few of 64 bits are the same", ge=0, le=32
    )
    subject_share: float = Field(0.02, description="most of a snapshot's pairs that one person may give", gt=0, le=1)
    subject_floor: int = Field(
        300, description="pairs that a person may give however small the snapshot is; a studio has few people", ge=1
    )
    quarantine_h: float = Field(
        0.0, description="hours after which a new person's pairs begin to count; 24 where anybody may sign up", ge=0
    )
    burst_events: int = Field(60, description="choices of one person within a minute that no person makes", ge=2)
    min_trust: float = Field(
        0.5, description="trust, from probes, below which a person's pairs don't count", ge=0, le=1
    )
    cluster_subjects: int = Field(
        10, description="people who chose the same picture for the same prompt within an hour: a cluster", ge=2
    )


class FeatureSettings(BaseModel):
    """Feast: where features are kept for training (offline), and for whoever asks at run time (online)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    folder: Path = Field(
        Path("runs/feedback/features"), description="folder of the offline Parquet files and Feast's registry"
    )
    online: str = Field(
        "sqlite",
        description="the online store: sqlite (a file in `folder`), redis://HOST:PORT/DB (password from "
        "REDIS_PASSWORD) or postgresql://USER@HOST/NAME (password from PGPASSWORD)",
        pattern=r"^(sqlite$|redis://|postgresql://)",
    )


class FeedbackSettings(BaseModel):
    """Where the store is, and what becomes of what it holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str = Field(
        "sqlite:///runs/feedback/store.sqlite",
        description="the database: sqlite:///FILE or postgresql://USER@HOST/NAME (the password from PGPASSWORD)",
        pattern=r"^(sqlite:///|postgresql://)",
    )
    objects: str = Field(
        "runs/feedback/pictures", description="where pictures are kept: a folder, s3://BUCKET/PREFIX or gs://…"
    )
    key: Path = Field(
        Path("runs/feedback/master.key"),
        description="file of the key that people's keys are encrypted with; made when it is missing and the store new",
    )
    snapshots: Path = Field(Path("runs/feedback/snapshots"), description="folder of the snapshots")
    train: bool = Field(True, description="whether `vca run` trains on what people said, where there is a store")
    policy_version: str = Field("1", description="version of the text that people consent to", max_length=32)
    probe_share: float = Field(
        0.03, description="share of rounds that are shown once more, in another order", ge=0, le=1
    )
    features: FeatureSettings = Field(default_factory=FeatureSettings, description="Feast's stores")
    rules: RuleSettings = Field(default_factory=RuleSettings, description="how events become training pairs")
