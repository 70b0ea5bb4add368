"""What can be set about serving. The servers themselves stand in serving/, which knows KServe."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from vca.safety.settings import SafetySettings


class ServingSettings(BaseModel):
    """Limits and defaults of the generator and the reward scorer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 in a container", min_length=1)
    batch: int = Field(16, description="pictures that the device works on at once", ge=1, le=512)
    queue: int = Field(64, description="pictures that may wait; more are refused with 429", ge=1, le=100_000)
    deadline_s: float = Field(120.0, description="seconds after which a request is given up", gt=0, le=3600)
    grace_s: int = Field(30, description="seconds for what is under way after SIGTERM", ge=0, le=3600)

    max_body_mb: int = Field(32, description="largest request, MB", ge=1, le=1024)
    max_pixels: int = Field(16_000_000, description="largest picture sent to us, pixels in all", ge=64 * 64)
    max_prompt: int = Field(4000, description="longest prompt or feedback, characters", ge=1)
    max_pictures: int = Field(16, description="most pictures of one request", ge=1)
    scorer_batch: int = Field(64, description="pictures that the scorer looks at at once", ge=1, le=4096)
    scorer_queue: int = Field(1024, description="pictures that may wait for the scorer; more are refused", ge=1)
    scored_rows: int = Field(256, description="most pictures of one request to the scorer", ge=1)

    steps: int = Field(25, description="denoising steps where a request names none", ge=1, le=1000)
    max_steps: int = Field(100, description="most denoising steps of a request", ge=1, le=1000)
    guidance: float = Field(7.5, description="classifier-free guidance where a request names none; 1: off", ge=1)
    max_guidance: float = Field(20.0, description="strongest guidance of a request", ge=1)
    strength: float = Field(0.8, description="share of a picture that an edit re-draws by default", gt=0, le=1)

    dialogues_mb: int = Field(256, description="memory for what dialogues drew last, MB", ge=1)
    safety: SafetySettings = Field(default_factory=SafetySettings, description="which prompts and pictures are hidden")
    keys: Path | None = Field(
        None,
        description="folder of the keys that pictures are signed and marked with (`vca keys`); none: they are not, "
        "which safety.profile production refuses",
    )
    credentials: bool = Field(True, description="sign pictures with `keys` (C2PA)")
    watermark: bool = Field(True, description="mark pictures with `keys`, invisibly")
    scorer_url: str | None = Field(
        None, pattern=r"^https?://", description="the reward scorer that best_of asks; none: best_of is refused"
    )

    @model_validator(mode="after")
    def _combination(self) -> Self:
        if self.safety.profile == "production" and self.keys is None and (self.credentials or self.watermark):
            raise ValueError(
                "serving.keys is missing, and serving.safety.profile is production: give the folder of your keys, or "
                "set credentials and watermark to false"
            )
        if self.steps > self.max_steps:
            raise ValueError(f"serving.steps {self.steps} is above serving.max_steps {self.max_steps}; raise max_steps")
        if self.guidance > self.max_guidance:
            raise ValueError(
                f"serving.guidance {self.guidance} is above serving.max_guidance {self.max_guidance}; "
                "raise max_guidance"
            )
        if self.max_pictures > self.queue:
            raise ValueError(
                f"serving.max_pictures {self.max_pictures} is above serving.queue {self.queue}: such a request would "
                "never be admitted; raise queue"
            )
        if self.scored_rows > self.scorer_queue:
            raise ValueError(
                f"serving.scored_rows {self.scored_rows} is above serving.scorer_queue {self.scorer_queue}: such a "
                "request would never be admitted; raise scorer_queue"
            )
        return self
