"""What can be set about serving and the studio. The servers themselves stand in serving/, which knows KServe."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

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


class SignInSettings(BaseModel):
    """Who may come in. local: one person, this machine; jwt: whoever brings a token of `issuer` for `audience`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mode: Literal["local", "jwt"] = Field("local", description="local: one person on this machine; jwt: OIDC tokens")
    issuer: str = Field("", description="jwt: the `iss` that tokens must have")
    audience: str = Field("", description="jwt: the `aud` that tokens must have")
    keys: str = Field("", description="jwt: the issuer's public keys, a JWKS file or https address")

    @model_validator(mode="after")
    def _whole(self) -> Self:
        missing = [name for name in ("issuer", "audience", "keys") if not getattr(self, name)]
        if self.mode == "jwt" and missing:
            raise ValueError(f"studio.sign_in.mode is jwt, and {', '.join(missing)} missing; set studio.sign_in.*")
        return self


class StudioSettings(BaseModel):
    """Where people refine pictures."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 in a container", min_length=1)
    hosts: tuple[str, ...] = Field(
        ("127.0.0.1", "localhost"), description="host names that browsers may reach it by; others are refused"
    )
    generator_url: str = Field("http://127.0.0.1:8080", pattern=r"^https?://", description="the generator's address")
    pictures: int = Field(4, description="pictures of a round", ge=1, le=4)
    previews: int = Field(3, description="previews of a picture while it is drawn", ge=0, le=3)
    rounds_at_once: int = Field(2, description="rounds that this process has drawn at the same time", ge=1, le=64)
    patience_s: float = Field(
        120.0, description="seconds that a round may take from its start, waiting for a busy generator included", gt=0
    )
    events_per_minute: int = Field(120, description="choices and other events of one person", ge=1)
    rounds_per_minute: int = Field(20, description="rounds that one person may ask for", ge=1)
    max_body_kb: int = Field(64, description="largest request, kB", ge=1)
    share_days: int = Field(30, description="days after which a shared link ends", ge=1, le=3650)
    sign_in: SignInSettings = Field(default_factory=SignInSettings, description="who may come in")

    @model_validator(mode="after")
    def _local_is_local(self) -> Self:
        if self.sign_in.mode == "local" and self.host not in ("127.0.0.1", "::1", "localhost"):
            raise ValueError(
                f"studio.host is {self.host} and studio.sign_in.mode is local: everybody who reaches it would be the "
                "same person; set studio.sign_in.mode to jwt, or studio.host to 127.0.0.1"
            )
        return self
