"""What can be set about the safety filter."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from vca.errors import SettingsError


class SafetySettings(BaseModel):
    """Which pictures and prompts are hidden. Errors, beside pydantic's: SettingsError for a combination."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    profile: Literal["development", "production"] = Field(
        "development", description="production: people use it, so the classifier can't be none"
    )
    classifier: Literal["none", "open_nsfw", "stable_diffusion"] = Field(
        "open_nsfw",
        description="none: pictures aren't checked; open_nsfw: Yahoo's network, comes with the extra `serve`; "
        "stable_diffusion: the checker of Stable Diffusion 1, from `location`",
    )
    image_threshold: float = Field(
        0.5, description="open_nsfw: probability above which a picture is hidden (docs/safety.md)", ge=0, lt=1
    )
    location: str | None = Field(
        None,
        min_length=1,
        description="stable_diffusion: its weights: a folder, package:NAME, hub id, s3://, gs://, oci://",
    )
    blocked_words: Path | None = Field(
        None, description="list of words that hide a prompt, laid out as vca/safety/blocked_words.txt; none: that one"
    )

    @model_validator(mode="after")
    def _can_check(self) -> SafetySettings:
        if self.profile == "production" and self.classifier == "none":
            raise SettingsError(
                "safety.classifier: got 'none' with safety.profile 'production'; "
                "allowed: 'open_nsfw', 'stable_diffusion' (or profile 'development')"
            )
        if (self.classifier == "stable_diffusion") != (self.location is not None):
            raise SettingsError(
                f"safety.location: got {self.location!r} with safety.classifier {self.classifier!r}; "
                "allowed: a location with 'stable_diffusion', none with the others"
            )
        return self
