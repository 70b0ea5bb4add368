"""The stage: nothing gone, nothing straddling, nothing half-written."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import data_layouts as lay
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vca.data.manifest import Manifest, read_manifest
from vca.data.prepare import run, watermark
from vca.data.settings import DataSettings
from vca.data.shards import read_dialogues, read_pairs
from vca.data.splits import keys_of
from vca.errors import DataError, ResourceError
from vca.progress import Quiet
from vca.records import Role

Prepare = Callable[..., Manifest]
ROLES: tuple[Role, ...] = ("reward", "diffusion", "validation", "test", "unused")
BUILDERS: dict[str, Callable[[Path], Path]] = {
    "image_reward": lambda root: lay.image_reward_db(root, prompts=12),
    "deepfashion": lay.in_shop,
    "fashion_iq": lay.fashion_iq,
    "dialogues": lay.dialogues,
    "preferences": lay.preferences,
}


@pytest.mark.parametrize("kind", BUILDERS)
def test_every_record_is_accounted_for(prepare: Prepare, tmp_path: Path, kind: str) -> None:
    manifest = prepare(kind, BUILDERS[kind](tmp_path / "source"))
    count = manifest.sources[kind]
    assert lay.balanced(count)
    assert count.seen > 0
    assert count.quarantined == {}
    rows = {
        f"{shard.kind}/{shard.split}/{shard.role}": manifest.rows(kind=shard.kind, role=shard.role)
        for shard in manifest.shards
    }
    assert rows == count.written
    assert manifest.total == sum(count.written.values())


def test_both_sides_share_no_key(prepare: Prepare, tmp_path: Path) -> None:
    source = lay.dialogues(tmp_path / "source", count=40)
    for number in range(40, 60):  # pictures that two dialogues show, so that some records must straddle
        record = lay.dialogue(number, rounds=1)
        record["turns"][0]["target_image"]["uri"] = f"images/talk-{number - 40:04d}-1.png"
        lay.put(source / f"{record['dialogue_id']}.json", record)
    manifest = prepare("dialogues", source)
    keys: dict[str, set[str]] = {"train": set(), "test": set()}
    for role in ROLES:
        for record in (*read_pairs(tmp_path / "data", role=role), *read_dialogues(tmp_path / "data", role=role)):
            assert record.role == role
            keys[record.split] |= keys_of(record)
    assert keys["train"]
    assert keys["test"]
    assert not keys["train"] & keys["test"]
    assert manifest.sources["dialogues"].straddles > 0
    assert lay.balanced(manifest.sources["dialogues"])


def test_a_declared_split_is_kept_but_no_key_changes_sides(prepare: Prepare, tmp_path: Path) -> None:
    source = lay.fashion_iq(tmp_path / "source")
    train = json.loads((source / "captions/cap.dress.train.json").read_text())
    captions = json.loads((source / "captions/cap.dress.val.json").read_text())
    captions[0]["target"] = train[0]["target"]  # a photograph of the train side
    lay.put(source / "captions/cap.dress.val.json", captions)
    (source / "image_splits/split.dress.val.json").unlink()
    count = prepare("fashion_iq", source).sources["fashion_iq"]
    assert count.straddles == 1
    assert sum(rows for name, rows in count.accepted.items() if "/test/" in name) == len(captions) - 1


def test_the_order_of_files_changes_no_side(prepare: Prepare, tmp_path: Path) -> None:
    def places(output: Path) -> dict[str, tuple[str, str]]:
        records = [record for role in ROLES for record in read_dialogues(output, role=role)]
        return {record.dialogue_id: (record.split, record.role) for record in records}

    one, two = tmp_path / "one", tmp_path / "two"
    lay.dialogues(one, count=30)
    for path in sorted(one.glob("*.json")):
        lay.put(two / f"{99 - int(path.stem[-4:]):04d}.json", path.read_bytes())
    (two / "images").symlink_to(one / "images")
    prepare("dialogues", one)
    prepare("dialogues", two, output=tmp_path / "other")
    assert places(tmp_path / "data") == places(tmp_path / "other") != {}


def test_the_same_data_give_the_same_bytes(prepare: Prepare, tmp_path: Path) -> None:
    source = lay.dialogues(tmp_path / "source")
    first = prepare("dialogues", source)
    again = prepare("dialogues", source)
    assert first == again
    assert prepare("dialogues", source, seed=1).digest != first.digest


def test_watermark_follows_the_files(tmp_path: Path) -> None:
    source = lay.preferences(tmp_path / "source")
    config = DataSettings.model_validate({"sources": [{"kind": "preferences", "path": str(source)}]})
    before = watermark(config)
    assert before == watermark(config)
    lay.put(source.parent / "images/0a.png", lay.image_bytes(999, size=(50, 50)))
    assert watermark(config) != before
    assert before.startswith("preferences@")


def test_filters_are_counted(prepare: Prepare, tmp_path: Path) -> None:
    source = lay.preferences(tmp_path / "source", count=6)
    records = json.loads(source.read_text())
    records[0]["prompt"] = "a cat, artstation, masterpiece, cinematic, octane render"
    lay.put(source.parent / "images/1a.png", lay.image_bytes(1, size=(8, 8)))
    lay.put(source.parent / "images/2b.png", lay.flat_image_bytes())
    lay.put(source, records)
    count = prepare("preferences", source, test_fraction=0.01).sources["preferences"]
    assert count.filtered == {"small_image": 1, "style_keywords": 1, "unclear_image": 1}
    assert lay.balanced(count)


def test_bad_records_are_quarantined_with_place_and_reason(prepare: Prepare, tmp_path: Path) -> None:
    source = lay.preferences(tmp_path / "source", count=16)
    records = json.loads(source.read_text())
    (source.parent / "images/0a.png").unlink()
    lay.put(source.parent / "images/1a.png", b"broken")
    records[2]["labels"] = [1, 2]
    records[4]["pair_id"] = records[3]["pair_id"]
    del records[5]["prompt"]
    lay.put(source, records)
    count = prepare("preferences", source, test_fraction=0.01).sources["preferences"]
    assert count.quarantined == {
        "broken_image": 1,
        "duplicate_id": 1,
        "missing_field": 1,
        "missing_file": 1,
        "wrong_label": 1,
    }
    lines = [json.loads(line) for line in (tmp_path / "data/quarantine.jsonl").read_text().splitlines()]
    assert {(line["reason"], line["uri"]) for line in lines} == {
        ("missing_file", "source/images/0a.png"),
        ("broken_image", "source/images/1a.png"),
        ("wrong_label", "preferences.json[2]"),
        ("duplicate_id", "pair-3"),
        ("missing_field", "preferences.json[5]"),
    }


def test_too_many_bad_records_fail_and_leave_the_list(prepare: Prepare, tmp_path: Path) -> None:
    source = lay.preferences(tmp_path / "source", count=10)
    for number in range(2):
        lay.put(source.parent / f"images/{number}a.png", b"broken")
    with pytest.raises(DataError) as error:
        prepare("preferences", source, max_bad_share=0.19)
    assert "2 of 10 records (20.0%)" in str(error.value)
    assert "broken_image 2" in str(error.value)
    assert not (tmp_path / "data").exists()
    assert len((tmp_path / "data.quarantine.jsonl").read_text().splitlines()) == 2
    assert prepare("preferences", source, max_bad_share=0.2).total > 0


def test_empty_and_useless_data_are_refused(prepare: Prepare, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is empty"):
        prepare("preferences", lay.put(tmp_path / "p.json", "[]"))
    source = lay.preferences(tmp_path / "source", count=3)
    with pytest.raises(DataError, match=r"nothing to train on .*3 seen.*small_image"):
        prepare("preferences", source, min_side=4000, test_fraction=0.01)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("kind", BUILDERS)
def test_a_missing_data_set_is_one_clear_line(prepare: Prepare, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "nowhere"
    with pytest.raises(DataError, match="nowhere does not exist; set data"):
        prepare(kind, path)
    assert list(tmp_path.iterdir()) == []


def test_a_failing_run_leaves_the_old_data_set(prepare: Prepare, tmp_path: Path) -> None:
    source = lay.preferences(tmp_path / "source")
    first = prepare("preferences", source)
    lay.put(source, "[]")
    with pytest.raises(DataError):
        prepare("preferences", source)
    assert read_manifest(tmp_path / "data") == first
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_what_a_killed_run_left_is_cleared(prepare: Prepare, tmp_path: Path) -> None:
    lay.put(tmp_path / ".data.building/pairs-train-reward-00007.parquet", b"half")
    manifest = prepare("preferences", lay.preferences(tmp_path / "source"))
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == sorted(
        ["manifest.json", "quarantine.jsonl", *(shard.file for shard in manifest.shards)]
    )
    assert not (tmp_path / ".data.building").exists()


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from vca.data.prepare import run
from vca.data.settings import DataSettings
from vca.errors import ResourceError
from vca.progress import Quiet
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
config = DataSettings.model_validate_json(sys.argv[1])
try:
    run(config, inputs={}, output=Path(sys.argv[2]), progress=Quiet())
except ResourceError as error:
    sys.exit(0 if "no space left" in str(error) and not Path(sys.argv[2]).exists() else str(error))
sys.exit("it was written")
"""


def test_a_full_disk_is_one_clear_line(tmp_path: Path) -> None:
    source = lay.dialogues(tmp_path / "source", count=40)
    config = {"min_side": 16, "image_size": 64, "sources": [{"kind": "dialogues", "path": str(source)}]}
    command = [sys.executable, "-c", FULL_DISK, json.dumps(config), str(tmp_path / "data")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.glob(".data*"))
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 30_000


def test_a_place_that_cannot_be_written(prepare: Prepare, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="can't write to"):
        prepare("preferences", lay.preferences(tmp_path / "source"), output=tmp_path / "file/data")


NUMBERS = st.floats(allow_nan=False, allow_infinity=False)  # JSON has no others: one makes the whole file invalid
WHOLE = st.integers(1 - 2**63, 2**63 - 1)  # the parser stops at others, -(2**63) included; see test_sources.py
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | WHOLE | NUMBERS | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIELDS = ("pair_id", "prompt", "images", "labels", "dialogue_id", "negative_kind", "label_confidence", "source")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(st.tuples(st.integers(0, 7), st.sampled_from(FIELDS), JSON), max_size=8),
    strangers=st.lists(JSON, max_size=3),
    broken=st.lists(st.tuples(st.integers(0, 7), st.binary(max_size=40)), max_size=3),
    cut=st.none() | st.integers(0, 2000),
    keep_split=st.booleans(),
)
def test_no_preferences_however_corrupt_crash_or_vanish(
    changes: list[tuple[int, str, Any]],
    strangers: list[Any],
    broken: list[tuple[int, bytes]],
    cut: int | None,
    keep_split: bool,
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source = lay.preferences(Path(folder) / "source", count=8)
        records = json.loads(source.read_text())
        for number, name, value in changes:
            records[number][name] = value
        for number, data in broken:
            lay.put(source.parent / f"images/{number}b.png", data)
        lay.put(source, json.dumps(records + strangers).encode()[:cut])
        outcome = _outcome("preferences", source, Path(folder) / "data", keep_split=keep_split)
        if outcome is not None:
            assert lay.balanced(outcome)
            if cut is None:
                assert outcome.seen == len(records + strangers)


@settings(max_examples=40, deadline=None)
@given(
    changes=st.lists(st.tuples(st.integers(0, 3), st.sampled_from([*lay.dialogue(0), "split"]), JSON), max_size=4),
    turns=st.lists(st.tuples(st.integers(0, 3), st.sampled_from([*lay.dialogue(0)["turns"][0]]), JSON), max_size=4),
    raw=st.lists(st.binary(max_size=60), max_size=2),
    keep_split=st.booleans(),
)
def test_no_dialogues_however_corrupt_crash_or_vanish(
    changes: list[tuple[int, str, Any]], turns: list[tuple[int, str, Any]], raw: list[bytes], keep_split: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source = lay.dialogues(Path(folder) / "source", count=0)
        for number in range(4):
            record = lay.dialogue(number, rounds=2)
            for k in (1, 2):
                lay.put(source / f"images/{record['dialogue_id']}-{k}.png", lay.image_bytes(10 * number + k))
            for place, name, value in turns:
                if place == number:
                    record["turns"][1][name] = value
            record |= {name: value for place, name, value in changes if place == number}
            lay.put(source / f"{number}.json", record)
        for number, data in enumerate(raw):
            lay.put(source / f"raw{number}.json", data)
        outcome = _outcome("dialogues", source, Path(folder) / "data", keep_split=keep_split)
        if outcome is not None:
            assert lay.balanced(outcome)
            assert outcome.seen == 4 + len(raw)


def _outcome(kind: str, path: Path, output: Path, *, keep_split: bool) -> Any:
    source = {"kind": kind, "path": str(path), "keep_split": keep_split}
    config = DataSettings.model_validate(
        {"min_side": 16, "image_size": 64, "max_bad_share": 1.0, "sources": [source], "min_sharpness": 0}
    )
    try:
        run(config, inputs={}, output=output, progress=Quiet())
    except DataError:
        return None
    return read_manifest(output).sources[kind]
