"""What must hold before anything starts: data that is there, models that resolve, room on the disk.

It also fixes what each result will depend on: the digest of code and base models per stage, and the watermark of the
source data.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from vca import stages, store
from vca.data import prepare
from vca.data.settings import DataSettings, FeedbackSourceSettings, FolderSettings
from vca.errors import ArtifactError, DataError, ResourceError
from vca.feedback.snapshot_files import read_manifest
from vca.models import location
from vca.settings import Settings

# Shards are at most about as large as their sources (pictures are scaled down, never up); adapters, checkpoints and
# report pictures fit in the rest.
SHARE_OF_SOURCES = 1.2
REST_BYTES = 1_000_000_000


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the later steps take as parameters, and lines for people."""

    code_versions: dict[str, str]
    watermark: str
    notes: list[str]


def check(
    settings: Settings, *, place: Path, names: Iterable[str], inputs: Mapping[str, Path] = MappingProxyType({})
) -> Plan:
    """Check what the stages `names` need, with results going to `place`; `inputs` are given from outside, if any.

    Raises DataError for a missing or empty source, ResourceError for a full disk or a folder that can't be written,
    ArtifactError for a model that isn't there or an adapter of another base model.
    """
    names = list(names)
    _same_base(inputs.get("reward"), "reward.base", settings.reward.base)
    _same_base(inputs.get("policy"), "diffusion.base", settings.diffusion.base)
    size = _source_bytes(settings.data) if "data" in names else 0
    free = _free_bytes(place, SHARE_OF_SOURCES * size + REST_BYTES)
    return Plan(
        code_versions={name: _code_and_models(settings, name) for name in names},
        watermark=prepare.watermark(settings.data) if "data" in names else "",
        notes=[f"source data in folders {size / 1e6:,.0f} MB, {free / 1e9:,.0f} GB free on the disk"],
    )


def _code_and_models(settings: Settings, name: str) -> str:
    models = stages.model_digests(name, stages.config_of(settings, name))
    return store.key_of({"code": stages.code_version(name), "models": models})


def _same_base(adapter: Path | None, key: str, base: str) -> None:
    """Refuse an adapter whose adapter.json names another base; whether it is whole, its loader checks."""
    try:
        made_for = json.loads((adapter / "adapter.json").read_text(encoding="utf-8")) if adapter else {}
    except (OSError, ValueError):
        return
    if "base_digest" in made_for and made_for["base_digest"] != location.digest(base):
        raise ArtifactError(
            f"{adapter} was trained on another base model ({made_for.get('base')}) than {key} {base} as it is now; "
            f"train it again, or give its base by --set {key}=…"
        )


def _source_bytes(data: DataSettings) -> int:
    """How large the sources on disk are, all together."""
    total = 0
    for index, source in enumerate(data.sources):
        if isinstance(source, FeedbackSourceSettings):
            total += read_manifest(source.path).picture_bytes
        if not isinstance(source, FolderSettings):
            continue
        where = f"data.sources.{index}.path: {source.path}"
        if not source.path.exists():
            raise DataError(f"{where} does not exist; give the place of the {source.kind} data set")
        files = [source.path] if source.path.is_file() else [p for p in source.path.rglob("*") if p.is_file()]
        if not files:
            raise DataError(f"{where} is empty; give the place of the {source.kind} data set")
        total += sum(file.stat().st_size for file in files)
    return total


def _free_bytes(place: Path, needed: float) -> int:
    try:
        place.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        raise ResourceError(f"{place} cannot be written ({error.strerror}); choose another --output") from error
    free = shutil.disk_usage(place).free
    if free < needed:
        raise ResourceError(
            f"{place}: {free / 1e9:,.1f} GB free, this run needs about {needed / 1e9:,.1f} GB; "
            "free some space or choose another --output"
        )
    return free
