"""Several processes under a real torchrun: what they raise is what the caller sees."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_training import settings

from vca.diffusion.train import run
from vca.errors import ArtifactError
from vca.progress import Quiet


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_an_error_in_the_processes_is_raised_again_by_the_one_that_started_them(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(ArtifactError) as caught:
        run(
            settings(processes=2, micro_batch=4),
            inputs={"data": tmp_path / "data", "reward": tmp_path / "reward"},
            output=tmp_path / "policy",
            progress=Quiet(),
        )
    assert str(tmp_path / "data") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "policy").exists()
