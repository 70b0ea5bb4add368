"""Who is on which side: pure functions of keys, so that the order in which records come never matters.

A hash gives every key a fixed point in [0, 1). Keys below `test_fraction` are on the test side. A record has several
keys (its dialogue's and its pictures'); it may be used only where all of them agree. docs/decisions/data-splits.md
says why.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from vca.records import Dialogue, PreferencePair, Role, Split

GROUP_MARK = "#"  # what follows it in a dialogue id only numbers the dialogues of one group


def unit(key: str, *, salt: str) -> float:
    """A fixed, evenly spread point in [0, 1) for `key`; another `salt` gives an independent one."""
    digest = hashlib.blake2b(f"{salt}\0{key}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def group_of(record_id: str) -> str:
    """The part of a dialogue's (or pair's) id that stands for its group: everything before the first '#'."""
    return record_id.split(GROUP_MARK, 1)[0]


def keys_of(record: Dialogue | PreferencePair) -> set[str]:
    """Everything of this record that must not be on both sides."""
    if isinstance(record, PreferencePair):
        pictures = [record.positive, record.negative]
        own = record.dialogue_id or record.pair_id
    else:
        pictures = [picture for turn in record.turns for picture in (turn.image, turn.target) if picture]
        own = record.dialogue_id
    return {group_of(own)} | {picture.key for picture in pictures}


def side_of(keys: Iterable[str], *, test_fraction: float, seed: int) -> Split | None:
    """ "test" or "train" where all keys agree, None where the record straddles. Independent of the keys' order."""
    sides: set[Split] = {"test" if unit(key, salt=f"split{seed}") < test_fraction else "train" for key in keys}
    return sides.pop() if len(sides) == 1 else None


def role_of(
    record_id: str, *, split: Split, test_fraction: float, reward: float, diffusion: float, validation: float, seed: int
) -> Role:
    """What a record is for. Fractions are of the whole data set, disjoint, inside the train side; the rest is unused.

    Drawn by the hash of the dialogue's group, so that a dialogue and its pairs never serve two roles.
    """
    if split == "test":
        return "test"
    point = unit(group_of(record_id), salt=f"role{seed}") * (1 - test_fraction)
    if point < reward:
        return "reward"
    if point < reward + diffusion:
        return "diffusion"
    return "validation" if point < reward + diffusion + validation else "unused"
