from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vca.data.manifest import Manifest, read_manifest
from vca.data.prepare import run
from vca.data.settings import DataSettings
from vca.progress import Quiet


@pytest.fixture
def prepare(tmp_path: Path) -> Callable[..., Manifest]:
    """Prepare one folder source into tmp_path/data, all of it used, and give back the verified manifest."""

    def prepared(kind: str, path: Path, *, output: Path | None = None, **settings: Any) -> Manifest:
        config = DataSettings.model_validate(
            {"min_side": 16, "max_bad_share": 1.0, "image_size": 64, "sources": [{"kind": kind, "path": str(path)}]}
            | settings
        )
        output = output or tmp_path / "data"
        run(config, inputs={}, output=output, progress=Quiet())
        return read_manifest(output)

    return prepared
