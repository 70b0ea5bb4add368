"""From the studio to training data: snapshots as a source of data preparation, and `vca run` with a store."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from people import picked, rows, take, willing
from stores import open_store, say

from vca.data.manifest import Manifest, read_manifest
from vca.data.prepare import run
from vca.data.settings import DataSettings
from vca.data.shards import read_dialogues, read_pairs
from vca.data.sources.feedback import SIDES
from vca.errors import ArtifactError
from vca.feedback import erasure
from vca.feedback.snapshot import Snapshot
from vca.feedback.store import Store
from vca.preflight import _source_bytes
from vca.progress import Quiet
from vca.records import PreferencePair


def config(store: Store, taken: Snapshot, **more: Any) -> DataSettings:
    source = {"kind": "feedback", "path": str(taken.folder), "objects": store.settings.objects, **more}
    small = {"image_size": 64, "min_side": 16, "min_sharpness": 0, "max_bad_share": 1.0}
    return DataSettings.model_validate({"sources": [source], **small})


def prepared(config: DataSettings, tmp_path: Path) -> tuple[Path, Manifest]:
    run(config, inputs={}, output=tmp_path / "data", progress=Quiet())
    return tmp_path / "data", read_manifest(tmp_path / "data")


def all_pairs(folder: Path) -> dict[str, PreferencePair]:
    every = [pair for role in ("reward", "validation", "test") for pair in read_pairs(folder, role=role)]  # type: ignore[arg-type]
    return {pair.pair_id: pair for pair in every}


def test_choices_arrive_as_weighted_human_pairs_with_their_split_and_all_is_counted(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann, bob = willing(store), willing(store, "bob")
    for number in range(12):
        seen, event = picked(store, [ann, bob][number % 2], slot=number % 4, prompt=f"heart {number}")
        if number == 5:
            say(store, bob, seen, "tie_good", 0, 1, 2)
        if number == 6:
            say(store, ann, seen, "retract", supersedes=event.event_id)
    taken = take(store, monkeypatch)

    folder, manifest = prepared(config(store, taken), tmp_path)

    counts = manifest.sources["feedback"]
    assert manifest.watermark == f"feedback@{taken.snapshot_id}"
    assert counts.people == 2
    assert counts.filtered == {"retracted": 3, "superseded": 3}
    assert counts.seen == sum(counts.accepted.values()) + 6
    assert counts.quarantined == {}
    pairs = all_pairs(folder)
    usable = {row["pair_id"]: row for row in rows(taken.folder, "pairs") if row["excluded_reason"] is None}
    assert pairs.keys() == usable.keys()
    for name, row in usable.items():
        pair = pairs[name]
        assert (pair.prompt, pair.label, pair.label_confidence) == (row["prompt"], row["label"], row["weight"])
        assert (pair.split, pair.role) == SIDES[row["split"]][:2]
        assert (pair.kind, pair.negative_kind, pair.dialogue_id) == (row["rule"], "human", row["dialogue_id"])
        assert (pair.positive.uri, pair.negative.uri) == (row["image_chosen"], row["image_rejected"])
    assert sum(pair.label_confidence for pair in pairs.values()) == pytest.approx(11)  # one per choice
    dialogues = [d for role in ("diffusion", "validation", "test") for d in read_dialogues(folder, role=role)]  # type: ignore[arg-type]
    assert {d.intent for d in dialogues} == {f"heart {n}" for n in range(12) if n not in (5, 6)}
    assert all(d.turns[0].target is not None and d.turns[0].satisfied is None for d in dialogues)
    assert _source_bytes(config(store, taken)) == taken.manifest.picture_bytes > 1000


def test_pictures_that_are_gone_are_refused(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ann = willing(store)
    picked(store, ann)
    taken = take(store, monkeypatch)
    row = rows(taken.folder, "pairs")[0]
    store.objects.delete(row["image_rejected"])
    _, manifest = prepared(config(store, taken), tmp_path)
    assert manifest.sources["feedback"].quarantined == {"missing_file": 1}


def test_places_can_be_evened_out(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ann = willing(store)
    for slot in (0, 0, 0, 0, 2):
        picked(store, ann, slot=slot)
    taken = take(store, monkeypatch)
    folder, _ = prepared(config(store, taken, even_slots=True), tmp_path)
    placed = {row["pair_id"]: row["slot_chosen"] for row in rows(taken.folder, "pairs")}
    weights = {placed[name]: pair.label_confidence for name, pair in all_pairs(folder).items()}
    assert weights == {0: pytest.approx(9 / 20 / 3, rel=1e-4), 2: pytest.approx(9 / 8 / 3, rel=1e-4)}


def test_an_erased_snapshot_and_a_changed_one_are_refused(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann = willing(store)
    picked(store, ann)
    taken = take(store, monkeypatch)
    file = taken.folder / "pairs/00000.parquet"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + b"?")
    with pytest.raises(ArtifactError, match="corrupt"):
        prepared(config(store, taken), tmp_path)
    file.write_bytes(whole)
    erasure.erase(store, subject_id=ann.subject_id, runs=tmp_path / "runs")
    with pytest.raises(ArtifactError, match="erased since"):
        prepared(config(store, taken), tmp_path)
    with pytest.raises(ArtifactError, match="erased since"):
        _source_bytes(config(store, taken))


def test_data_preparation_needs_no_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(f"sqlite:///{tmp_path}/store.sqlite", tmp_path)
    picked(store, willing(store))
    settings = config(store, take(store, monkeypatch)).model_dump_json()
    store.close()
    script = f"""
import sys
from pathlib import Path
from vca.data.prepare import run
from vca.data.settings import DataSettings
from vca.progress import Quiet
run(DataSettings.model_validate_json({settings!r}), inputs={{}}, output=Path({str(tmp_path / "d")!r}), progress=Quiet())
print(*sorted({{"sqlalchemy", "alembic", "cryptography", "duckdb"}} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
