"""What became of snapshots: which there are, which may be used, which runs trained on them."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import sqlalchemy as sa

from vca.errors import ArtifactError
from vca.feedback.errors import NotFound
from vca.feedback.schema import (
    dataset_snapshot,
    erasure_request,
    feedback_event,
    snapshot_subject,
    training_run,
)
from vca.feedback.snapshot_files import Manifest, read_manifest
from vca.feedback.store import Store, erasure_epoch, insert_once, now

RETRACTED = "retracted"


@dataclass(frozen=True, kw_only=True)
class Listed:
    """people: all who are in it, with usable pairs or without. invalid: why it should be taken again, if so."""

    snapshot_id: str
    as_of: datetime
    rule_version: str
    pairs: int
    dialogues: int
    people: int
    runs: tuple[str, ...]
    invalid: str | None
    folder: Path


def listed(store: Store) -> list[Listed]:
    """Newest first. Raises StoreDown."""
    one, counted = dataset_snapshot.c, sa.select(sa.func.count()).select_from(snapshot_subject)
    people = counted.where(snapshot_subject.c.snapshot_id == one.snapshot_id).scalar_subquery()
    runs: dict[str, list[str]] = defaultdict(list)
    with store.database.reading() as connection:
        rows = connection.execute(
            sa.select(dataset_snapshot, people.label("people")).order_by(one.as_of.desc(), one.snapshot_id)
        ).all()
        for run in connection.execute(sa.select(training_run).order_by(training_run.c.at)):
            runs[run.snapshot_id].append(run.run_id)
    return [
        Listed(
            snapshot_id=row.snapshot_id,
            as_of=row.as_of,
            rule_version=row.rule_version,
            pairs=row.n_pairs,
            dialogues=row.n_dialogues,
            people=row.people,
            runs=tuple(runs[row.snapshot_id]),
            invalid=row.invalid_reason,
            folder=Path(row.folder),
        )
        for row in rows
    ]


def load(store: Store, snapshot_id: str) -> tuple[Path, Manifest]:
    """A registered snapshot's folder and manifest, its files verified.

    Raises NotFound; ArtifactError where a file is missing or changed, or somebody in it was erased since; StoreDown.
    """
    with store.database.reading() as connection:
        row = connection.execute(
            sa.select(dataset_snapshot).where(dataset_snapshot.c.snapshot_id == snapshot_id)
        ).first()
        if row is None:
            raise NotFound(f"no snapshot {snapshot_id}; `vca feedback snapshots` lists them")
        erased = row.invalid_at is not None and row.invalid_reason != RETRACTED
        if not erased and erasure_epoch(connection) > row.erasure_epoch:
            inside = sa.select(snapshot_subject.c.subject_id).where(snapshot_subject.c.snapshot_id == snapshot_id)
            erased = connection.execute(
                sa.select(sa.exists().where(erasure_request.c.subject_id.in_(inside)))
            ).scalar_one()
    if erased:
        raise ArtifactError(
            f"snapshot {snapshot_id} held somebody who was erased since; take another: `vca feedback snapshot`"
        )
    folder = Path(row.folder)
    return folder, read_manifest(folder)


def mark_retracted(store: Store) -> list[str]:
    """Mark the snapshots with a pair whose choice was taken back after they were taken; they still load. Their ids."""
    later, earlier = feedback_event.alias("later"), feedback_event.alias("earlier")
    statement = (
        sa.select(dataset_snapshot.c.snapshot_id, dataset_snapshot.c.folder, earlier.c.event_id)
        .select_from(later.join(earlier, earlier.c.event_id == later.c.supersedes))
        .join(
            dataset_snapshot,
            sa.and_(later.c.received_at > dataset_snapshot.c.as_of, earlier.c.received_at <= dataset_snapshot.c.as_of),
        )
        .where(later.c.kind == "retract", dataset_snapshot.c.invalid_at.is_(None))
    )
    gone: dict[tuple[str, str], list[str]] = defaultdict(list)
    with store.database.reading() as connection:
        if not store.database.sqlite:  # looks through all events
            connection.execute(sa.text("SET LOCAL statement_timeout = 0"))
        for snapshot_id, folder, event_id in connection.execute(statement):
            gone[snapshot_id, folder].append(event_id)
    marked = sorted(snapshot_id for (snapshot_id, folder), events in gone.items() if _holds(Path(folder), events))
    with store.database.writing() as connection:
        connection.execute(
            sa.update(dataset_snapshot)
            .where(dataset_snapshot.c.snapshot_id.in_(marked))
            .values(invalid_at=now(), invalid_reason=RETRACTED)
        )
    return marked


def _holds(folder: Path, events: list[str]) -> bool:
    """Whether a pair to train on came from one of these events."""
    wanted = pc.field("source_event_id").isin(events) & pc.field("excluded_reason").is_null()
    return any(
        pq.read_table(file, columns=["source_event_id"], filters=wanted).num_rows
        for file in sorted((folder / "pairs").glob("*.parquet"))
    )


def record_run(store: Store, *, run_id: str, snapshot_id: str, folder: Path) -> str | None:
    """Write down that a run trained on a snapshot, so that an erasure finds it; why that is invalid by now, if so."""
    values = {"run_id": run_id, "snapshot_id": snapshot_id, "folder": str(folder), "at": now()}
    with store.database.writing() as connection:
        insert_once(connection, training_run, values)
        reason = sa.select(dataset_snapshot.c.invalid_reason).where(dataset_snapshot.c.snapshot_id == snapshot_id)
        invalid: str | None = connection.execute(reason).scalar_one()
    return invalid
