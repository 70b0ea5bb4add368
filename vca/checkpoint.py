"""Checkpoints that survive a crash at any moment.

A checkpoint is a folder `step-NNNNNNNN`. It is filled under a hidden name; its manifest (facts, and the sha256 of every
file) is written last, everything is forced to disk, and one rename makes it visible. So a folder with that name is
complete, or it was damaged later, which is an error and never a silent fresh start.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vca.errors import ArtifactError

MANIFEST = "manifest.json"
_NAME = re.compile(r"step-(\d{8})")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A complete, verified checkpoint: what was done after `step` steps, and what it belongs to."""

    folder: Path
    step: int
    facts: dict[str, Any]


def stage(root: Path, *, step: int) -> Path:
    """An empty folder to fill; nothing in it counts before `publish`. Leftovers of earlier crashes go."""
    root.mkdir(parents=True, exist_ok=True)
    for leftover in root.glob(".step-*"):
        shutil.rmtree(leftover)
    staged = root / f".step-{step:08d}"
    staged.mkdir()
    return staged


def publish(staged: Path, *, facts: Mapping[str, Any], keep: int = 2) -> Path:
    """Make the filled folder the newest checkpoint; the `keep` newest stay. `facts` are JSON values."""
    files = {path.relative_to(staged).as_posix(): path for path in sorted(staged.rglob("*")) if path.is_file()}
    manifest = {"facts": dict(facts), "files": {name: _sha256(path) for name, path in files.items()}}
    (staged / MANIFEST).write_text(json.dumps(manifest, indent=1))
    for path in [*files.values(), staged / MANIFEST, *(p for p in staged.rglob("*") if p.is_dir()), staged]:
        _sync(path)
    final = staged.with_name(staged.name.removeprefix("."))
    if final.exists():
        shutil.rmtree(final)
    os.replace(staged, final)
    _sync(final.parent)
    for old in _all(final.parent)[:-keep]:
        shutil.rmtree(old)
    return final


def latest(root: Path, *, facts: Mapping[str, Any]) -> Checkpoint | None:
    """The newest checkpoint, verified; None where there is none.

    Raises ArtifactError where it is damaged, or was made with other `facts` (settings, data, base, processes).
    """
    folders = _all(root)
    if not folders:
        return None
    newest = folders[-1]
    try:
        manifest = json.loads((newest / MANIFEST).read_text())
        recorded, files = manifest["facts"], manifest["files"]
        damaged = next((name for name, digest in files.items() if _sha256(newest / name) != digest), None)
    except (OSError, ValueError, KeyError) as error:
        raise ArtifactError(
            f"checkpoint {newest} is damaged ({MANIFEST}); remove it to go on from an older one"
        ) from error
    if damaged is not None:
        raise ArtifactError(f"checkpoint {newest} is damaged ({damaged}); remove it to go on from an older one")
    for name, value in json.loads(json.dumps(dict(facts))).items():
        if recorded.get(name) != value:
            raise ArtifactError(
                f"checkpoint {newest} was made with {name} {recorded.get(name)!r}, this run has {value!r}; go on with "
                f"the former, or remove {root} to start again"
            )
    match = _NAME.fullmatch(newest.name)
    assert match
    return Checkpoint(folder=newest, step=int(match.group(1)), facts=recorded)


def _all(root: Path) -> list[Path]:
    return sorted(path for path in root.glob("step-*") if _NAME.fullmatch(path.name))


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
