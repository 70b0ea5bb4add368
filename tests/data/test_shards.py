"""Shards give back what was written, and refuse what was changed since."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import data_layouts as lay
import pytest

from vca.data.manifest import Manifest, read_manifest
from vca.data.shards import ROW_GROUP_ROWS, ShardWriter, read_dialogues, read_pairs
from vca.errors import ArtifactError
from vca.records import Dialogue, Picture, PreferencePair, Turn

Prepare = Callable[..., Manifest]


def a_pair(number: int, *, size: int = 10) -> PreferencePair:
    return PreferencePair(
        pair_id=f"p{number}",
        prompt="ein Haus, 家 🏠",
        positive=Picture(data=bytes([number % 256]) * size, uri=f"a{number}", key="k"),
        negative=Picture(data=b"\0" * size, uri=f"b{number}", key="k"),
        source="s",
        kind="taste",
        negative_kind="taste",
        label=0.5,
        label_confidence=0.25,
        dialogue_id=None,
        split="train",
        role="reward",
    )


def a_dialogue() -> Dialogue:
    picture = Picture(data=b"\x89PNG", uri="u", key="k")
    turns = (
        Turn(round=1, feedback="", refined_prompt="p", operation="initial", image=picture, satisfied=False),
        Turn(round=2, feedback="f", refined_prompt="q", operation="edit", target=picture, output_modality="text"),
    )
    return Dialogue(
        dialogue_id="d",
        source="s",
        theme="t",
        style=None,
        initial_prompt="p",
        intent="q",
        turns=turns,
        split="test",
        role="test",
    )


def finish(writer: ShardWriter, folder: Path) -> Manifest:
    from vca.data.manifest import FILE_NAME, digest_of

    shards = writer.close()
    manifest = Manifest(
        watermark="w",
        digest=digest_of(shards),
        total=sum(shard.rows for shard in shards),
        shards=shards,
        sources={},
        settings={},
    )
    (folder / FILE_NAME).write_text(manifest.model_dump_json())
    return manifest


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, shard_bytes=10**9)
    pairs = [a_pair(number) for number in range(ROW_GROUP_ROWS + 3)]
    for pair in pairs:
        writer.write(pair)
    writer.write(a_dialogue())
    manifest = finish(writer, tmp_path)
    assert list(read_pairs(tmp_path, role="reward")) == pairs
    assert list(read_dialogues(tmp_path, role="test")) == [a_dialogue()]
    assert list(read_pairs(tmp_path, role="test")) == []
    assert manifest.rows(kind="pairs", role="reward") == len(pairs)


def test_a_new_shard_begins_where_one_is_full(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, shard_bytes=10_000)
    for number in range(12):
        writer.write(a_pair(number, size=1000))
    manifest = finish(writer, tmp_path)
    assert [(shard.file, shard.rows) for shard in manifest.shards] == [
        ("pairs-train-reward-00000.parquet", 5),
        ("pairs-train-reward-00001.parquet", 5),
        ("pairs-train-reward-00002.parquet", 2),
    ]
    assert [pair.pair_id for pair in read_pairs(tmp_path, role="reward")] == [f"p{number}" for number in range(12)]


@pytest.fixture
def data(prepare: Prepare, tmp_path: Path) -> Path:
    prepare("preferences", lay.preferences(tmp_path / "source"))
    return tmp_path / "data"


def test_one_changed_byte_is_found(data: Path) -> None:
    path = next(data.glob("pairs-train-reward-*.parquet"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match="is corrupt"):
        read_manifest(data)
    with pytest.raises(ArtifactError, match="is corrupt"):
        list(read_pairs(data, role="reward"))


def test_a_missing_shard_is_found(data: Path) -> None:
    next(data.glob("*.parquet")).unlink()
    with pytest.raises(ArtifactError, match="can't be read"):
        read_manifest(data)


@pytest.mark.parametrize(
    "change",
    [
        {"shards": []},  # the digest tells
        {"version": 2},
        {"total": "many"},
        {"shards": [{"file": "../../etc/passwd", "kind": "pairs", "split": "train", "role": "reward", "rows": 1}]},
    ],
)
def test_a_changed_manifest_is_refused(data: Path, change: dict[str, object]) -> None:
    path = data / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ArtifactError, match="is damaged"):
        read_manifest(data)


def test_a_folder_without_manifest_is_no_data_set(data: Path) -> None:
    (data / "manifest.json").unlink()
    with pytest.raises(ArtifactError, match="no prepared data set"):
        list(read_pairs(data, role="reward"))
