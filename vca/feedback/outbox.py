"""Handing on what was written down: each message at least once, the messages of a dialogue in their order.

A message is written in the transaction of its event, and deleted after its receiver took it. Killed in between, it is
handed on again: receivers know by `event_id` what they have had.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from vca.feedback.schema import outbox
from vca.feedback.store import Store


@dataclass(frozen=True, kw_only=True)
class Message:
    """seq: its place in the order. key: the dialogue."""

    seq: int
    key: str
    payload: dict[str, Any]


def hand_on(
    store: Store, receiver: Callable[[list[Message]], None], *, topic: str = "feedback", most: int = 100
) -> int:
    """Give the receiver the oldest messages, up to `most`, in order; how many they were.

    One process at a time, so that none overtakes another. Raises what the receiver raises, and then the messages stay;
    StoreDown.
    """
    with store.database.alone(f"outbox-{topic}"):
        with store.database.reading() as connection:
            rows = connection.execute(
                sa.select(outbox.c.seq, outbox.c.key, outbox.c.payload)
                .where(outbox.c.topic == topic)
                .order_by(outbox.c.seq)
                .limit(most)
            ).all()
        if rows:
            receiver([Message(seq=row.seq, key=row.key, payload=row.payload) for row in rows])
            with store.database.writing() as connection:
                connection.execute(sa.delete(outbox).where(outbox.c.seq.in_([row.seq for row in rows])))
    return len(rows)
