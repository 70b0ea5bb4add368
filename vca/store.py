"""Results on disk: complete, verified, and keyed by everything they were made from.

A result is a folder that holds `stage.json`: the key, what went in, the sha256 of every file, what it cost. Work goes
on below `<folder>.partial`, and becomes `<folder>` by one rename after `stage.json` is on the disk, so a folder without
it, or one whose files no longer have their sha256, is never taken for a result.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vca.errors import ArtifactError, ResourceError
from vca.progress import Progress

RECORD = "stage.json"


@dataclass(frozen=True, kw_only=True)
class Result:
    """A finished folder. `record` is its stage.json; `cached` tells that nothing had to run."""

    folder: Path
    record: dict[str, Any]
    cached: bool


def key_of(parts: Mapping[str, Any]) -> str:
    """The sha256 of everything a result is made from (JSON values)."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def digest(path: Path) -> str:
    """The sha256 of a file, or of the names and contents of all files of a folder (stage.json left out)."""
    if path.is_file():
        return _sha256(path)
    return _total(_file_digests(path))


def produce(
    folder: Path,
    *,
    stage: str,
    parts: Mapping[str, Any],
    make: Callable[[Path], dict[str, Any]],
    progress: Progress,
    resumable: bool = False,
) -> Result:
    """The result of `make` in `folder`: the one that is there if it has the same key, else a new one.

    `make` gets the folder to write into and returns its metrics. With `resumable` it finds there what an interrupted
    attempt with the same key left; otherwise an empty folder.
    Raises ArtifactError where `folder` holds something else, ResourceError where the disk is full.
    """
    key = key_of(parts)
    partial = folder.with_name(f"{folder.name}.partial")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _alone(folder, progress):
        record = read_record(folder)
        if record is None and folder.exists() and (folder.is_file() or any(folder.iterdir())):
            raise ArtifactError(f"{folder} exists and is no result of this program; choose another folder or remove it")
        if record is not None and record.get("key") != key:
            raise ArtifactError(
                f"{folder} holds a result of {record.get('stage')!r} with other settings, code or inputs; "
                "choose another folder or remove it"
            )
        if record is not None:
            damaged = _damaged(folder, record)
            if damaged is None:
                return Result(folder=folder, record=record, cached=True)
            progress.say(f"{folder}/{damaged} is damaged; making the result again")
        work = _prepare(partial, key, keep=resumable)
        started, cpu = time.monotonic(), _cpu_seconds()
        with disk_errors(folder.parent):
            metrics = make(work)
            record = {
                "stage": stage,
                "key": key,
                "made_from": dict(parts),
                "seconds": round(time.monotonic() - started, 3),
                "cpu_seconds": round(_cpu_seconds() - cpu, 3),
                "peak_rss_mb": peak_rss_mb(),
                "finished": time.time(),
                "metrics": metrics,
            }
            record["files"] = _file_digests(work, sync=True)
            record["digest"] = _total(record["files"])
            write_json(work / RECORD, record)
            if folder.exists():
                shutil.rmtree(folder)
            os.replace(work, folder)
            _sync(folder.parent)
            shutil.rmtree(partial)
    return Result(folder=folder, record=record, cached=False)


def read_record(folder: Path) -> dict[str, Any] | None:
    """The stage.json of a result, or None where there is none that can be read."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def input_digest(path: Path, *, name: str) -> str:
    """What an input contains, as a sha256. Raises ArtifactError if it is missing, or no longer what its record says."""
    if not path.exists():
        raise ArtifactError(f"{name}: {path} does not exist; give the folder that an earlier stage wrote")
    record = read_record(path)
    if record is None:
        return digest(path)
    damaged = _damaged(path, record)
    if damaged is not None:
        raise ArtifactError(f"{name}: {path / damaged} is corrupt (its sha256 is not the recorded one); make it again")
    return str(record["digest"])


def place(source: Path, target: Path) -> None:
    """Put a finished folder where it is wanted as well, in place of an older result: hard links, or else copies."""

    def link(a: str, b: str) -> None:
        try:
            os.link(a, b)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK):
                raise
            shutil.copy2(a, b)

    if target.exists() and read_record(target) is None and (target.is_file() or any(target.iterdir())):
        raise ArtifactError(f"{target} exists and is no result of this program; choose another folder or remove it")
    new = target.with_name(f".{target.name}.new")
    with disk_errors(target.parent):
        shutil.rmtree(new, ignore_errors=True)
        shutil.copytree(source, new, copy_function=link)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(new, target)


def write_json(path: Path, value: Any) -> None:
    """Write `value` so that a reader sees the old file or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.new")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def peak_rss_mb() -> float:
    """The largest resident set that this process or any child it waited for ever had, in MB."""
    unit = 1024 if sys.platform == "linux" else 1  # Linux counts kibibytes, macOS bytes
    return round(max(resource.getrusage(who).ru_maxrss for who in _WHO) * unit / 1e6, 1)


@contextmanager
def disk_errors(place: Path) -> Iterator[None]:
    """Turn "no space left on device", whichever library met it, into one line for people."""
    try:
        yield
    except Exception as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or "No space left on device" in str(error):  # Rust and C++ libraries wrap the operating system's error
            raise ResourceError(f"no space left on the disk of {place}; free some, or change --output") from error
        raise


_WHO = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)


def _cpu_seconds() -> float:
    return sum(usage.ru_utime + usage.ru_stime for usage in map(resource.getrusage, _WHO))


def _prepare(partial: Path, key: str, *, keep: bool) -> Path:
    """The folder to work in, which holds what an attempt with the same key left if that is wanted."""
    marker, work = partial / "key", partial / "result"
    if not (keep and marker.is_file() and marker.read_text(encoding="utf-8") == key):
        shutil.rmtree(partial, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    marker.write_text(key, encoding="utf-8")
    return work


@contextmanager
def _alone(folder: Path, progress: Progress) -> Iterator[None]:
    """One process at a time makes a result; the kernel drops the lock when its holder dies."""
    with folder.with_name(f".{folder.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.say(f"another process is making {folder}; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _damaged(folder: Path, record: Mapping[str, Any]) -> str | None:
    """The first file that is missing or no longer as recorded."""
    for name, recorded in record["files"].items():
        if not (folder / name).is_file() or _sha256(folder / name) != recorded:
            return str(name)
    return None


def _file_digests(folder: Path, *, sync: bool = False) -> dict[str, str]:
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return {name: _sha256(folder / name, sync=sync) for name in names if name != RECORD}


def _sha256(path: Path, *, sync: bool = False) -> str:
    with path.open("rb") as file:
        if sync:
            os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def _total(files: Mapping[str, str]) -> str:
    return key_of(dict(files))


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
