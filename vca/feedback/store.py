"""The feedback store: its database, its keys, its pictures, and the people in it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Literal

import sqlalchemy as sa
from uuid6 import uuid7

from vca.feedback.database import Database
from vca.feedback.errors import NotFound
from vca.feedback.objects import Objects
from vca.feedback.schema import consent_event, store_state, subject
from vca.feedback.settings import FeedbackSettings
from vca.feedback.vault import PersonKey, Vault

Scope = Literal["serve", "store", "train", "publish"]
Kind = Literal["human", "synthetic", "import"]


@dataclass(frozen=True, kw_only=True)
class Person:
    """Somebody whose identity was proven, and the key to their words."""

    subject_id: str
    key: PersonKey = field(repr=False)


class Store:
    """Everything about feedback starts here; the modules beside it take one. Thread-safe."""

    def __init__(self, settings: FeedbackSettings, *, database: Database, vault: Vault, objects: Objects) -> None:
        self.settings, self.database, self.vault, self.objects = settings, database, vault, objects

    @classmethod
    def open(cls, settings: FeedbackSettings, *, pool: int = 8) -> Store:
        """Open the store. An embedded one is made, or brought to this version; a PostgreSQL one has to be at it.

        Raises StoreDown; ArtifactError where the tables are of another version or the master key is missing.
        """
        database = Database(settings.url, pool=pool)
        if database.sqlite:
            database.migrate()
        else:
            database.check_version()
        with database.reading() as connection:
            new = connection.execute(sa.select(subject.c.subject_id).limit(1)).first() is None
        vault = Vault.load(settings.key, create=new)
        return cls(settings, database=database, vault=vault, objects=Objects(settings.objects))

    def close(self) -> None:
        self.database.close()

    def prompt_hmac(self, prompt: str) -> str:
        """A keyed hash that tells which prompts are the same, but for case and spaces; nobody can guess them by it."""
        return self.vault.hmac(f"prompt {' '.join(prompt.split()).casefold()}")

    # People

    def person(self, identity: str, *, kind: Kind = "human") -> Person:
        """The person who proved to be `identity` (issuer and subject of a token, "local", a name of an import).

        They are made where they are new. Somebody who was erased and comes back is a new person.
        """
        auth = self.vault.hmac(f"identity {identity}")
        with self.database.reading() as connection:
            row = connection.execute(_who(subject.c.auth_hmac == auth)).first()
        if row is None:
            made = new_id()
            values = {
                "subject_id": made,
                "auth_hmac": auth,
                "kind": kind,
                "trust": 1.0,
                "dek_wrapped": self.vault.new_person(made),
                "created_at": now(),
            }
            with self.database.writing() as connection:
                insert_once(connection, subject, values)
                row = connection.execute(_who(subject.c.auth_hmac == auth)).one()
        return self.opened(row.subject_id, row.dek_wrapped)

    def known(self, subject_id: str) -> Person:
        """Raises NotFound where there is none, or they were erased."""
        with self.database.reading() as connection:
            row = connection.execute(_who(subject.c.subject_id == subject_id)).first()
        if row is None or row.dek_wrapped is None:
            raise NotFound(f"no person {subject_id}")
        return self.opened(row.subject_id, row.dek_wrapped)

    def opened(self, subject_id: str, dek_wrapped: bytes) -> Person:
        return Person(subject_id=subject_id, key=self.vault.person(subject_id, dek_wrapped))

    # Consent

    def consent(self, person: Person) -> dict[Scope, bool]:
        """What they agree to now. Nothing, until they said so."""
        last: dict[Scope, bool] = dict.fromkeys(("serve", "store", "train", "publish"), False)
        statement = (
            sa.select(consent_event.c.scope, consent_event.c.granted)
            .where(consent_event.c.subject_id == person.subject_id)
            .order_by(consent_event.c.at, consent_event.c.id)
        )
        with self.database.reading() as connection:
            for scope, granted in connection.execute(statement):
                last[scope] = granted
        return last

    def agree(self, person: Person, granted: Mapping[Scope, bool]) -> None:
        """Write down what they agree to, and what no longer."""
        with self.database.writing() as connection:
            for scope, given in granted.items():
                values = {
                    "id": new_id(),
                    "subject_id": person.subject_id,
                    "scope": scope,
                    "granted": given,
                    "policy_version": self.settings.policy_version,
                    "at": now(),
                }
                connection.execute(sa.insert(consent_event).values(values))


def _who(condition: sa.ColumnElement[bool]) -> sa.Select[Any]:
    return sa.select(subject.c.subject_id, subject.c.dek_wrapped).where(condition)


# What every part of the store writes with


def now() -> datetime:
    return datetime.now(UTC)


def new_id() -> str:
    """A UUIDv7 (RFC 9562): later ones sort after earlier ones."""
    return str(uuid7())


def insert_once(connection: sa.Connection, table: sa.Table, values: Mapping[str, Any]) -> bool:
    """Insert a row unless its key is taken; whether it was inserted."""
    statement = _insert(connection, table).values(dict(values)).returning(*table.primary_key.columns)
    return connection.execute(statement).first() is not None


def insert_missing(connection: sa.Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert those of the rows whose keys are not taken. All have the same columns."""
    if rows:
        connection.execute(_insert(connection, table), [dict(row) for row in rows])


def _insert(connection: sa.Connection, table: sa.Table) -> Any:
    from sqlalchemy.dialects import postgresql, sqlite

    dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
    return dialect.insert(table).on_conflict_do_nothing()


def digest(document: Any) -> str:
    """SHA-256 of a JSON document, the same for the same contents."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), default=str)
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def erasure_epoch(connection: sa.Connection) -> int:
    """How often somebody was erased."""
    return int(
        connection.execute(sa.select(store_state.c.value).where(store_state.c.name == "erasure_epoch")).scalar_one()
    )
