"""What several rooms' tests share. Heavy libraries load only where a test asks for them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from vca.models.stable_diffusion import StableDiffusion

# On a loaded machine two threads for a tiny model are many times slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random StableDiffusionPipeline, as a folder."""
    from tiny_pipeline import build_tiny_pipeline

    return build_tiny_pipeline(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture
def tiny(tiny_folder: Path) -> StableDiffusion:
    """The same, loaded; every test has its own."""
    from vca.models.stable_diffusion import load_pipeline

    return load_pipeline(str(tiny_folder))
