"""The paper's layout: out and in again, to the same records."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import data_layouts as lay
import pytest

from vca.data import paper_layout
from vca.data.manifest import Manifest, read_manifest
from vca.data.prepare import run
from vca.data.settings import DataSettings
from vca.data.shards import read_dialogues, read_pairs
from vca.errors import DataError
from vca.progress import Quiet
from vca.records import Dialogue, PreferencePair, Role

ROLES: tuple[Role, ...] = ("reward", "diffusion", "validation", "test")


def everything(folder: Path) -> list[object]:
    """All records, with what a picture is instead of where it was read from."""

    def plain(record: Dialogue | PreferencePair) -> object:
        return json.dumps(
            record,
            default=lambda value: (
                {"sha256": value.sha256, "key": value.key} if hasattr(value, "sha256") else vars(value)
            ),
            sort_keys=True,
        )

    records = [plain(record) for role in ROLES for record in read_dialogues(folder, role=role)]
    return sorted(records + [plain(record) for role in ROLES for record in read_pairs(folder, role=role)])


def test_round_trip(prepare: Callable[..., Manifest], tmp_path: Path) -> None:
    source = lay.dialogues(tmp_path / "source", count=30)
    first = prepare("dialogues", source)
    counts = paper_layout.export(tmp_path / "data", output=tmp_path / "layout")
    assert counts["dialogues"] + counts["pairs"] == first.total
    labels = json.loads((tmp_path / "layout/preferences.json").read_text())
    assert len(labels) == counts["pairs"]
    assert labels[0]["labels"] == [1, 0]

    config = DataSettings.model_validate({"min_side": 16, "sources": paper_layout.sources(tmp_path / "layout")})
    run(config, inputs={}, output=tmp_path / "again", progress=Quiet())
    assert everything(tmp_path / "again") == everything(tmp_path / "data") != []
    assert read_manifest(tmp_path / "again").total == first.total


def test_an_export_is_never_mixed_into_another_folder(prepare: Callable[..., Manifest], tmp_path: Path) -> None:
    prepare("dialogues", lay.dialogues(tmp_path / "source"))
    (tmp_path / "layout").mkdir()
    with pytest.raises(DataError, match="exists already"):
        paper_layout.export(tmp_path / "data", output=tmp_path / "layout")
