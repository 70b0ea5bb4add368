"""Parquet shards: whole records with their pictures' bytes in the rows, written as a stream and verified on reading."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from vca.data.manifest import Kind, Shard, read_manifest, verify_shard
from vca.records import Dialogue, Picture, PreferencePair, Role, Split, Turn

__all__ = ["ShardWriter", "read_dialogues", "read_manifest", "read_pairs"]

ROW_GROUP_BYTES = 4 * 2**20  # of pictures: bounds what each open shard holds in memory
ROW_GROUP_ROWS = 4096
READ_ROWS = 64
T = TypeVar("T")

_PICTURE = pa.struct([("data", pa.binary()), ("uri", pa.string()), ("key", pa.string())])
_PAIRS = pa.schema(
    [
        ("pair_id", pa.string()),
        ("prompt", pa.string()),
        ("positive", _PICTURE),
        ("negative", _PICTURE),
        ("source", pa.string()),
        ("kind", pa.string()),
        ("negative_kind", pa.string()),
        ("label", pa.float64()),
        ("label_confidence", pa.float64()),
        ("dialogue_id", pa.string()),
        ("split", pa.string()),
        ("role", pa.string()),
    ]
)
_TURN = pa.struct(
    [
        ("round", pa.int32()),
        ("feedback", pa.string()),
        ("refined_prompt", pa.string()),
        ("operation", pa.string()),
        ("image", _PICTURE),
        ("target", _PICTURE),
        ("satisfied", pa.bool_()),
        ("input_modality", pa.string()),
        ("output_modality", pa.string()),
    ]
)
_DIALOGUES = pa.schema(
    [
        ("dialogue_id", pa.string()),
        ("source", pa.string()),
        ("theme", pa.string()),
        ("style", pa.string()),
        ("initial_prompt", pa.string()),
        ("intent", pa.string()),
        ("turns", pa.list_(_TURN)),
        ("split", pa.string()),
        ("role", pa.string()),
    ]
)
SCHEMAS: dict[Kind, pa.Schema] = {"pairs": _PAIRS, "dialogues": _DIALOGUES}


def read_pairs(folder: Path, *, role: Role) -> Iterator[PreferencePair]:
    """The pairs of a prepared folder for one role, in the order they were written. Errors: ArtifactError."""
    return _read(folder, "pairs", role, _pair_from_row)


def read_dialogues(folder: Path, *, role: Role) -> Iterator[Dialogue]:
    """The dialogues of a prepared folder for one role, in the order they were written. Errors: ArtifactError."""
    return _read(folder, "dialogues", role, _dialogue_from_row)


def _read(folder: Path, kind: Kind, role: Role, from_row: Callable[[dict[str, Any]], T]) -> Iterator[T]:
    for shard in read_manifest(folder, verify=False).shards:
        if (shard.kind, shard.role) == (kind, role):
            with pq.ParquetFile(verify_shard(folder, shard)) as table:
                for batch in table.iter_batches(batch_size=READ_ROWS):
                    yield from map(from_row, batch.to_pylist())


class ShardWriter:
    """Writes records into shards per (kind, split, role), and closes a shard when it is large enough."""

    def __init__(self, folder: Path, *, shard_bytes: int) -> None:
        self.folder = folder
        self.shard_bytes = shard_bytes
        self.shards: list[Shard] = []
        self._open: dict[tuple[Kind, Split, Role], _OpenShard] = {}
        self._numbers: dict[tuple[Kind, Split, Role], int] = {}

    def write(self, record: PreferencePair | Dialogue) -> None:
        """Append one record to the shard of its kind, split and role."""
        kind: Kind = "pairs" if isinstance(record, PreferencePair) else "dialogues"
        place = (kind, record.split, record.role)
        shard = self._open.get(place)
        if shard is None:
            number = self._numbers.get(place, 0)
            self._numbers[place] = number + 1
            name = f"{kind}-{record.split}-{record.role}-{number:05d}.parquet"
            shard = self._open[place] = _OpenShard(self.folder / name, SCHEMAS[kind])
        if isinstance(record, PreferencePair):
            shard.add(_row_from_pair(record), len(record.positive.data) + len(record.negative.data))
        else:
            pictures = (picture for turn in record.turns for picture in (turn.image, turn.target) if picture)
            shard.add(_row_from_dialogue(record), sum(len(picture.data) for picture in pictures))
        if shard.size >= self.shard_bytes:
            self._close(place)

    def close(self) -> tuple[Shard, ...]:
        """Finish every open shard; all shards, ordered by name."""
        for place in list(self._open):
            self._close(place)
        return tuple(sorted(self.shards, key=lambda shard: shard.file))

    def _close(self, place: tuple[Kind, Split, Role]) -> None:
        shard = self._open.pop(place)
        sha256, size = shard.close()
        kind, split, role = place
        self.shards.append(
            Shard(file=shard.path.name, kind=kind, split=split, role=role, rows=shard.rows, bytes=size, sha256=sha256)
        )


class _OpenShard:
    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path = path
        self.rows = 0
        self.size = 0
        self._schema = schema
        self._file = _HashedFile(path)
        # Pictures are compressed already, and statistics or dictionaries of them would only cost.
        self._writer = pq.ParquetWriter(
            self._file, schema, compression="none", use_dictionary=False, write_statistics=False
        )
        self._rows: list[dict[str, Any]] = []
        self._waiting = 0

    def add(self, row: dict[str, Any], size: int) -> None:
        self._rows.append(row)
        self._waiting += size
        self.size += size
        self.rows += 1
        if self._waiting >= ROW_GROUP_BYTES or len(self._rows) >= ROW_GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._rows = []
        self._waiting = 0

    def close(self) -> tuple[str, int]:
        self._flush()
        self._writer.close()
        return self._file.finish()


class _HashedFile:
    """A file for pyarrow to write to that knows the sha256 of what went through it."""

    closed = False

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._digest = hashlib.sha256()
        self._size = 0

    def write(self, data: Any) -> int:
        view = memoryview(data)
        self._file.write(view)
        self._digest.update(view)
        self._size += view.nbytes
        return view.nbytes

    def tell(self) -> int:
        return self._size

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        """pyarrow's wish; `finish` does it."""

    def finish(self) -> tuple[str, int]:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self.closed = True
        return self._digest.hexdigest(), self._size


def _row_from_picture(picture: Picture | None) -> dict[str, Any] | None:
    return None if picture is None else {"data": picture.data, "uri": picture.uri, "key": picture.key}


def _picture_from_row(row: dict[str, Any] | None) -> Picture | None:
    return Picture(**row) if row else None


def _row_from_pair(pair: PreferencePair) -> dict[str, Any]:
    row = dict(vars(pair))
    row["positive"], row["negative"] = _row_from_picture(pair.positive), _row_from_picture(pair.negative)
    return row


def _pair_from_row(row: dict[str, Any]) -> PreferencePair:
    return PreferencePair(**row | {"positive": Picture(**row["positive"]), "negative": Picture(**row["negative"])})


def _row_from_dialogue(dialogue: Dialogue) -> dict[str, Any]:
    turns = [
        dict(vars(turn)) | {"image": _row_from_picture(turn.image), "target": _row_from_picture(turn.target)}
        for turn in dialogue.turns
    ]
    return dict(vars(dialogue)) | {"turns": turns}


def _dialogue_from_row(row: dict[str, Any]) -> Dialogue:
    turns = tuple(
        Turn(**turn | {"image": _picture_from_row(turn["image"]), "target": _picture_from_row(turn["target"])})
        for turn in row["turns"]
    )
    return Dialogue(**row | {"turns": turns})
