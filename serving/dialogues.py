"""What dialogues drew last, so that the next round needs to send words only.

An id is made here and can't be guessed: who has it may go on with the dialogue. Memory is bounded; the dialogue not
used for longest is forgotten first, and then asks for its picture again.
"""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from serving.refusal import Refused


@dataclass(frozen=True, kw_only=True)
class Round:
    """feedback: what was asked for in it. prompt: what was drawn. latents: of its pictures, [C, H, W] each."""

    feedback: str
    prompt: str
    latents: Sequence[Tensor]

    @property
    def bytes(self) -> int:
        return sum(latents_CHW.nbytes for latents_CHW in self.latents) + len(self.prompt) + len(self.feedback)


@dataclass(kw_only=True)
class Dialogue:
    rounds: list[Round] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        return sum(done.bytes for done in self.rounds)


class Dialogues:
    """Thread-safe. limit: bytes of latents and words kept in all."""

    def __init__(self, *, limit: int) -> None:
        self.limit = limit
        self._lock = threading.Lock()
        self._known: OrderedDict[str, Dialogue] = OrderedDict()
        self._bytes = 0

    def before(self, dialogue_id: str, number: int | None) -> list[Round]:
        """The rounds before round `number` (default: the next one), oldest first; at least one.

        Raises Refused for a dialogue that is not known (any more), and for a round that does not follow.
        """
        with self._lock:
            dialogue = self._known.get(dialogue_id)
            if dialogue is None:
                raise Refused(
                    "unknown dialogue: it was forgotten or never begun; send the picture and its prompt instead",
                    status=404,
                    code="unknown_dialogue",
                    param="dialogue_id",
                )
            self._known.move_to_end(dialogue_id)
            rounds = list(dialogue.rounds)
        wanted = len(rounds) + 1 if number is None else number
        if not 2 <= wanted <= len(rounds) + 1:
            raise Refused(f"round {wanted}: this dialogue goes on with round 2 to {len(rounds) + 1}", param="round")
        return rounds[: wanted - 1]

    def add(self, done: Round, *, after: Sequence[Round], dialogue_id: str | None) -> str:
        """Keep a round that followed `after`, in place of those that came after them; the dialogue's id."""
        with self._lock:
            name = dialogue_id or secrets.token_urlsafe(24)
            old = self._known.pop(name, None)
            new = Dialogue(rounds=[*after, done])
            self._known[name] = new
            self._bytes += new.bytes - (old.bytes if old else 0)
            while self._bytes > self.limit and len(self._known) > 1:
                _, forgotten = self._known.popitem(last=False)
                self._bytes -= forgotten.bytes
            return name
