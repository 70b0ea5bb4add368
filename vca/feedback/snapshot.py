"""Snapshots: what people said up to a moment, as training data that never changes again.

The same `as_of` gives the same bytes, from any copy of the store, as long as nobody withdrew their consent or was
erased, no operator lowered a person's trust and no picture was lost: these count as they are now, whatever the moment.
A snapshot's id comes from what is in it, not from its `as_of`, so that with nothing new it is the same snapshot.

    pass 1    the store, dialogue by dialogue: pairs and dialogues put aside, events written, choices tallied
    between   what needs everybody: trust from probes, bursts, clusters; then the cap per person
    pass 2    what was put aside, with the last reasons filled in: the Parquet files
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa

from vca.errors import ArtifactError
from vca.feedback import quality
from vca.feedback.judging import COLUMNS, Cap, Judge, usable
from vca.feedback.quality import Tally
from vca.feedback.reading import Reader, moment, uncollected
from vca.feedback.rules import RULE_VERSION, Pair, Settled, Told, Way, pairs, settle, trust, way_of
from vca.feedback.schema import dataset_snapshot, snapshot_subject, store_state
from vca.feedback.sheets import Parts, Spool, batch_of
from vca.feedback.snapshot_files import (
    DIALOGUES,
    EVENTS,
    FILE_NAME,
    PAIRS,
    File,
    Kind,
    Manifest,
    digest_of,
    read_manifest,
    sha256_of,
    write_manifest,
)
from vca.feedback.snapshots import mark_retracted
from vca.feedback.store import Store, erasure_epoch, insert_once, now
from vca.progress import Progress
from vca.store import disk_errors

BUILDING = ".building-"
WORDS = {"pairs": ("prompt", "image_chosen", "image_rejected"), "dialogues": ("steps",)}


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """new: whether it had to be written; else an earlier one holds the same."""

    snapshot_id: str
    folder: Path
    manifest: Manifest
    new: bool


def take(store: Store, *, progress: Progress, as_of: datetime | None = None) -> Snapshot:
    """Write a snapshot of what was said up to `as_of` (none: as late as can be), or find that there is one like it.

    Raises SettingsError for an `as_of` that is too late, StoreDown, ResourceError where the disk is full, ArtifactError
    where somebody was erased meanwhile; then nothing is left of it.
    """
    at = moment(as_of)
    place = store.settings.snapshots
    with disk_errors(place), _alone(place), uncollected():
        clean(place)
        building = place / f"{BUILDING}{secrets.token_hex(8)}"
        building.mkdir()
        try:
            build = _Build(store, at=at, folder=building, progress=progress)
            manifest = build.run()
            snapshot = _register(store, building, manifest, build.people)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    mark_retracted(store)
    return snapshot


def clean(place: Path) -> None:
    """Remove what killed attempts left: it holds people's words. Only where no snapshot is being taken."""
    for left in place.glob(f"{BUILDING}*"):
        shutil.rmtree(left)


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """One process at a time takes a snapshot; the kernel drops the lock when its holder dies."""
    place.mkdir(parents=True, exist_ok=True)
    with (place / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@dataclass(kw_only=True)
class _Counts:
    """What the manifest counts of one kind of row."""

    usable: Counter[str] = field(default_factory=Counter)
    excluded: Counter[str] = field(default_factory=Counter)
    people: Counter[str] = field(default_factory=Counter)

    def add(self, batch: pa.RecordBatch, *, by: Sequence[str]) -> None:
        keys = [*by, "subject_id", "excluded_reason"]
        for row in pa.table(batch).group_by(keys).aggregate([([], "count_all")]).to_pylist():
            if row["excluded_reason"] is not None:
                self.excluded[row["excluded_reason"]] += row["count_all"]
            else:
                self.usable["/".join(row[key] for key in by)] += row["count_all"]
                self.people[row["subject_id"]] += row["count_all"]


class _Build:
    """people: everybody who is in it, with their usable pairs."""

    def __init__(self, store: Store, *, at: datetime, folder: Path, progress: Progress) -> None:
        self.store, self.at, self.folder, self.progress = store, at, folder, progress
        self.rules = store.settings.rules
        self.people: Counter[str] = Counter()
        self.newest, self.picture_bytes = "", 0
        self.scratch = folder / "scratch"
        self.scratch.mkdir()
        self.pairs = Spool(self.scratch / "pairs.arrow", PAIRS)
        self.dialogues = Spool(self.scratch / "dialogues.arrow", DIALOGUES)
        self.events = Parts(folder, "events")
        self.choices = self.scratch / "choices.parquet"
        self.tally = Tally(self.choices)

    def run(self) -> Manifest:
        with self.store.database.reading() as connection:
            epoch = erasure_epoch(connection)
            reader = Reader(self.store, connection, as_of=self.at, quarantine_h=self.rules.quarantine_h)
            with self.progress.task("feedback: dialogues", reader.total(), "dialogues") as task:
                for batch in reader.batches():
                    self._derive([(told, settle(told)) for told in batch])
                    task.advance(len(batch))
        self.pairs.close()
        self.dialogues.close()
        self.tally.close()
        judge = Judge(
            untrusted={
                name
                for name, who in reader.people.items()
                if trust(*self.tally.probed.get(name, (0, 0)), stored=who.trust) < self.rules.min_trust
            },
            bursts=quality.bursts(self.choices, events=self.rules.burst_events),
            clusters=quality.clusters(self.choices, subjects=self.rules.cluster_subjects),
        )
        counted: dict[Kind, _Counts] = {}
        files = self.events.close()
        with self.progress.task("feedback: rows", self.pairs.rows + self.dialogues.rows, "rows") as task:
            work: list[tuple[Kind, Spool, tuple[str, ...]]] = [
                ("pairs", self.pairs, ("rule", "split")),
                ("dialogues", self.dialogues, ("split",)),
            ]
            for kind, spool, by in work:
                cap = Cap(
                    usable(map(judge.judged, spool.read(COLUMNS))),
                    share=self.rules.subject_share,
                    floor=self.rules.subject_floor,
                    free={name for name, who in reader.people.items() if who.imported},
                )
                parts, counts = Parts(self.folder, kind), _Counts()
                for batch in spool.read():
                    batch = cap.judged(judge.judged(batch))
                    counts.add(batch, by=by)
                    parts.add(_without_words(batch, WORDS[kind]))
                    task.advance(batch.num_rows)
                files += parts.close()
                counted[kind] = counts
        shutil.rmtree(self.scratch)
        self.people.update(counted["pairs"].people)
        return self._manifest(epoch, tuple(sorted(files, key=lambda file: file.name)), counted)

    def _derive(self, batch: list[tuple[Told, Settled]]) -> None:
        """One batch of dialogues: what people without consent did makes rows without words, and no others."""
        willing = [(told, settled) for told, settled in batch if told.consent]
        wanted = {
            one.image_sha256
            for told, settled in willing
            if settled.choices
            for one in told.candidates.values()
            if one.image_sha256
        }
        sizes = self.store.objects.sizes(wanted)
        self.picture_bytes += sum(sizes.values())
        present = sizes.keys()
        made = [pair for told, settled in batch for pair in pairs(told, settled, rules=self.rules, present=present)]
        ways = [way for told, settled in batch if (way := way_of(told, settled, present=present)) is not None]
        side: dict[str, str] = {}
        owned: list[Pair | Way] = [*made, *ways]
        for row in owned:
            self.people[row.subject_id] += 0
            if side.setdefault(row.dialogue_id, row.split) != row.split:
                raise ArtifactError(f"dialogue {row.dialogue_id} is in two splits: a fault in vca.feedback.rules")
        self.tally.add(willing)
        facts = [fact for told, _ in willing for fact in _facts(told)]
        for told, _ in willing:
            if told.events:
                self.people[told.subject_id] += 0
                self.newest = max(self.newest, told.events[-1].received_at)
        for rows, schema, to in (
            (made, PAIRS, self.pairs),
            (ways, DIALOGUES, self.dialogues),
            (facts, EVENTS, self.events),
        ):
            to.add(batch_of(rows, schema))

    def _manifest(self, epoch: int, files: tuple[File, ...], counted: dict[Kind, _Counts]) -> Manifest:
        digest = digest_of(files)
        found, ways = counted["pairs"], counted["dialogues"]
        manifest = Manifest(
            snapshot_id=sha256(f"{digest} {RULE_VERSION} {epoch}".encode()).hexdigest()[:20],
            as_of=self.at,
            newest=datetime.fromisoformat(f"{self.newest}+00:00") if self.newest else None,
            rule_version=RULE_VERSION,
            rules=self.rules.model_dump(mode="json"),
            erasure_epoch=epoch,
            people=len(found.people),
            pairs=_sorted(found.usable),
            excluded_pairs=_sorted(found.excluded),
            dialogues=_sorted(ways.usable),
            excluded_dialogues=_sorted(ways.excluded),
            events=sum(file.rows for file in files if file.name.startswith("events/")),
            negatives=self.tally.negatives,
            unknown_gates=self.tally.gates["unknown"],
            slots=self.tally.slots(),
            picture_bytes=self.picture_bytes,
            files=files,
            digest=digest,
        )
        write_manifest(self.folder, manifest)
        return manifest


def _facts(told: Told) -> Iterator[tuple[Any, ...]]:
    """Rows of `EVENTS`."""
    for event in told.events:
        shown = told.shown[event.presentation_id]
        one = told.rounds[shown.round_id]
        first = event.target[0] if event.target else None
        verdicts = list(event.gates.values())
        yield (
            event.event_id,
            told.subject_id,
            told.dialogue_id,
            one.round_id,
            shown.presentation_id,
            one.depth,
            one.prompt_hmac,
            event.kind,
            first,
            len(event.target),
            None if first is None else shown.slots.index(first),
            len(shown.slots),
            shown.probe,
            event.supersedes,
            *(event.body.get(axis) if event.kind == "rate" else None for axis in quality.AXES),
            verdicts.count("fail"),
            verdicts.count("unknown"),
            event.input,
            event.dwell_ms,
            shown.shown_at,
            event.event_at,
            event.received_at,
        )


def _without_words(batch: pa.RecordBatch, columns: Sequence[str]) -> pa.RecordBatch:
    """Rows that nothing is trained on keep neither words nor pictures."""
    excluded = pc.is_valid(batch["excluded_reason"])
    if not pc.any(excluded).as_py():
        return batch
    for name in columns:
        place = batch.schema.get_field_index(name)
        kept = pc.if_else(excluded, pa.scalar(None, batch.schema.field(place).type), batch[name])
        batch = batch.set_column(place, batch.schema.field(place), kept)
    return batch


def _sorted(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items()))


def _register(store: Store, building: Path, manifest: Manifest, people: Counter[str]) -> Snapshot:
    """Put the finished folder in its place, and write down who is in it: both, or neither.

    Whoever erases somebody counts the epoch up first, and waits here for the row to be free: they find this snapshot
    registered, or this finds their epoch and gives up.
    """
    folder = store.settings.snapshots.resolve() / manifest.snapshot_id  # whoever erases may stand elsewhere
    with store.database.writing() as connection:
        epoch = connection.execute(
            sa.select(store_state.c.value).where(store_state.c.name == "erasure_epoch").with_for_update()
        ).scalar_one()
        if epoch != manifest.erasure_epoch:
            raise ArtifactError(
                "somebody was erased while the snapshot was taken; nothing of it is kept, take it again"
            )
        known = _known(folder)
        if known is None:
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(building, folder)
        manifest = known or manifest
        values = {
            "snapshot_id": manifest.snapshot_id,
            "as_of": manifest.as_of,
            "rule_version": manifest.rule_version,
            "erasure_epoch": manifest.erasure_epoch,
            "n_pairs": manifest.usable,
            "n_dialogues": sum(manifest.dialogues.values()),
            "manifest_sha256": sha256_of(folder / FILE_NAME),
            "folder": str(folder),
            "created_at": now(),
        }
        if not insert_once(connection, dataset_snapshot, values):
            this = dataset_snapshot.c.snapshot_id == manifest.snapshot_id
            connection.execute(sa.update(dataset_snapshot).where(this).values(values))
        else:
            rows = [
                {"snapshot_id": manifest.snapshot_id, "subject_id": name, "n_pairs": n} for name, n in people.items()
            ]
            for start in range(0, len(rows), 1000):
                connection.execute(sa.insert(snapshot_subject), rows[start : start + 1000])
    return Snapshot(snapshot_id=manifest.snapshot_id, folder=folder, manifest=manifest, new=known is None)


def _known(folder: Path) -> Manifest | None:
    """The snapshot that lies there already, whole."""
    try:
        return read_manifest(folder)
    except ArtifactError:
        return None
