"""The feedback store's tables. Two databases speak them: SQLite (embedded) and PostgreSQL 15 or later (cluster).

What people write is never stored in the clear: columns `*_enc` hold it encrypted with a key of that person's own
(`vca.feedback.vault`), so that without the key they are noise wherever they still lie. Ids that clients make
(dialogue, round, event) are the idempotency keys. Tables of what happened (`consent_event`, `feedback_event`) are
append-only: triggers refuse updates, and a target that its presentation did not show.

Pairs and training dialogues are derived, so they are no tables: `vca.feedback.snapshot` makes them from these ones, as
Parquet files (docs/decisions/feedback-store.md).
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB


class UtcTime(sa.types.TypeDecorator[datetime]):
    """A moment in UTC: timestamptz in PostgreSQL, ISO text of fixed width in SQLite, aware on both ways."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value}: a moment needs its time zone")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


Id = sa.Uuid(as_uuid=False)
Json = sa.JSON().with_variant(JSONB(), "postgresql")
metadata = sa.MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)


def _id(name: str, **more: Any) -> sa.Column[Any]:
    return sa.Column(name, Id, primary_key=True, **more)


def _of(name: str, table: str, **more: Any) -> sa.Column[Any]:
    """A reference whose rows go when what it refers to is erased."""
    return sa.Column(name, Id, sa.ForeignKey(table, ondelete="CASCADE"), **{"nullable": False, **more})


def _time(name: str, **more: Any) -> sa.Column[Any]:
    return sa.Column(name, UtcTime, **{"nullable": False, **more})


def _one_of(column: str, *allowed: str) -> sa.CheckConstraint:
    return sa.CheckConstraint(f"{column} IN ({', '.join(repr(one) for one in allowed)})", name=column)


# Who

subject = sa.Table(
    "subject",
    metadata,
    _id("subject_id"),
    # HMAC of the identity that was proven at sign-in
    sa.Column("auth_hmac", sa.String(64), unique=True),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("trust", sa.Float, nullable=False),
    # the key that this person's words are encrypted with, itself encrypted; goes with the row once erased
    sa.Column("dek_wrapped", sa.LargeBinary),
    _time("created_at"),
    _time("erased_at", nullable=True),
    _one_of("kind", "human", "synthetic", "import"),
)

consent_event = sa.Table(
    "consent_event",
    metadata,
    _id("id"),
    _of("subject_id", "subject.subject_id", index=True),
    sa.Column("scope", sa.String(16), nullable=False),
    sa.Column("granted", sa.Boolean, nullable=False),
    sa.Column("policy_version", sa.String(32), nullable=False),
    _time("at"),
    _one_of("scope", "serve", "store", "train", "publish"),
)

# What was drawn

dialogue = sa.Table(
    "dialogue",
    metadata,
    _id("dialogue_id"),
    _of("subject_id", "subject.subject_id", index=True),
    # the round that the person stands at; undo moves it, nothing is deleted
    sa.Column("head_round_id", Id),
    sa.Column("request_sha256", sa.String(64), nullable=False),
    sa.Column("locale", sa.String(35)),
    sa.Column("source", sa.String(64), nullable=False),
    sa.Column("client_version", sa.String(64)),
    sa.Column("status", sa.String(16), nullable=False),
    _time("created_at"),
    _time("closed_at", nullable=True),
    _one_of("status", "open", "accepted", "abandoned"),
)

round_ = sa.Table(
    "round",
    metadata,
    _id("round_id"),
    _of("dialogue_id", "dialogue.dialogue_id", index=True),
    _of("parent_round_id", "round.round_id", nullable=True, index=True),
    sa.Column("parent_candidate_id", Id),
    sa.Column("depth", sa.Integer, nullable=False),  # 1 for a dialogue's first round
    # JSON of `vca.feedback.dialogues.Words`
    sa.Column("words_enc", sa.LargeBinary, nullable=False),
    # keyed hash of the final prompt: the same prompt can be recognised, but not guessed
    sa.Column("prompt_hmac", sa.String(64), nullable=False),
    sa.Column("prompt_edited", sa.Boolean, nullable=False),
    sa.Column("strength", sa.Float),
    sa.Column("seed_mode", sa.String(8), nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("reason", sa.String(64)),
    sa.Column("request_sha256", sa.String(64), nullable=False),
    # how often its drawing was begun, and until when whoever draws it now has it
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("worker", sa.String(64)),
    _time("lease_until", nullable=True),
    _time("requested_at"),
    _time("started_at", nullable=True),
    _time("completed_at", nullable=True),
    sa.CheckConstraint("depth >= 1", name="depth"),
    _one_of("seed_mode", "fresh", "locked"),
    _one_of("status", "queued", "running", "done", "failed", "cancelled", "blocked"),
    sa.Index("ix_round_status_requested_at", "status", "requested_at"),
)

candidate = sa.Table(
    "candidate",
    metadata,
    _id("candidate_id"),
    _of("round_id", "round.round_id"),
    sa.Column("idx", sa.Integer, nullable=False),
    sa.Column("seed", sa.BigInteger, nullable=False),
    sa.Column("strength", sa.Float),  # share of the parent's picture that was drawn again; NULL in round 1
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("reason", sa.String(64)),
    sa.Column("image_sha256", sa.String(64), index=True),
    sa.Column("phash", sa.String(16)),  # 64 bits in hexadecimal digits
    sa.Column("width", sa.Integer),
    sa.Column("height", sa.Integer),
    sa.Column("release", sa.String(128)),
    sa.Column("safety", sa.String(8), nullable=False),
    sa.Column("reward", sa.Float),
    sa.Column("gen_ms", sa.Integer),
    sa.UniqueConstraint("round_id", "idx"),
    _one_of("state", "waiting", "ready", "blocked", "failed"),
    _one_of("safety", "pass", "fail", "unknown"),
)

# What people saw, and what they said of it

presentation = sa.Table(
    "presentation",
    metadata,
    _id("presentation_id"),
    _of("round_id", "round.round_id", index=True),
    sa.Column("slots", Json, nullable=False),  # candidate ids in the order shown
    sa.Column("shuffle_seed", sa.BigInteger, nullable=False),
    sa.Column("layout", sa.String(8), nullable=False),
    sa.Column("viewport", sa.String(16)),
    _time("shown_at"),
    _one_of("layout", "grid", "pair", "slider"),
)

feedback_event = sa.Table(
    "feedback_event",
    metadata,
    _id("event_id"),
    _of("subject_id", "subject.subject_id"),
    _of("dialogue_id", "dialogue.dialogue_id"),
    sa.Column("round_id", Id, nullable=False),  # the presentation's
    _of("presentation_id", "presentation.presentation_id", index=True),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("body", Json, nullable=False),
    sa.Column("text_enc", sa.LargeBinary),
    sa.Column("body_sha256", sa.String(64), nullable=False),
    sa.Column("target", Json, nullable=False),
    sa.Column("supersedes", Id),
    _time("client_at", nullable=True),
    _time("event_at"),
    _time("received_at"),
    sa.Column("dwell_ms", sa.Integer),
    sa.Column("input", sa.String(8), nullable=False),
    sa.Column("client_version", sa.String(64)),
    sa.Column("gates", Json, nullable=False),
    _one_of(
        "kind",
        "pick",
        "pair",
        "tie_good",
        "all_bad",
        "rate",
        "critique",
        "accept",
        "regenerate",
        "download",
        "report",
        "retract",
    ),
    _one_of("input", "mouse", "touch", "key", "api"),
    sa.Index("ix_feedback_event_dialogue_id_received_at", "dialogue_id", "received_at"),
    sa.Index("ix_feedback_event_subject_id_received_at", "subject_id", "received_at"),
)

quality_probe = sa.Table(
    "quality_probe",
    metadata,
    _id("probe_id"),
    _of("presentation_id", "presentation.presentation_id", unique=True),
    # the earlier presentation that is shown again, by this person or another
    _of("of_presentation_id", "presentation.presentation_id", nullable=True, index=True),
    sa.Column("kind", sa.String(24), nullable=False),
    sa.Column("expected", Id),  # gold: the candidate that must be picked
    _one_of("kind", "gold", "duplicate_swapped", "self_repeat"),
)

share_link = sa.Table(
    "share_link",
    metadata,
    sa.Column("token_sha256", sa.String(64), primary_key=True),
    _of("dialogue_id", "dialogue.dialogue_id", index=True),
    _time("created_at"),
    _time("expires_at"),
    _time("revoked_at", nullable=True),
)

# What became of it

dataset_snapshot = sa.Table(
    "dataset_snapshot",
    metadata,
    sa.Column("snapshot_id", sa.String(64), primary_key=True),
    _time("as_of"),
    sa.Column("rule_version", sa.String(32), nullable=False),
    sa.Column("erasure_epoch", sa.Integer, nullable=False),
    sa.Column("n_pairs", sa.Integer, nullable=False),
    sa.Column("n_dialogues", sa.Integer, nullable=False),
    sa.Column("manifest_sha256", sa.String(64), nullable=False),
    sa.Column("folder", sa.Text, nullable=False),
    _time("created_at"),
    # when somebody in it was erased, or took back what it was made of
    _time("invalid_at", nullable=True),
    sa.Column("invalid_reason", sa.String(64)),
)

snapshot_subject = sa.Table(
    "snapshot_subject",
    metadata,
    sa.Column("snapshot_id", sa.ForeignKey("dataset_snapshot.snapshot_id", ondelete="CASCADE"), primary_key=True),
    # no foreign key: that somebody was in a snapshot outlives the person's rows
    sa.Column("subject_id", Id, primary_key=True),
    sa.Column("n_pairs", sa.Integer, nullable=False),
)

training_run = sa.Table(
    "training_run",
    metadata,
    sa.Column("run_id", sa.String(128), primary_key=True),
    sa.Column("snapshot_id", sa.ForeignKey("dataset_snapshot.snapshot_id"), nullable=False),
    sa.Column("folder", sa.Text, nullable=False),
    _time("at"),
)

erasure_request = sa.Table(
    "erasure_request",
    metadata,
    _id("id"),
    sa.Column("subject_id", Id, nullable=False, unique=True),  # the tombstone: a random number, no person any more
    _time("requested_at"),
    _time("due_at"),
    sa.Column("receipts", Json, nullable=False),
    sa.Column("snapshots_hit", Json, nullable=False),
    sa.Column("releases_hit", Json, nullable=False),
    _time("completed_at", nullable=True),
)

outbox = sa.Table(
    "outbox",
    metadata,
    sa.Column("seq", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("topic", sa.String(32), nullable=False),
    sa.Column("key", Id, nullable=False),  # what order is kept by: the dialogue
    sa.Column("payload", Json, nullable=False),
    _time("created_at"),
)

store_state = sa.Table(
    "store_state",
    metadata,
    sa.Column("name", sa.String(32), primary_key=True),
    sa.Column("value", sa.BigInteger, nullable=False),
)
