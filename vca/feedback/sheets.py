"""Rows on their way to a file: columns made of them in bulk, and files of bounded size, the same for the same rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vca.feedback.snapshot_files import SCHEMAS, TIME, File, Kind, sha256_of

GROUP_ROWS = 2**15
FILE_ROWS = 2**20
IDS = {
    "dialogue_id", "round_id", "subject_id", "presentation_id", "event_id", "candidate_id", "chosen", "rejected",
    "leaf", "source_event_id", "supersedes",
}  # fmt: skip
# Ids and digests of pictures differ in nearly every row; a dictionary of them would only be in the way.
REPEATED = {
    "pairs": ["dialogue_id", "round_id", "subject_id", "rule", "prompt", "prompt_hmac", "source_event_id", "split"],
    "dialogues": ["subject_id", "split", "excluded_reason"],
    "events": ["subject_id", "dialogue_id", "kind", "input", "prompt_hmac"],
}


def batch_of(rows: Sequence[Sequence[Any]], schema: pa.Schema) -> pa.RecordBatch:
    """rows: values in the schema's order, times as `vca.feedback.rules` has them."""
    columns = zip(*rows, strict=True) if rows else [()] * len(schema)
    return pa.record_batch(
        [_column(column, field.type) for column, field in zip(columns, schema, strict=True)], schema=schema
    )


def _column(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    if kind == TIME:
        return pa.array(values, pa.string()).cast(pa.timestamp("us")).cast(TIME)
    return pa.array(values, kind)


def with_dashes(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch with its UUIDs in their usual form."""
    for place, name in enumerate(batch.schema.names):
        if name in IDS:
            parts = [pc.utf8_slice_codeunits(batch[name], a, b) for a, b in pairwise((0, 8, 12, 16, 20, 32))]
            batch = batch.set_column(place, name, pc.binary_join_element_wise(*parts, "-"))
    return batch


class Spool:
    """Batches put aside on disk, to be read again, some columns of them or all."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._path = path
        self._writer = pa.ipc.new_file(str(path), schema, options=pa.ipc.IpcWriteOptions(compression="lz4"))
        self.rows = 0

    def add(self, batch: pa.RecordBatch) -> None:
        self._writer.write_batch(batch)
        self.rows += batch.num_rows

    def close(self) -> None:
        self._writer.close()

    def read(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """After `close`."""
        with pa.OSFile(str(self._path)) as file:
            options = pa.ipc.IpcReadOptions(use_threads=False)
            if columns is not None:
                schema = pa.ipc.open_file(file).schema
                options.included_fields = [schema.get_field_index(name) for name in columns]
            reader = pa.ipc.open_file(file, options=options)
            for number in range(reader.num_record_batches):
                yield reader.get_batch(number)


class Parts:
    """Parquet files `{kind}/00000.parquet` and so on, the same bytes for the same rows in the same batches."""

    def __init__(self, folder: Path, kind: Kind) -> None:
        self.folder, self.kind, self.schema = folder, kind, SCHEMAS[kind]
        (folder / kind).mkdir()
        self.files: list[File] = []
        self._waiting: list[pa.RecordBatch] = []
        self._rows = self._written = 0
        self._writer: pq.ParquetWriter | None = None

    def add(self, batch: pa.RecordBatch) -> None:
        self._waiting.append(with_dashes(batch))
        self._rows += batch.num_rows
        if self._rows >= GROUP_ROWS:
            self._flush()
            if self._written >= FILE_ROWS:
                self._finish()

    def close(self) -> list[File]:
        """The files, all of them on the disk."""
        self._flush()
        self._finish()
        return self.files

    def _name(self) -> str:
        return f"{self.kind}/{len(self.files):05d}.parquet"

    def _flush(self) -> None:
        if not self._rows:
            return
        if self._writer is None:
            self._writer = pq.ParquetWriter(
                self.folder / self._name(),
                self.schema,
                compression="zstd",
                compression_level=1,
                use_dictionary=REPEATED[self.kind],
                write_statistics=["event_timestamp"] if self.kind != "events" else ["received_at"],
            )
        self._writer.write_table(pa.Table.from_batches(self._waiting, self.schema), row_group_size=self._rows)
        self._written += self._rows
        self._waiting, self._rows = [], 0

    def _finish(self) -> None:
        if self._writer is None:
            return
        self._writer.close()
        path = self.folder / self._name()
        self.files.append(File(name=self._name(), rows=self._written, sha256=sha256_of(path, sync=True)))
        self._writer, self._written = None, 0
