"""A snapshot's pairs in the formats of other people's training code, one file per split. Excluded pairs stay out.

openai-dpo: `{train,validation,test}.jsonl`, a line per pair as OpenAI's direct preference optimisation takes it. That
format holds text only, so the two answers name their pictures, as `sha256:DIGEST`; it knows neither ties (left out) nor
weights (lost).

hf-preferences: `data/{train,validation,test}.parquet` for Hugging Face `datasets`, which finds the types of the columns
in the schema's metadata: `load_dataset(FOLDER)` gives decoded pictures. label: 1 where `chosen` was preferred, 0.5 for
a tie. weight: those of one choice's pairs sum to 1. A picture's path is its digest, as above, and its format.

`manifest.json` names the snapshot as prepared data does: erasing somebody removes exports that hold them, below the
folder that erasure looks in.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TextIO

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from vca.data.images import FORMATS
from vca.data.paper_layout import SUFFIXES
from vca.errors import DataError
from vca.feedback.objects import Objects
from vca.feedback.snapshot_files import read_manifest, read_rows
from vca.progress import Progress
from vca.store import disk_errors, write_json

Format = Literal["openai-dpo", "hf-preferences"]
SPLITS = {"train": "train", "val": "validation", "test": "test"}  # of the snapshot: of the export
GROUP_BYTES = 32 * 2**20  # of pictures in one row group: what a reader has to hold
KEPT_PICTURES = 16  # of one dialogue, whose pairs follow each other

_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_COLUMNS = [
    ("prompt", pa.string(), "string"),
    ("chosen", _IMAGE, "image"),
    ("rejected", _IMAGE, "image"),
    ("label", pa.float64(), "float64"),
    ("weight", pa.float64(), "float64"),
    ("rule", pa.string(), "string"),
    ("pair_id", pa.string(), "string"),
]
_FEATURES = {
    name: {"_type": "Image"} if kind == "image" else {"dtype": kind, "_type": "Value"} for name, _, kind in _COLUMNS
}
SCHEMA = pa.schema(
    [(name, type_) for name, type_, _ in _COLUMNS],
    metadata={"huggingface": json.dumps({"info": {"features": _FEATURES}})},
)

Write = Callable[[str, dict[str, Any]], str | None]  # split, a row of pairs -> why it can't be written


@dataclass(frozen=True, kw_only=True)
class Exported:
    """pairs: written, by split. left_out: excluded by the snapshot, or not expressible, by reason."""

    pairs: dict[str, int]
    left_out: dict[str, int]


def export(snapshot: Path, *, output: Path, format: Format, objects: Objects, progress: Progress) -> Exported:
    """Write the pairs of the snapshot in the folder `snapshot` to the new folder `output`. objects: its pictures.

    Errors: DataError if `output` exists or no pair is left; ArtifactError where the snapshot is damaged, or somebody
    in it was erased, even meanwhile; StoreDown where the pictures can't be reached; ResourceError for a full disk.
    """
    if output.exists():
        raise DataError(f"{output} exists already; export to a new folder")
    manifest = read_manifest(snapshot)
    building = output.absolute().with_name(f".{output.name}.building")
    pairs: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    with disk_errors(output.absolute().parent):
        shutil.rmtree(building, ignore_errors=True)  # what a killed export left
        building.mkdir(parents=True)
        try:
            # first, so that erasure finds what a killed export left
            write_json(building / "manifest.json", {"watermark": f"feedback@{manifest.snapshot_id}", "format": format})
            with (
                _WRITERS[format](building, objects) as write,
                progress.task(f"export: {format}", total=manifest.rows("pairs"), unit="pairs") as task,
            ):
                for row in read_rows(snapshot, "pairs"):
                    split = SPLITS[row["split"]]
                    reason = row["excluded_reason"] or write(split, row)
                    if reason is None:
                        pairs[split] += 1
                    else:
                        left_out[reason] += 1
                    task.advance()
            if not pairs:
                raise DataError(f"{snapshot}: no pair to export ({told(pairs, left_out)}); take a later snapshot")
            read_manifest(snapshot, verify=False)
            os.replace(building, output)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    return Exported(pairs=dict(sorted(pairs.items())), left_out=dict(sorted(left_out.items())))


def told(pairs: Counter[str] | dict[str, int], left_out: Counter[str] | dict[str, int]) -> str:
    """The counts in words."""
    parts = [f"{name} {count}" for name, count in pairs.items()] or ["none"]
    return ", ".join(parts) + "".join(f", {reason} {count}" for reason, count in left_out.items())


@contextmanager
def _openai_dpo(folder: Path, objects: Objects) -> Iterator[Write]:
    with ExitStack() as stack:

        @lru_cache
        def file(split: str) -> TextIO:
            return stack.enter_context((folder / f"{split}.jsonl").open("w", encoding="utf-8"))

        def write(split: str, row: dict[str, Any]) -> str | None:
            if row["label"] != 1:
                return "tie"
            line = {
                "input": {"messages": [{"role": "user", "content": row["prompt"]}]},
                "preferred_output": _answer(row["image_chosen"]),
                "non_preferred_output": _answer(row["image_rejected"]),
            }
            file(split).write(json.dumps(line) + "\n")  # ASCII only: some readers end a line at U+2028
            return None

        yield write


def _answer(digest: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": f"sha256:{digest}"}]


@contextmanager
def _hf_preferences(folder: Path, objects: Objects) -> Iterator[Write]:
    (folder / "data").mkdir()
    picture = lru_cache(KEPT_PICTURES)(lambda digest: _picture(objects, digest))
    with ExitStack() as stack:

        @lru_cache
        def table(split: str) -> _Table:
            return stack.enter_context(_table(folder / "data" / f"{split}.parquet"))

        def write(split: str, row: dict[str, Any]) -> str | None:
            chosen, rejected = picture(row["image_chosen"]), picture(row["image_rejected"])
            if chosen is None or rejected is None:
                return "missing_picture"
            same = {name: row[name] for name in ("prompt", "label", "weight", "rule", "pair_id")}
            table(split).add({**same, "chosen": chosen, "rejected": rejected})
            return None

        yield write


class _Table:
    """Rows on their way into a Parquet file, a group of limited size at a time."""

    def __init__(self, writer: pq.ParquetWriter) -> None:
        self.writer = writer
        self.rows: list[dict[str, Any]] = []
        self.size = 0

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        self.size += len(row["chosen"]["bytes"]) + len(row["rejected"]["bytes"])
        if self.size >= GROUP_BYTES:
            self.flush()

    def flush(self) -> None:
        if self.rows:
            self.writer.write_table(pa.Table.from_pylist(self.rows, schema=SCHEMA))
        self.rows, self.size = [], 0


@contextmanager
def _table(path: Path) -> Iterator[_Table]:
    with pq.ParquetWriter(path, SCHEMA) as writer:
        table = _Table(writer)
        yield table
        table.flush()


def _picture(objects: Objects, digest: str) -> dict[str, Any] | None:
    data = objects.get(digest)
    if data is None:
        return None
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        return {"bytes": data, "path": f"{digest}.{SUFFIXES[str(image.format)]}"}


_WRITERS = {"openai-dpo": _openai_dpo, "hf-preferences": _hf_preferences}
