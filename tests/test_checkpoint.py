"""Checkpoints: complete or invisible, verified, and only for the run they belong to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vca import checkpoint
from vca.errors import ArtifactError

FACTS = {"learning_rate": 0.1, "window": (1, 40)}


def write(root: Path, step: int, content: str = "state") -> Path:
    staged = checkpoint.stage(root, step=step)
    (staged / "engine").mkdir()
    (staged / "engine" / "weights").write_text(content)
    (staged / "session").write_text(f"{step}")
    return checkpoint.publish(staged, facts=FACTS)


def test_the_newest_is_found_and_older_ones_go(tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    assert checkpoint.latest(root, facts=FACTS) is None
    for step in (1, 2, 10):
        write(root, step)
    found = checkpoint.latest(root, facts=FACTS)
    assert found is not None
    assert (found.step, (found.folder / "session").read_text()) == (10, "10")
    assert sorted(path.name for path in root.iterdir()) == ["step-00000002", "step-00000010"]


def test_a_step_written_again_replaces_the_old_one(tmp_path: Path) -> None:
    write(tmp_path, 3, "old")
    again = write(tmp_path, 3, "new")
    assert (again / "engine" / "weights").read_text() == "new"


def test_what_a_crash_left_half_written_is_never_found(tmp_path: Path) -> None:
    write(tmp_path, 1)
    staged = checkpoint.stage(tmp_path, step=2)
    (staged / "session").write_text("half")
    found = checkpoint.latest(tmp_path, facts=FACTS)
    assert found is not None
    assert found.step == 1
    checkpoint.stage(tmp_path, step=3)
    assert not staged.exists()


@pytest.mark.parametrize("file", ["engine/weights", "session", "manifest.json"])
@pytest.mark.parametrize("damage", ["changed", "truncated", "missing"])
def test_damage_is_an_error_and_no_fresh_start(tmp_path: Path, file: str, damage: str) -> None:
    write(tmp_path, 1)
    path = write(tmp_path, 2) / file
    if damage == "changed":
        path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.unlink()
    with pytest.raises(ArtifactError, match="step-00000002 is damaged") as caught:
        checkpoint.latest(tmp_path, facts=FACTS)
    assert "\n" not in str(caught.value)


def test_another_run_is_told_what_differs(tmp_path: Path) -> None:
    write(tmp_path, 1)
    with pytest.raises(ArtifactError, match=r"made with learning_rate 0\.1, this run has 0\.2"):
        checkpoint.latest(tmp_path, facts=FACTS | {"learning_rate": 0.2})
    with pytest.raises(ArtifactError, match="made with seed None, this run has 1"):
        checkpoint.latest(tmp_path, facts=FACTS | {"seed": 1})


def test_the_manifest_is_the_last_file_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash at any file before the rename leaves nothing to find."""
    synced: list[str] = []
    original = checkpoint._sync

    def crash_at_the_manifest(path: Path) -> None:
        synced.append(path.name)
        if path.name == checkpoint.MANIFEST:
            raise KeyboardInterrupt
        original(path)

    monkeypatch.setattr(checkpoint, "_sync", crash_at_the_manifest)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, 1)
    assert synced == ["weights", "session", checkpoint.MANIFEST]
    assert checkpoint.latest(tmp_path, facts=FACTS) is None
    assert json.loads((tmp_path / ".step-00000001" / checkpoint.MANIFEST).read_text())["facts"]["learning_rate"] == 0.1
