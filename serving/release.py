"""What serves: a policy over the base. A new one is opened beside the old and has drawn before it takes over."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vca.models.stable_diffusion import ADAPTER_FILE, StableDiffusion, load_adapter


@dataclass(frozen=True, eq=False, kw_only=True)
class Release:
    """name: what every answer, metric and picture of it carries. facts: of its adapter.json, for metadata."""

    name: str
    pipeline: StableDiffusion
    facts: dict[str, Any] = field(default_factory=dict)


def untrained(base: StableDiffusion) -> Release:
    """The base model as it is."""
    return Release(name=f"base-{base.base_digest.removeprefix('sha256:')[:12]}", pipeline=base)


def open_release(base: StableDiffusion, folder: Path) -> Release:
    """The policy in `folder` over the weights of `base`, which stay as they are.

    Raises ArtifactError for an adapter of another base, and for one that is changed, truncated or not finite.
    """
    pipeline = base.beside()
    card = load_adapter(pipeline, folder)
    digest = hashlib.sha256((folder / ADAPTER_FILE).read_bytes()).hexdigest()
    return Release(name=f"policy-{digest[:12]}", pipeline=pipeline, facts=card)
