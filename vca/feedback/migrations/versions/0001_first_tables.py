"""The first tables.

Revision ID: 0001
Revises:
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from vca.feedback.schema import Id, Json, UtcTime

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

APPEND_ONLY = ("consent_event", "feedback_event")


def upgrade() -> None:
    op.create_table(
        "dataset_snapshot",
        sa.Column("snapshot_id", sa.String(length=64), nullable=False),
        sa.Column("as_of", UtcTime(), nullable=False),
        sa.Column("rule_version", sa.String(length=32), nullable=False),
        sa.Column("erasure_epoch", sa.Integer(), nullable=False),
        sa.Column("n_pairs", sa.Integer(), nullable=False),
        sa.Column("n_dialogues", sa.Integer(), nullable=False),
        sa.Column("manifest_sha256", sa.String(length=64), nullable=False),
        sa.Column("folder", sa.Text(), nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("invalid_at", UtcTime(), nullable=True),
        sa.Column("invalid_reason", sa.String(length=64), nullable=True),
        sa.PrimaryKeyConstraint("snapshot_id", name=op.f("pk_dataset_snapshot")),
    )
    op.create_table(
        "erasure_request",
        sa.Column("id", Id, nullable=False),
        sa.Column("subject_id", Id, nullable=False),
        sa.Column("requested_at", UtcTime(), nullable=False),
        sa.Column("due_at", UtcTime(), nullable=False),
        sa.Column("receipts", Json, nullable=False),
        sa.Column("snapshots_hit", Json, nullable=False),
        sa.Column("releases_hit", Json, nullable=False),
        sa.Column("completed_at", UtcTime(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_erasure_request")),
        sa.UniqueConstraint("subject_id", name=op.f("uq_erasure_request_subject_id")),
    )
    op.create_table(
        "outbox",
        sa.Column("seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("topic", sa.String(length=32), nullable=False),
        sa.Column("key", Id, nullable=False),
        sa.Column("payload", Json, nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_outbox")),
    )
    op.create_table(
        "store_state",
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_store_state")),
    )
    op.create_table(
        "subject",
        sa.Column("subject_id", Id, nullable=False),
        sa.Column("auth_hmac", sa.String(length=64), nullable=True),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("trust", sa.Float(), nullable=False),
        sa.Column("dek_wrapped", sa.LargeBinary(), nullable=True),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("erased_at", UtcTime(), nullable=True),
        sa.CheckConstraint("kind IN ('human', 'synthetic', 'import')", name=op.f("ck_subject_kind")),
        sa.PrimaryKeyConstraint("subject_id", name=op.f("pk_subject")),
        sa.UniqueConstraint("auth_hmac", name=op.f("uq_subject_auth_hmac")),
    )
    op.create_table(
        "consent_event",
        sa.Column("id", Id, nullable=False),
        sa.Column("subject_id", Id, nullable=False),
        sa.Column("scope", sa.String(length=16), nullable=False),
        sa.Column("granted", sa.Boolean(), nullable=False),
        sa.Column("policy_version", sa.String(length=32), nullable=False),
        sa.Column("at", UtcTime(), nullable=False),
        sa.CheckConstraint("scope IN ('serve', 'store', 'train', 'publish')", name=op.f("ck_consent_event_scope")),
        sa.ForeignKeyConstraint(
            ["subject_id"], ["subject.subject_id"], name=op.f("fk_consent_event_subject_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_consent_event")),
    )
    op.create_index(op.f("ix_consent_event_subject_id"), "consent_event", ["subject_id"], unique=False)
    op.create_table(
        "dialogue",
        sa.Column("dialogue_id", Id, nullable=False),
        sa.Column("subject_id", Id, nullable=False),
        sa.Column("head_round_id", Id, nullable=True),
        sa.Column("request_sha256", sa.String(length=64), nullable=False),
        sa.Column("locale", sa.String(length=35), nullable=True),
        sa.Column("source", sa.String(length=64), nullable=False),
        sa.Column("client_version", sa.String(length=64), nullable=True),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("closed_at", UtcTime(), nullable=True),
        sa.CheckConstraint("status IN ('open', 'accepted', 'abandoned')", name=op.f("ck_dialogue_status")),
        sa.ForeignKeyConstraint(
            ["subject_id"], ["subject.subject_id"], name=op.f("fk_dialogue_subject_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("dialogue_id", name=op.f("pk_dialogue")),
    )
    op.create_index(op.f("ix_dialogue_subject_id"), "dialogue", ["subject_id"], unique=False)
    op.create_table(
        "snapshot_subject",
        sa.Column("snapshot_id", sa.String(length=64), nullable=False),
        sa.Column("subject_id", Id, nullable=False),
        sa.Column("n_pairs", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["snapshot_id"],
            ["dataset_snapshot.snapshot_id"],
            name=op.f("fk_snapshot_subject_snapshot_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("snapshot_id", "subject_id", name=op.f("pk_snapshot_subject")),
    )
    op.create_table(
        "training_run",
        sa.Column("run_id", sa.String(length=128), nullable=False),
        sa.Column("snapshot_id", sa.String(length=64), nullable=False),
        sa.Column("folder", sa.Text(), nullable=False),
        sa.Column("at", UtcTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["snapshot_id"], ["dataset_snapshot.snapshot_id"], name=op.f("fk_training_run_snapshot_id")
        ),
        sa.PrimaryKeyConstraint("run_id", name=op.f("pk_training_run")),
    )
    op.create_table(
        "round",
        sa.Column("round_id", Id, nullable=False),
        sa.Column("dialogue_id", Id, nullable=False),
        sa.Column("parent_round_id", Id, nullable=True),
        sa.Column("parent_candidate_id", Id, nullable=True),
        sa.Column("depth", sa.Integer(), nullable=False),
        sa.Column("words_enc", sa.LargeBinary(), nullable=False),
        sa.Column("prompt_hmac", sa.String(length=64), nullable=False),
        sa.Column("prompt_edited", sa.Boolean(), nullable=False),
        sa.Column("strength", sa.Float(), nullable=True),
        sa.Column("seed_mode", sa.String(length=8), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.String(length=64), nullable=True),
        sa.Column("request_sha256", sa.String(length=64), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("worker", sa.String(length=64), nullable=True),
        sa.Column("lease_until", UtcTime(), nullable=True),
        sa.Column("requested_at", UtcTime(), nullable=False),
        sa.Column("started_at", UtcTime(), nullable=True),
        sa.Column("completed_at", UtcTime(), nullable=True),
        sa.CheckConstraint("seed_mode IN ('fresh', 'locked')", name=op.f("ck_round_seed_mode")),
        sa.CheckConstraint(
            "status IN ('queued', 'running', 'done', 'failed', 'cancelled', 'blocked')", name=op.f("ck_round_status")
        ),
        sa.CheckConstraint("depth >= 1", name=op.f("ck_round_depth")),
        sa.ForeignKeyConstraint(
            ["dialogue_id"], ["dialogue.dialogue_id"], name=op.f("fk_round_dialogue_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["parent_round_id"], ["round.round_id"], name=op.f("fk_round_parent_round_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("round_id", name=op.f("pk_round")),
    )
    op.create_index(op.f("ix_round_dialogue_id"), "round", ["dialogue_id"], unique=False)
    op.create_index(op.f("ix_round_parent_round_id"), "round", ["parent_round_id"], unique=False)
    op.create_index("ix_round_status_requested_at", "round", ["status", "requested_at"], unique=False)
    op.create_table(
        "share_link",
        sa.Column("token_sha256", sa.String(length=64), nullable=False),
        sa.Column("dialogue_id", Id, nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("expires_at", UtcTime(), nullable=False),
        sa.Column("revoked_at", UtcTime(), nullable=True),
        sa.ForeignKeyConstraint(
            ["dialogue_id"], ["dialogue.dialogue_id"], name=op.f("fk_share_link_dialogue_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("token_sha256", name=op.f("pk_share_link")),
    )
    op.create_index(op.f("ix_share_link_dialogue_id"), "share_link", ["dialogue_id"], unique=False)
    op.create_table(
        "candidate",
        sa.Column("candidate_id", Id, nullable=False),
        sa.Column("round_id", Id, nullable=False),
        sa.Column("idx", sa.Integer(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("strength", sa.Float(), nullable=True),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.String(length=64), nullable=True),
        sa.Column("image_sha256", sa.String(length=64), nullable=True),
        sa.Column("phash", sa.String(length=16), nullable=True),
        sa.Column("width", sa.Integer(), nullable=True),
        sa.Column("height", sa.Integer(), nullable=True),
        sa.Column("release", sa.String(length=128), nullable=True),
        sa.Column("safety", sa.String(length=8), nullable=False),
        sa.Column("reward", sa.Float(), nullable=True),
        sa.Column("gen_ms", sa.Integer(), nullable=True),
        sa.CheckConstraint("safety IN ('pass', 'fail', 'unknown')", name=op.f("ck_candidate_safety")),
        sa.CheckConstraint("state IN ('waiting', 'ready', 'blocked', 'failed')", name=op.f("ck_candidate_state")),
        sa.ForeignKeyConstraint(
            ["round_id"], ["round.round_id"], name=op.f("fk_candidate_round_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("candidate_id", name=op.f("pk_candidate")),
        sa.UniqueConstraint("round_id", "idx", name=op.f("uq_candidate_round_id_idx")),
    )
    op.create_index(op.f("ix_candidate_image_sha256"), "candidate", ["image_sha256"], unique=False)
    op.create_table(
        "presentation",
        sa.Column("presentation_id", Id, nullable=False),
        sa.Column("round_id", Id, nullable=False),
        sa.Column("slots", Json, nullable=False),
        sa.Column("shuffle_seed", sa.BigInteger(), nullable=False),
        sa.Column("layout", sa.String(length=8), nullable=False),
        sa.Column("viewport", sa.String(length=16), nullable=True),
        sa.Column("shown_at", UtcTime(), nullable=False),
        sa.CheckConstraint("layout IN ('grid', 'pair', 'slider')", name=op.f("ck_presentation_layout")),
        sa.ForeignKeyConstraint(
            ["round_id"], ["round.round_id"], name=op.f("fk_presentation_round_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("presentation_id", name=op.f("pk_presentation")),
    )
    op.create_index(op.f("ix_presentation_round_id"), "presentation", ["round_id"], unique=False)
    op.create_table(
        "feedback_event",
        sa.Column("event_id", Id, nullable=False),
        sa.Column("subject_id", Id, nullable=False),
        sa.Column("dialogue_id", Id, nullable=False),
        sa.Column("round_id", Id, nullable=False),
        sa.Column("presentation_id", Id, nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("body", Json, nullable=False),
        sa.Column("text_enc", sa.LargeBinary(), nullable=True),
        sa.Column("body_sha256", sa.String(length=64), nullable=False),
        sa.Column("target", Json, nullable=False),
        sa.Column("supersedes", Id, nullable=True),
        sa.Column("client_at", UtcTime(), nullable=True),
        sa.Column("event_at", UtcTime(), nullable=False),
        sa.Column("received_at", UtcTime(), nullable=False),
        sa.Column("dwell_ms", sa.Integer(), nullable=True),
        sa.Column("input", sa.String(length=8), nullable=False),
        sa.Column("client_version", sa.String(length=64), nullable=True),
        sa.Column("gates", Json, nullable=False),
        sa.CheckConstraint("input IN ('mouse', 'touch', 'key', 'api')", name=op.f("ck_feedback_event_input")),
        sa.CheckConstraint(
            "kind IN ('pick', 'pair', 'tie_good', 'all_bad', 'rate', 'critique', 'accept', 'regenerate', 'download', "
            "'report', 'retract')",
            name=op.f("ck_feedback_event_kind"),
        ),
        sa.ForeignKeyConstraint(
            ["dialogue_id"], ["dialogue.dialogue_id"], name=op.f("fk_feedback_event_dialogue_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["presentation_id"],
            ["presentation.presentation_id"],
            name=op.f("fk_feedback_event_presentation_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["subject_id"], ["subject.subject_id"], name=op.f("fk_feedback_event_subject_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("event_id", name=op.f("pk_feedback_event")),
    )
    op.create_index(
        "ix_feedback_event_dialogue_id_received_at", "feedback_event", ["dialogue_id", "received_at"], unique=False
    )
    op.create_index(op.f("ix_feedback_event_presentation_id"), "feedback_event", ["presentation_id"], unique=False)
    op.create_index(
        "ix_feedback_event_subject_id_received_at", "feedback_event", ["subject_id", "received_at"], unique=False
    )
    op.create_table(
        "quality_probe",
        sa.Column("probe_id", Id, nullable=False),
        sa.Column("presentation_id", Id, nullable=False),
        sa.Column("of_presentation_id", Id, nullable=True),
        sa.Column("kind", sa.String(length=24), nullable=False),
        sa.Column("expected", Id, nullable=True),
        sa.CheckConstraint("kind IN ('gold', 'duplicate_swapped', 'self_repeat')", name=op.f("ck_quality_probe_kind")),
        sa.ForeignKeyConstraint(
            ["of_presentation_id"],
            ["presentation.presentation_id"],
            name=op.f("fk_quality_probe_of_presentation_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["presentation_id"],
            ["presentation.presentation_id"],
            name=op.f("fk_quality_probe_presentation_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("probe_id", name=op.f("pk_quality_probe")),
        sa.UniqueConstraint("presentation_id", name=op.f("uq_quality_probe_presentation_id")),
    )
    op.create_index(op.f("ix_quality_probe_of_presentation_id"), "quality_probe", ["of_presentation_id"], unique=False)

    op.execute("INSERT INTO store_state (name, value) VALUES ('erasure_epoch', 0)")
    if op.get_bind().dialect.name == "sqlite":
        _sqlite_triggers()
    else:
        _postgresql_triggers()


def _sqlite_triggers() -> None:
    for table in APPEND_ONLY:
        op.execute(
            f"CREATE TRIGGER {table}_append_only BEFORE UPDATE ON {table} "
            f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
        )
    op.execute(
        """
        CREATE TRIGGER feedback_event_shown BEFORE INSERT ON feedback_event
        WHEN EXISTS (
            SELECT 1 FROM json_each(NEW.target) AS wanted
            WHERE wanted.value NOT IN (
                SELECT shown.value FROM presentation, json_each(presentation.slots) AS shown
                WHERE presentation.presentation_id = NEW.presentation_id
            )
        )
        BEGIN SELECT RAISE(ABORT, 'target was not shown'); END
        """
    )


def _postgresql_triggers() -> None:
    op.execute(
        """
        CREATE FUNCTION vca_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION '% is append-only', TG_TABLE_NAME USING ERRCODE = 'restrict_violation';
        END $$
        """
    )
    for table in APPEND_ONLY:
        op.execute(
            f"CREATE TRIGGER {table}_append_only BEFORE UPDATE ON {table} "
            "FOR EACH ROW EXECUTE FUNCTION vca_append_only()"
        )
    op.execute(
        """
        CREATE FUNCTION vca_target_shown() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF NOT NEW.target <@ (SELECT slots FROM presentation WHERE presentation_id = NEW.presentation_id) THEN
                RAISE EXCEPTION 'target was not shown' USING ERRCODE = 'check_violation';
            END IF;
            RETURN NEW;
        END $$
        """
    )
    op.execute(
        "CREATE TRIGGER feedback_event_shown BEFORE INSERT ON feedback_event "
        "FOR EACH ROW EXECUTE FUNCTION vca_target_shown()"
    )
