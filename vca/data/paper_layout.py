"""The paper's layout on disk: one JSON file per dialogue, one large JSON file of preference labels, images beside them.

`export` writes a prepared data set that way; preparation reads it back with sources of the kinds `dialogues` and
`preferences` (`sources`), to the same records: the export states each record's split and role, and each picture's key.

    dialogues/<first 16 hex digits of the id's sha256>.json
    preferences.json
    images/<first two digits>/<sha256>.{png,jpg,webp}
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

from PIL import Image

from vca.data.images import FORMATS
from vca.data.manifest import read_manifest
from vca.data.settings import FolderSettings
from vca.data.shards import read_dialogues, read_pairs
from vca.errors import DataError
from vca.records import Dialogue, Picture, PreferencePair, Role

ROLES: tuple[Role, ...] = ("reward", "diffusion", "validation", "test")
SUFFIXES = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}


def sources(folder: Path) -> tuple[FolderSettings, FolderSettings]:
    """The settings that read an export at `folder` back, splits and roles included."""
    return (
        FolderSettings(kind="dialogues", path=folder, keep_split=True),
        FolderSettings(kind="preferences", path=folder / "preferences.json", keep_split=True),
    )


def export(data: Path, *, output: Path) -> dict[str, int]:
    """Write the prepared data set `data` to the new folder `output`; how many dialogues, pairs and images it has.

    Errors: DataError if `output` exists; ArtifactError if `data` is no whole data set.
    """
    if output.exists():
        raise DataError(f"{output} exists already; export to a new folder")
    read_manifest(data)
    building = output.absolute().with_name(f".{output.name}.building")
    shutil.rmtree(building, ignore_errors=True)
    images = _Images(building / "images")
    (building / "dialogues").mkdir(parents=True)
    dialogues = pairs = 0
    try:
        for role in ROLES:
            for dialogue in read_dialogues(data, role=role):
                name = sha256(dialogue.dialogue_id.encode("utf-8", "surrogatepass")).hexdigest()[:16]
                _write(building / "dialogues" / f"{name}.json", _dialogue(dialogue, images))
                dialogues += 1
        with (building / "preferences.json").open("w", encoding="utf-8") as file:
            file.write("[")
            for pair in _pairs(data):
                file.write(",\n" if pairs else "\n")
                json.dump(_pair(pair, images), file)
                pairs += 1
            file.write("\n]\n")
        os.replace(building, output)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return {"dialogues": dialogues, "pairs": pairs, "images": images.written}


def _pairs(data: Path) -> Iterator[PreferencePair]:
    for role in ROLES:
        yield from read_pairs(data, role=role)


class _Images:
    """Writes each distinct picture once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.written = 0

    def entry(self, picture: Picture | None) -> dict[str, Any] | None:
        """The picture's record, with its file written."""
        if picture is None:
            return None
        with Image.open(io.BytesIO(picture.data), formats=FORMATS) as image:
            suffix, (width, height) = SUFFIXES[str(image.format)], image.size
        relative = Path(picture.sha256[:2], f"{picture.sha256}.{suffix}")
        path = self.folder / relative
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture.data)
            self.written += 1
        uri = (Path("images") / relative).as_posix()
        return {"uri": uri, "sha256": picture.sha256, "w": width, "h": height, "key": picture.key}


def _dialogue(dialogue: Dialogue, images: _Images) -> dict[str, Any]:
    turns = [
        {
            "round": turn.round,
            "input_modality": turn.input_modality,
            "output_modality": turn.output_modality,
            "user_feedback": turn.feedback,
            "refined_prompt": turn.refined_prompt,
            "operation": turn.operation,
            "image": images.entry(turn.image),
            "target_image": images.entry(turn.target),
            "satisfied": turn.satisfied,
        }
        for turn in dialogue.turns
    ]
    return {
        "dialogue_id": dialogue.dialogue_id,
        "source": dialogue.source,
        "theme": dialogue.theme,
        "style": dialogue.style,
        "initial_prompt": dialogue.initial_prompt,
        "intent": dialogue.intent,
        "split": dialogue.split,
        "role": dialogue.role,
        "turns": turns,
    }


def _pair(pair: PreferencePair, images: _Images) -> dict[str, Any]:
    return {
        "pair_id": pair.pair_id,
        "dialogue_id": pair.dialogue_id,
        "prompt": pair.prompt,
        "images": [images.entry(pair.positive), images.entry(pair.negative)],
        "labels": [pair.label, 1 - pair.label] if pair.label != 1 else [1, 0],
        "source": pair.source,
        "kind": pair.kind,
        "negative_kind": pair.negative_kind,
        "label_confidence": pair.label_confidence,
        "split": pair.split,
        "role": pair.role,
    }


def _write(path: Path, record: dict[str, Any]) -> None:
    path.write_text(json.dumps(record, indent=1), encoding="utf-8")
