"""What can be set about prompt refinement."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class RefineSettings(BaseModel):
    """Who turns a prompt and a person's feedback into the next prompt (paper, eq. 1), and within which limits."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    backend: Literal["rules", "endpoint", "transformers"] = Field(
        "rules",
        description="rules: a parser of English edits, no model; endpoint: an OpenAI-compatible chat endpoint; "
        "transformers: a local chat model",
    )
    endpoint_url: str | None = Field(
        None, pattern=r"^https?://", description="base URL of the endpoint, e.g. http://localhost:8000/v1"
    )
    model: str | None = Field(
        None,
        min_length=1,
        description="endpoint: the model's name there; transformers: a folder, package:NAME, hub id, s3://, gs://, oci://",
    )
    api_key_env: str | None = Field(
        None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="name of the environment variable that holds the endpoint's key; none: no key is sent",
    )
    timeout_s: float = Field(
        1.8, gt=0, le=120, description="seconds for all attempts at the endpoint together; then the rules answer"
    )
    retries: int = Field(1, ge=0, le=5, description="further attempts after a failed one, within timeout_s")
    max_tokens: int = Field(
        77,
        ge=8,
        le=1024,
        description="tokens of the text encoder that a refined prompt may fill, start and end included",
    )
    cache_folder: Path | None = Field(
        None, description="folder that keeps the model's answers by content hash; none: in memory only"
    )
    cache_entries: int = Field(4096, ge=1, description="answers kept in memory, least recently used out first")

    @model_validator(mode="after")
    def _backend_has_what_it_needs(self) -> RefineSettings:
        needs = {"rules": (), "endpoint": ("endpoint_url", "model"), "transformers": ("model",)}[self.backend]
        missing = [name for name in needs if getattr(self, name) is None]
        if missing:
            raise ValueError(f"backend {self.backend!r} needs {' and '.join(missing)}")
        return self
