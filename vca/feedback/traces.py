"""What was made of a snapshot, found on disk by what its files say of where their data came from.

Prepared data (`vca.data`) and adapters (`vca.reward`, `vca.diffusion`) name their snapshots in a watermark,
"feedback@SNAPSHOT"; a result of the evaluation names the prepared data by digest, and quotes prompts and pictures.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

QUOTING = ("evaluation.json", "pictures", "report.html", "report.json")  # of evaluations and reports
_UNFINISHED = ("data", "evaluation", "report")  # stages whose interrupted attempts hold prompts and pictures


@dataclass(kw_only=True)
class Traces:
    """releases: folders of adapters, and the snapshots they were trained on. quoting: what holds people's words."""

    releases: dict[Path, set[str]] = field(default_factory=dict)
    quoting: list[Path] = field(default_factory=list)


def find(runs: Path, snapshots: Iterable[str]) -> Traces:
    """Everything below `runs` that was made of one of the snapshots."""
    named = re.compile(r"@(" + "|".join(map(re.escape, sorted(snapshots))) + r")(?![\w-])")
    found = Traces()
    data: set[str] = set()
    evaluations: list[tuple[Path, Any]] = []
    for folder, names in _folders(runs):
        for name in names & {"manifest.json", "adapter.json", "report.json"}:
            ids = set(named.findall(_text(folder / name)))
            if not ids:
                continue
            if name == "adapter.json":
                found.releases[folder] = ids
            elif name == "report.json":
                found.quoting += [folder / part for part in QUOTING if part in names]
            else:
                data.add(str(_json(folder / "stage.json").get("digest")))
                found.quoting.append(folder)
        if "stage.json" in names:
            evaluations.append((folder, _json(folder / "stage.json")))
        if folder.suffix == ".partial" and _stage(folder) in _UNFINISHED and _abandoned(folder):
            found.quoting.append(folder)
    for folder, record in evaluations:
        if record.get("made_from", {}).get("inputs", {}).get("data") in data:
            found.quoting += [folder / part for part in QUOTING if (folder / part).exists()]
    found.quoting = sorted(set(found.quoting))
    return found


def _folders(root: Path) -> Iterator[tuple[Path, set[str]]]:
    """Every folder, with the names of its files; links are not followed."""
    for parent, folders, files in os.walk(root):
        folders.sort()
        yield Path(parent), set(files)


def _stage(partial: Path) -> str:
    """`.cache/STAGE/KEY.partial`, or `STAGE.partial` where a single stage was run."""
    return partial.parent.name if partial.parent.parent.name == ".cache" else partial.stem


def _abandoned(partial: Path) -> bool:
    """Whether nobody works on an attempt (`vca.store` locks its place)."""
    lock = partial.with_name(f".{partial.stem}.lock")
    if not lock.exists():
        return True
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:  # a run that ends meanwhile
        return ""


def _json(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(_text(path))
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}
