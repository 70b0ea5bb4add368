"""The reward adapter's folder: LoRA weights, head, calibration, metrics, model card; `adapter.json` vouches for all.

A folder without an `adapter.json` whose digests fit is no adapter, however much else is in it.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vca.errors import ArtifactError
from vca.models import location
from vca.reward.model import RewardModel
from vca.reward.settings import RewardSettings

MARKER = "adapter.json"
VERSION = 1
CLAMP = 4.0


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Mean and standard deviation of r over both pictures of every validation pair; n scores."""

    mu: float
    s: float
    n: int


def save(
    *, folder: Path, model: RewardModel, calibration: Calibration, metrics: dict[str, Any], card: str, watermark: str
) -> None:
    """Write the adapter. What was there before stops being one first; an interruption leaves none."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as name:
        draft = Path(name)
        model.adapted.save_pretrained(draft)
        save_file({"head_D": model.head_D.detach().contiguous().cpu()}, draft / "head.safetensors")
        (draft / "calibration.json").write_text(_json(asdict(calibration)))
        (draft / "metrics.json").write_text(_json(metrics))
        (draft / "README.md").write_text(card, encoding="utf-8")
        files = {file.name: _sha256(file) for file in sorted(draft.iterdir())}
        marker = {
            "version": VERSION,
            "base": model.settings.base,
            "base_digest": location.digest(model.settings.base),
            "data_watermark": watermark,
            "settings": model.settings.model_dump(mode="json"),
            "files": files,
        }
        (draft / MARKER).write_text(_json(marker))
        for file in (*files, MARKER):
            with (draft / file).open("rb") as stream:
                os.fsync(stream.fileno())
            os.replace(draft / file, folder / file)


def load(folder: Path, *, device: str = "cpu") -> tuple[RewardModel, Calibration]:
    """The model as it was saved, in eval mode. Raises ArtifactError where a file, or the base, isn't what it was."""
    from safetensors.torch import load_file

    marker = verify(folder)
    try:
        settings = RewardSettings.model_validate_json(json.dumps(marker["settings"]))
        calibration = Calibration(**json.loads((folder / "calibration.json").read_text()))
    except (ValidationError, TypeError, KeyError) as error:
        raise ArtifactError(f"reward adapter {folder} was written by another version; train it again") from error
    present = location.digest(settings.base)
    if present != marker["base_digest"]:
        raise ArtifactError(
            f"reward adapter {folder} was trained on another base model ({settings.base} was {marker['base_digest']}, "
            f"is now {present}); restore that base, or train the reward model again"
        )
    model = RewardModel(settings=settings, device=device, adapter=folder)
    model.head_D.data = load_file(folder / "head.safetensors")["head_D"].to(device)
    return model.requires_grad_(False).eval(), calibration


def verify(folder: Path) -> dict[str, Any]:
    """What `adapter.json` says, every file's sha256 having been checked. Raises ArtifactError."""
    try:
        marker: dict[str, Any] = json.loads((folder / MARKER).read_text())
        files = dict(marker["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{folder} holds no complete reward adapter ({MARKER} is missing or damaged); run `vca reward` again"
        ) from error
    for name, digest in files.items():
        file = folder / name
        if file.parent != folder or not file.is_file() or _sha256(file) != digest:
            raise ArtifactError(f"reward adapter {folder}: {name} is missing or damaged; run `vca reward` again")
    return marker


def digest(folder: Path) -> str:
    """sha256 of the marker, which vouches for all files: what a release is named after."""
    return _sha256(folder / MARKER)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, sort_keys=True) + "\n"
