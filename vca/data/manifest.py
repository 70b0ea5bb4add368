"""The manifest: what a prepared data set holds, where it came from, and what was left out and why."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vca.errors import ArtifactError
from vca.records import Role, Split

FILE_NAME = "manifest.json"
VERSION = 1
Kind = Literal["pairs", "dialogues"]
_CHUNK = 2**20


class Shard(BaseModel):
    """One Parquet file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str = Field(pattern=r"^(pairs|dialogues)-(train|test)-[a-z]+-\d{5,}\.parquet$")
    kind: Kind
    split: Split
    role: Role
    rows: int = Field(ge=1)
    bytes: int = Field(ge=1)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class SourceCounts(BaseModel):
    """What became of a source's records: seen = accepted + filtered + straddles + quarantined, always.

    accepted: by "{pairs|dialogues}/{split}/{role}". Of these, `written` names what lies in shards, including the pairs
    that were made from dialogues; the rest are dialogues that only gave pairs, and records that no role needed.
    written_kinds: pairs by "{role}/{kind}". negatives: pairs by how the negative was made. straddling records had keys
    on both sides of the split. people: how many real people its judgements are from, 0 where nobody was asked.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    seen: int = 0
    accepted: dict[str, int] = {}
    filtered: dict[str, int] = {}
    straddles: int = 0
    quarantined: dict[str, int] = {}
    made_pairs: int = 0
    people: int = 0
    written: dict[str, int] = {}
    written_kinds: dict[str, int] = {}
    negatives: dict[str, int] = {}


class Manifest(BaseModel):
    """Written last: a folder without it is no data set.

    watermark: the state of the sources that was read, "name@state" each. digest: identity of the contents, the sha256
    over the shards' names and digests. total: rows in all shards. settings: those of data preparation.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    watermark: str
    digest: str
    total: int
    shards: tuple[Shard, ...]
    sources: dict[str, SourceCounts]
    settings: dict[str, Any]

    def rows(self, *, kind: Kind, role: Role) -> int:
        """Rows of that kind for that role."""
        return sum(shard.rows for shard in self.shards if (shard.kind, shard.role) == (kind, role))


def digest_of(shards: tuple[Shard, ...]) -> str:
    """Identity of the contents."""
    return hashlib.sha256("\n".join(f"{shard.file} {shard.sha256}" for shard in shards).encode()).hexdigest()


def read_manifest(folder: Path, *, verify: bool = True) -> Manifest:
    """The manifest of a prepared folder; with `verify` every shard's sha256 is checked, without reading rows.

    Errors: ArtifactError where there is none, it isn't one, or a shard is missing or differs.
    """
    path = folder / FILE_NAME
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ArtifactError(
            f"{folder} is no prepared data set ({error.strerror}: {path}); run `vca data` first"
        ) from None
    except ValidationError as error:
        what = error.errors()[0]
        raise ArtifactError(f"{path} is damaged ({what['loc']}: {what['msg']}); prepare the data again") from None
    if manifest.digest != digest_of(manifest.shards):
        raise ArtifactError(f"{path} is damaged (its digest doesn't fit its shards); prepare the data again")
    if verify:
        for shard in manifest.shards:
            verify_shard(folder, shard)
    return manifest


def verify_shard(folder: Path, shard: Shard) -> Path:
    """The shard's path, if its bytes are those the manifest names. Errors: ArtifactError."""
    path = folder / shard.file
    total = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                total.update(chunk)
    except OSError as error:
        raise ArtifactError(f"shard {path} can't be read ({error.strerror}); prepare the data again") from None
    if total.hexdigest() != shard.sha256:
        raise ArtifactError(f"shard {path} is corrupt (sha256 differs from the manifest); prepare the data again")
    return path
