from __future__ import annotations

import io
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import data_layouts as lay
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa
from people import rows, take, willing
from PIL import Image
from stores import open_store, say, shown

from vca.data.settings import DataSettings
from vca.errors import ArtifactError, DataError
from vca.feedback import erasure, exporting, importing, traces
from vca.feedback.exporting import SPLITS, Exported, export
from vca.feedback.schema import subject
from vca.feedback.snapshot import Snapshot
from vca.feedback.snapshot_files import hollow_out
from vca.feedback.store import Store
from vca.progress import Quiet
from vca.safety.checker import load
from vca.safety.settings import SafetySettings

MP = pytest.MonkeyPatch


@pytest.fixture
def taken(store: Store, monkeypatch: MP) -> Snapshot:
    """Picks, ties and a retraction of several dialogues; one of two people doesn't let us train."""
    ann, bob = willing(store), store.person("bob")
    for number in range(12):
        seen = shown(store, ann, f"Herz “{number}”\u2028🎈")
        if number % 3 == 0:
            say(store, ann, seen, "tie_good", 0, 1)
        else:
            said = say(store, ann, seen, "pick", number % 4)
            if number == 1:
                say(store, ann, seen, "retract", supersedes=said.event_id)
    say(store, bob, shown(store, bob, "a secret of Bob's"), "pick", 0)
    return take(store, monkeypatch)


def exported(store: Store, snapshot: Path, output: Path, format: Any) -> Exported:
    return export(snapshot, output=output, format=format, objects=store.objects, progress=Quiet())


def by_split(taken: Snapshot, *, ties: bool) -> dict[str, list[dict[str, Any]]]:
    """The snapshot's usable pairs."""
    wanted: dict[str, list[dict[str, Any]]] = {}
    for row in rows(taken.folder, "pairs"):
        if row["excluded_reason"] is None and (ties or row["label"] == 1):
            wanted.setdefault(SPLITS[row["split"]], []).append(row)
    return wanted


def test_lines_for_direct_preference_optimisation(store: Store, taken: Snapshot, tmp_path: Path) -> None:
    done = exported(store, taken.folder, tmp_path / "out", "openai-dpo")

    wanted = by_split(taken, ties=False)
    assert done.pairs == {split: len(found) for split, found in wanted.items()}
    assert done.left_out == {"no_consent": 3, "retracted": 3, "tie": 4}
    assert {path.stem for path in (tmp_path / "out").glob("*.jsonl")} == set(wanted)
    for split, pairs in wanted.items():
        text = (tmp_path / f"out/{split}.jsonl").read_text(encoding="ascii")
        assert [json.loads(line) for line in text.splitlines()] == [
            {
                "input": {"messages": [{"role": "user", "content": row["prompt"]}]},
                "preferred_output": [{"role": "assistant", "content": f"sha256:{row['image_chosen']}"}],
                "non_preferred_output": [{"role": "assistant", "content": f"sha256:{row['image_rejected']}"}],
            }
            for row in pairs
        ]


@pytest.mark.parametrize("group_bytes", [1, 30_000, 2**25])
def test_tables_for_datasets(store: Store, taken: Snapshot, tmp_path: Path, monkeypatch: MP, group_bytes: int) -> None:
    monkeypatch.setattr(exporting, "GROUP_BYTES", group_bytes)

    done = exported(store, taken.folder, tmp_path / "out", "hf-preferences")

    wanted = by_split(taken, ties=True)
    assert done == Exported(
        pairs={split: len(found) for split, found in wanted.items()}, left_out={"no_consent": 3, "retracted": 3}
    )
    for split, pairs in wanted.items():
        file = tmp_path / f"out/data/{split}.parquet"
        parts = pq.ParquetFile(file)
        groups = [parts.read_row_group(number).to_pylist() for number in range(parts.num_row_groups)]
        sizes = [[len(row[name]["bytes"]) for row in group for name in ("chosen", "rejected")] for group in groups]
        assert all(sum(size) >= group_bytes for size in sizes[:-1])
        assert all(sum(size[:-2]) < group_bytes for size in sizes)
        found = [row for group in groups for row in group]
        assert len(found) == len(pairs)
        for row, pair in zip(found, pairs, strict=True):
            for name in ("prompt", "label", "weight", "rule", "pair_id"):
                assert row[name] == pair[name]
            for name in ("chosen", "rejected"):
                digest = pair[f"image_{name}"]
                assert row[name] == {"bytes": store.objects.get(digest), "path": f"{digest}.png"}
                assert Image.open(io.BytesIO(row[name]["bytes"])).size == (64, 64)


def test_the_schema_says_what_datasets_writes_itself(store: Store, taken: Snapshot, tmp_path: Path) -> None:
    """The metadata that datasets 5.2.0 writes for these features: checked against its own `to_parquet` once."""
    exported(store, taken.folder, tmp_path / "out", "hf-preferences")
    file = next((tmp_path / "out/data").glob("*.parquet"))
    schema = pq.read_schema(file)
    told = json.loads(schema.metadata[b"huggingface"])
    string, number = ({"dtype": dtype, "_type": "Value"} for dtype in ("string", "float64"))
    assert told == {
        "info": {
            "features": {
                "prompt": string,
                "chosen": {"_type": "Image"},
                "rejected": {"_type": "Image"},
                "label": number,
                "weight": number,
                "rule": string,
                "pair_id": string,
            }
        }
    }
    assert list(told["info"]["features"]) == schema.names
    assert str(schema.field("chosen").type) == "struct<bytes: binary, path: string>"


@pytest.mark.parametrize("role", ["image_chosen", "image_rejected"])
def test_a_picture_that_is_gone_takes_its_pairs_out(store: Store, taken: Snapshot, tmp_path: Path, role: str) -> None:
    pairs = [row for row in rows(taken.folder, "pairs") if row["excluded_reason"] is None]
    gone = next(row for row in pairs if row["rule"] == "tie")[role]  # in this pair alone
    store.objects.delete(gone)
    done = exported(store, taken.folder, tmp_path / "out", "hf-preferences")
    assert done.left_out["missing_picture"] == 1
    assert sum(done.pairs.values()) == len(pairs) - 1


@pytest.mark.parametrize("format", ["openai-dpo", "hf-preferences"])
def test_nothing_of_an_erased_person_is_exported(
    store: Store, taken: Snapshot, tmp_path: Path, format: str, monkeypatch: MP
) -> None:
    exported(store, taken.folder, tmp_path / "runs/before", format)
    assert traces.find(tmp_path / "runs", [taken.snapshot_id]).quoting == [tmp_path / "runs/before"]

    read = exporting.read_rows

    def erased_at_the_end(*given: Any) -> Any:
        yield from read(*given)
        hollow_out(taken.folder)

    monkeypatch.setattr(exporting, "read_rows", erased_at_the_end)
    with pytest.raises(ArtifactError, match="erased since"):
        exported(store, taken.folder, tmp_path / "runs/meanwhile", format)
    with pytest.raises(ArtifactError, match="erased since"):
        exported(store, taken.folder, tmp_path / "runs/after", format)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["before"]


def test_what_a_killed_export_left_is_found_by_erasure_and_replaced(
    store: Store, taken: Snapshot, tmp_path: Path, monkeypatch: MP
) -> None:
    left = tmp_path / "runs/left"

    def stop(*given: Any) -> Any:
        shutil.copytree(tmp_path / "runs/.out.building", left)  # as SIGKILL leaves it
        raise KeyboardInterrupt
        yield

    with monkeypatch.context() as patched:
        patched.setattr(exporting, "read_rows", stop)
        with pytest.raises(KeyboardInterrupt):
            exported(store, taken.folder, tmp_path / "runs/out", "hf-preferences")
    assert traces.find(tmp_path / "runs", [taken.snapshot_id]).quoting == [left]
    shutil.copytree(left, tmp_path / "runs/.out.building")
    lay.put(tmp_path / "runs/.out.building/data/old.parquet", b"x")

    exported(store, taken.folder, tmp_path / "runs/out", "hf-preferences")

    assert not (tmp_path / "runs/out/data/old.parquet").exists()
    assert not (tmp_path / "runs/.out.building").exists()


def test_refusals(store: Store, taken: Snapshot, tmp_path: Path, monkeypatch: MP) -> None:
    with pytest.raises(DataError, match="exists already"):
        exported(store, taken.folder, tmp_path, "openai-dpo")
    with pytest.raises(ArtifactError, match="no snapshot of feedback"):
        exported(store, tmp_path / "pictures", tmp_path / "out", "openai-dpo")
    store.agree(store.person("ann"), {"train": False})
    with pytest.raises(DataError, match=r"no pair to export \(none, no_consent \d+\)"):
        exported(store, take(store, monkeypatch).folder, tmp_path / "out", "openai-dpo")
    assert not (tmp_path / "out").exists()


def test_from_a_label_file_to_an_export_and_nothing_changed(store: Store, tmp_path: Path, monkeypatch: MP) -> None:
    """Import, snapshot, export: every comparison comes out as it went in, though one source brings many at once."""
    path = lay.preferences(tmp_path / "source", count=400)
    imported(store, path)
    limits = store.settings.rules.model_copy(update={"quarantine_h": 24.0})
    monkeypatch.setattr(store, "settings", store.settings.model_copy(update={"rules": limits}))

    done = exported(store, take(store, monkeypatch).folder, tmp_path / "out", "hf-preferences")

    assert (sum(done.pairs.values()), done.left_out) == (400, {})
    files = sorted((tmp_path / "out/data").iterdir())
    assert [file.name for file in files] == ["test.parquet", "train.parquet", "validation.parquet"]
    found = [row for file in files for row in pq.read_table(file).to_pylist()]
    images = path.parent / "images"
    assert Counter((row["prompt"], row["chosen"]["bytes"], row["rejected"]["bytes"]) for row in found) == Counter(
        (f"a green house number {n}", (images / f"{n}a.png").read_bytes(), (images / f"{n}b.png").read_bytes())
        for n in range(400)
    )
    assert {(row["label"], row["weight"], row["rule"]) for row in found} == {(1.0, 1.0, "pair")}


def test_a_source_that_an_operator_does_not_trust_stays_out(store: Store, tmp_path: Path, monkeypatch: MP) -> None:
    imported(store, lay.preferences(tmp_path / "source", count=3))
    with store.database.writing() as connection:
        connection.execute(sa.update(subject).values(trust=0.1))
    assert take(store, monkeypatch).manifest.excluded_pairs == {"low_trust": 3}


@pytest.mark.parametrize("format", ["openai-dpo", "hf-preferences"])
def test_erasing_a_source_erases_it_from_exports_too(
    store: Store, tmp_path: Path, monkeypatch: MP, format: str
) -> None:
    path = lay.preferences(tmp_path / "source", count=2)
    imported(store, path)
    exported(store, take(store, monkeypatch).folder, tmp_path / "runs/out", format)
    runs = tmp_path / "runs"

    done = erasure.erase(store, subject_id=erasure.subject_of(store, "import:preferences"), runs=runs)

    assert done.receipts["prepared"]["removed"] == [str(runs / "out")]
    assert not (runs / "out").exists()
    assert [file for file in (tmp_path / "pictures").rglob("*") if file.is_file()] == []
    imported(store, path)  # by somebody who means it
    assert take(store, monkeypatch).manifest.usable == 2


def imported(store: Store, path: Path) -> None:
    importing.run(
        store,
        kind="preferences",
        path=path,
        data=DataSettings(),
        checker=load(SafetySettings(classifier="none")),
        quarantine=path.parent / "quarantine",
        progress=Quiet(),
    )


def test_the_command_exports_and_says_so(tmp_path: Path, monkeypatch: MP) -> None:
    from typer.testing import CliRunner

    from vca.cli_feedback import app

    store = open_store(f"sqlite:///{tmp_path}/store.sqlite", tmp_path)
    ann = willing(store)
    say(store, ann, shown(store, ann), "pick", 0)
    taken = take(store, monkeypatch)
    store.close()
    options = ["--format", "hf-preferences", "--set", f"feedback.objects={tmp_path}/pictures"]
    done = CliRunner().invoke(app, ["export", str(taken.folder), str(tmp_path / "out"), *options])
    assert done.exit_code == 0, done.output
    assert f" 3; {tmp_path}/out" in done.output
