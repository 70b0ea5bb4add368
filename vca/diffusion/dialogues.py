"""Which dialogues a rollout plays, and which real pictures anchor it. Every draw is keyed, so nothing has to be stored.

A key is (seed, purpose, epoch, dialogue, round, sibling): the same draw whatever the order, the number of processes or
the number of restarts.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from vca.errors import DataError
from vca.records import Dialogue


@dataclass(frozen=True, kw_only=True)
class Script:
    """What is left of a dialogue for training: the prompts of its rounds, and the pictures wanted, by index."""

    dialogue_id: str
    intent: str
    prompts: tuple[str, ...]
    targets: tuple[int | None, ...]


@dataclass(frozen=True, kw_only=True)
class Target:
    """A real picture (encoded bytes) and the prompt that asks for it."""

    prompt: str
    data: bytes


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """All scripts, and the real pictures kept to draw from."""

    scripts: tuple[Script, ...]
    targets: tuple[Target, ...]


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A script in an epoch: what one slot of a rollout plays."""

    script: Script
    epoch: int


def key_seed(*key: object) -> int:
    """63 bits that depend on every part of the key and on nothing else."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "big") >> 1


def generator(*key: object) -> torch.Generator:
    return torch.Generator().manual_seed(key_seed(*key))


def read_corpus(dialogues: Iterable[Dialogue], *, rounds: int, pool: int, seed: int) -> Corpus:
    """The first `rounds` rounds of every dialogue; of the real pictures, `pool` drawn at random (reservoir sampling).

    Memory grows with the prompts, not with the pictures. Raises DataError if there is no dialogue.
    """
    lot = random.Random(key_seed(seed, "pool"))
    kept: list[Target] = []
    place: dict[tuple[str, int], int] = {}
    scripts: list[tuple[str, str, tuple[str, ...]]] = []
    seen = 0
    for dialogue in dialogues:
        turns = dialogue.turns[:rounds]
        scripts.append((dialogue.dialogue_id, dialogue.intent, tuple(turn.refined_prompt for turn in turns)))
        for index, turn in enumerate(turns):
            if turn.target is None:
                continue
            seen += 1
            slot = len(kept) if len(kept) < pool else lot.randrange(seen)
            if slot < pool:
                place = {where: s for where, s in place.items() if s != slot} if slot < len(kept) else place
                place[dialogue.dialogue_id, index] = slot
                kept[slot : slot + 1] = [Target(prompt=turn.refined_prompt, data=turn.target.data)]
    if not scripts:
        raise DataError(
            "no dialogue has the role 'diffusion': raise the data set's diffusion fraction or add dialogues"
        )
    return Corpus(
        scripts=tuple(
            Script(
                dialogue_id=name,
                intent=intent,
                prompts=prompts,
                targets=tuple(place.get((name, index)) for index in range(len(prompts))),
            )
            for name, intent, prompts in scripts
        ),
        targets=tuple(kept),
    )


def batch(corpus: Corpus, *, iteration: int, dialogues: int, seed: int) -> list[Turn]:
    """The dialogues of rollout `iteration` (from 0): every epoch plays each once, in an order of its own."""
    count = len(corpus.scripts)
    turns = []
    order: tuple[int, list[int]] = (-1, [])
    for position in range(iteration * dialogues, (iteration + 1) * dialogues):
        epoch, index = divmod(position, count)
        if order[0] != epoch:
            order = epoch, random.Random(key_seed(seed, "order", epoch)).sample(range(count), count)
        turns.append(Turn(script=corpus.scripts[order[1][index]], epoch=epoch))
    return turns


def strength(
    dialogue_id: str, dialogue_round: int, *, low: float, high: float, decay: float, floor: float, seed: int
) -> float:
    """How much of the last picture a round re-draws (tau of eq. 3): U(low, high) in round 2, less in later ones.

    Seeded by dialogue and round, so that siblings and epochs share it.
    """
    first = random.Random(key_seed(seed, "strength", dialogue_id, dialogue_round)).uniform(low, high)
    return max(floor, first * decay ** (dialogue_round - 2))
