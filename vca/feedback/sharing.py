"""Links by which anybody may look at a dialogue: unguessable, made only when asked for, revocable, and they end.

The address is derived from the store's master key, so that the person can be shown it again while the database alone
gives nobody access.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any

import sqlalchemy as sa

from vca.feedback.dialogues import own_dialogue
from vca.feedback.errors import NotFound
from vca.feedback.schema import dialogue, share_link, subject
from vca.feedback.store import Person, Store, now


def share(store: Store, person: Person, *, dialogue_id: str, days: int) -> tuple[str, datetime]:
    """A token, and when it ends; the one that there is already, if any. Raises NotFound, StoreDown."""
    with store.database.writing() as connection:
        own_dialogue(connection, person, dialogue_id)
        row = _live(connection, dialogue_id)
        if row is not None:
            return _token(store, dialogue_id, row.created_at), row.expires_at
        moment = now()
        token, end = _token(store, dialogue_id, moment), moment + timedelta(days=days)
        values = {"token_sha256": _hash(token), "dialogue_id": dialogue_id, "created_at": moment, "expires_at": end}
        connection.execute(sa.insert(share_link).values(values))
    return token, end


def shared(store: Store, person: Person, dialogue_id: str) -> str | None:
    """The dialogue's token, where it is shared now."""
    with store.database.reading() as connection:
        own_dialogue(connection, person, dialogue_id)
        row = _live(connection, dialogue_id)
    return None if row is None else _token(store, dialogue_id, row.created_at)


def revoke(store: Store, person: Person, *, dialogue_id: str) -> None:
    """End all links to a dialogue. Raises NotFound, StoreDown."""
    with store.database.writing() as connection:
        own_dialogue(connection, person, dialogue_id)
        connection.execute(
            sa.update(share_link)
            .where(share_link.c.dialogue_id == dialogue_id, share_link.c.revoked_at.is_(None))
            .values(revoked_at=now())
        )


def followed(store: Store, token: str) -> tuple[Person, str]:
    """Whose dialogue a token leads to, and which. Raises NotFound for one that is unknown, revoked or ended."""
    with store.database.reading() as connection:
        row = connection.execute(
            sa.select(share_link.c.dialogue_id, subject.c.subject_id, subject.c.dek_wrapped)
            .join(dialogue, dialogue.c.dialogue_id == share_link.c.dialogue_id)
            .join(subject, subject.c.subject_id == dialogue.c.subject_id)
            .where(
                share_link.c.token_sha256 == _hash(token),
                share_link.c.revoked_at.is_(None),
                share_link.c.expires_at > now(),
            )
        ).first()
    if row is None:
        raise NotFound("this link does not exist, or no longer")
    return store.opened(row.subject_id, row.dek_wrapped), row.dialogue_id


def _live(connection: sa.Connection, dialogue_id: str) -> sa.Row[Any] | None:
    return connection.execute(
        sa.select(share_link)
        .where(
            share_link.c.dialogue_id == dialogue_id,
            share_link.c.revoked_at.is_(None),
            share_link.c.expires_at > now(),
        )
        .order_by(share_link.c.created_at.desc())
    ).first()


def _token(store: Store, dialogue_id: str, created_at: datetime) -> str:
    return store.vault.hmac(f"share {dialogue_id} {created_at.isoformat()}")


def _hash(token: str) -> str:
    return sha256(token.encode("utf-8", "surrogatepass")).hexdigest()
