"""What a snapshot is on disk: Parquet files and a manifest. Reading it needs no database, so data preparation can.

    manifest.json      written last; what the files are, what they count, whether somebody in them was erased
    pairs/*.parquet    `PAIRS`: preference pairs, the excluded ones with their reason, without words and pictures
    dialogues/*.parquet    `DIALOGUES`: training dialogues, likewise
    events/*.parquet   `EVENTS`: facts of events, no words; of people who let us train only

Rows are ordered by dialogue, and by time within it.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vca.errors import ArtifactError

FILE_NAME = "manifest.json"
READ_ROWS = 4096
Kind = Literal["pairs", "dialogues", "events"]

TIME = pa.timestamp("us", tz="UTC")
PAIRS = pa.schema(
    [
        ("pair_id", pa.string()),
        ("dialogue_id", pa.string()),
        ("round_id", pa.string()),
        ("subject_id", pa.string()),
        ("depth", pa.int32()),
        ("chosen", pa.string()),
        ("rejected", pa.string()),
        ("label", pa.float64()),
        ("rule", pa.string()),
        ("weight", pa.float64()),
        ("prompt", pa.string()),
        ("prompt_hmac", pa.string()),
        ("image_chosen", pa.string()),
        ("image_rejected", pa.string()),
        ("phash_chosen", pa.string()),
        ("slot_chosen", pa.int8()),
        ("slot_rejected", pa.int8()),
        ("slots", pa.int8()),
        ("source_event_id", pa.string()),
        ("event_timestamp", TIME),
        ("split", pa.string()),
        ("excluded_reason", pa.string()),
    ]
)
STEP = pa.struct(
    [
        ("round", pa.int32()),
        ("prompt", pa.string()),
        ("critique", pa.string()),
        ("image", pa.string()),
        ("target", pa.string()),
    ]
)
DIALOGUES = pa.schema(
    [
        ("dialogue_id", pa.string()),
        ("subject_id", pa.string()),
        ("leaf", pa.string()),
        ("accepted", pa.bool_()),
        ("prompt_hmac", pa.string()),
        ("phash_chosen", pa.string()),
        ("steps", pa.list_(STEP)),
        ("source_event_id", pa.string()),
        ("event_timestamp", TIME),
        ("split", pa.string()),
        ("excluded_reason", pa.string()),
    ]
)
EVENTS = pa.schema(
    [
        ("event_id", pa.string()),
        ("subject_id", pa.string()),
        ("dialogue_id", pa.string()),
        ("round_id", pa.string()),
        ("presentation_id", pa.string()),
        ("depth", pa.int32()),
        ("prompt_hmac", pa.string()),
        ("kind", pa.string()),
        ("candidate_id", pa.string()),  # the first picture that it is about
        ("targets", pa.int8()),  # how many it is about
        ("slot", pa.int8()),  # of the first one
        ("slots", pa.int8()),  # how many were shown
        ("probe", pa.bool_()),
        ("supersedes", pa.string()),
        ("alignment", pa.int8()),  # a rating's axes, 1 to 5
        ("coherence", pa.int8()),
        ("style", pa.int8()),
        ("gates_failed", pa.int8()),
        ("gates_unknown", pa.int8()),
        ("input", pa.string()),
        ("dwell_ms", pa.int32()),
        ("shown_at", TIME),
        ("event_at", TIME),
        ("received_at", TIME),
    ]
)
SCHEMAS: dict[Kind, pa.Schema] = {"pairs": PAIRS, "dialogues": DIALOGUES, "events": EVENTS}


class File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^(pairs|dialogues|events)/\d{5}\.parquet$")
    rows: int = Field(ge=1)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Slots(BaseModel):
    """Where picks fell among `n` pictures. chi2, p: against an even spread. weights: those that even it out.

    A pick from slot s weighs (1/n) / share of s, shares with one pick added to each slot (inverse propensity).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    n: int
    picks: tuple[int, ...]
    chi2: float
    p: float
    weights: tuple[float, ...]


class Manifest(BaseModel):
    """as_of: what the store knew then is in it. newest: when the last event in it was received.

    pairs, dialogues: usable ones by "{rule}/{split}" and by split. excluded_*: by reason. people: who gave a usable
    pair. negatives: choices that liked nothing. unknown_gates: events with a check for abuse that could not be made.
    digest: of the files' names and contents. erased: somebody in it was erased, and the files with them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    snapshot_id: str
    as_of: datetime
    newest: datetime | None
    rule_version: str
    rules: dict[str, Any]
    erasure_epoch: int
    people: int
    pairs: dict[str, int]
    excluded_pairs: dict[str, int]
    dialogues: dict[str, int]
    excluded_dialogues: dict[str, int]
    events: int
    negatives: int
    unknown_gates: int
    slots: tuple[Slots, ...]
    picture_bytes: int
    files: tuple[File, ...]
    digest: str
    erased: bool = False

    @property
    def usable(self) -> int:
        """Pairs to train on."""
        return sum(self.pairs.values())

    def in_words(self) -> str:
        """One line."""
        excluded = ", ".join(f"{reason} {n:,}" for reason, n in self.excluded_pairs.items())
        told = f"{self.usable:,} pairs of {self.people:,} people, {sum(self.dialogues.values()):,} dialogues"
        return f"{told}; excluded pairs: {excluded or 'none'}"

    def rows(self, kind: Kind) -> int:
        """Rows of that kind, usable or not."""
        return sum(file.rows for file in self.files if file.name.startswith(f"{kind}/"))


def digest_of(files: tuple[File, ...]) -> str:
    """Identity of the contents."""
    return hashlib.sha256("\n".join(f"{file.name} {file.sha256}" for file in files).encode()).hexdigest()


def read_manifest(folder: Path, *, verify: bool = True) -> Manifest:
    """The manifest of a snapshot that may be used; with `verify` every file's sha256 is checked.

    Errors: ArtifactError where there is none, a file is missing or changed, or somebody in it was erased.
    """
    path = folder / FILE_NAME
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ArtifactError(
            f"{folder} is no snapshot of feedback ({error.strerror}: {path}); take one: `vca feedback snapshot`"
        ) from None
    except ValidationError as error:
        what = error.errors()[0]
        raise ArtifactError(f"{path} is damaged ({what['loc']}: {what['msg']}); take another snapshot") from None
    if manifest.erased:
        raise ArtifactError(
            f"the snapshot {folder} held somebody who was erased since; take another: `vca feedback snapshot`"
        )
    if manifest.digest != digest_of(manifest.files):
        raise ArtifactError(f"{path} is damaged (its digest doesn't fit its files); take another snapshot")
    if verify:
        for file in manifest.files:
            _verify(folder, file)
    return manifest


def read_rows(folder: Path, kind: Kind) -> Iterator[dict[str, Any]]:
    """Every row of that kind, in order. Errors: ArtifactError."""
    for file in read_manifest(folder, verify=False).files:
        if file.name.startswith(f"{kind}/"):
            with pq.ParquetFile(_verify(folder, file)) as table:
                for batch in table.iter_batches(batch_size=READ_ROWS):
                    yield from batch.to_pylist()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Whole or not at all."""
    building = folder / f".{FILE_NAME}.{secrets.token_hex(4)}"
    with building.open("w", encoding="utf-8") as file:
        file.write(manifest.model_dump_json(indent=1))
        file.flush()
        os.fsync(file.fileno())
    os.replace(building, folder / FILE_NAME)


def hollow_out(folder: Path) -> None:
    """Remove what people gave; what stays is the manifest, which says so. Does nothing where there is no snapshot."""
    path = folder / FILE_NAME
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        manifest = None
    if manifest is not None and not manifest.erased:
        write_manifest(folder, manifest.model_copy(update={"erased": True}))  # first: from now on nobody reads it
    for kind in SCHEMAS:
        for file in (folder / kind).glob("*"):
            file.unlink(missing_ok=True)


def sha256_of(path: Path, *, sync: bool = False) -> str:
    """sync: also see to it that the file is on the disk."""
    with path.open("rb") as file:
        if sync:
            os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def _verify(folder: Path, file: File) -> Path:
    path = folder / file.name
    try:
        found = sha256_of(path)
    except OSError as error:
        raise ArtifactError(f"{path} can't be read ({error.strerror}); take another snapshot") from None
    if found != file.sha256:
        raise ArtifactError(f"{path} is corrupt (its sha256 is not the manifest's); take another snapshot")
    return path
