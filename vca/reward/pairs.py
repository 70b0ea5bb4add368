"""Preference pairs in memory: prompts and labels as they are, every picture once, as its encoded bytes.

Shape suffixes: B rows, C channels, H, W pixels, I image tokens of one image, D width.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vca.data.images import decode
from vca.data.shards import read_pairs
from vca.errors import DataError
from vca.models.qwen_vl import QwenVL
from vca.progress import Progress
from vca.records import Role
from vca.reward.accuracy import EASY


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One pair; `w` and `l` number the preferred and the other picture in `PairSet.images`."""

    prompt: str
    w: int
    l: int  # noqa: E741
    label: float
    weight: float
    kind: str
    negative_kind: str
    source: str


@dataclass(frozen=True, kw_only=True)
class PairSet:
    pairs: list[Pair]
    images: list[bytes] = field(repr=False)

    def images_BCHW(self, which: Sequence[int], *, size: int) -> Tensor:
        """Decoded pictures in [0, 1], float32."""
        arrays = np.stack([decode(self.images[i], size=size) for i in which])
        return torch.from_numpy(arrays).permute(0, 3, 1, 2).float() / 255


def load_pairs(folder: Path, *, role: Role, rank: int = 0, world: int = 1) -> PairSet:
    """Every `world`-th pair of that role, from `rank` on. Raises DataError where the role has none."""
    pairs: list[Pair] = []
    images: list[bytes] = []
    numbers: dict[bytes, int] = {}

    def number(data: bytes) -> int:
        if data not in numbers:
            numbers[data] = len(images)
            images.append(data)
        return numbers[data]

    for place, pair in enumerate(read_pairs(folder, role=role)):
        if place % world == rank:
            pairs.append(
                Pair(
                    prompt=pair.prompt,
                    w=number(pair.positive.data),
                    l=number(pair.negative.data),
                    label=pair.label,
                    weight=pair.label_confidence,
                    kind=pair.kind,
                    negative_kind=pair.negative_kind,
                    source=pair.source,
                )
            )
    if not pairs:
        raise DataError(
            f"{folder} holds no {role} pairs{f' for process {rank} of {world}' if world > 1 else ''}; "
            "prepare more data, or raise that role's fraction under `data`"
        )
    return PairSet(pairs=pairs, images=images)


class ImageTokens:
    """What the frozen vision tower says of a set's images; kept in memory where all of it fits into `cache_mb`."""

    def __init__(self, pairs: PairSet, *, reader: QwenVL, cache_mb: int, progress: Progress, name: str) -> None:
        self.pairs, self.reader = pairs, reader
        self.cache: Tensor | None = None
        bytes_needed = len(pairs.images) * reader.image_tokens_per_image * reader.width * 4
        if bytes_needed <= cache_mb * 1e6:
            with progress.task(f"looking at {name} images", len(pairs.images), "images") as task:
                parts = []
                for start in range(0, len(pairs.images), 64):
                    which = range(start, min(start + 64, len(pairs.images)))
                    parts.append(self._look(which).cpu())
                    task.advance(len(which))
            self.cache = torch.cat(parts)

    def of(self, which: Sequence[int]) -> Tensor:
        """[B, I, D], float32, without gradient."""
        return self.cache[list(which)] if self.cache is not None else self._look(which)

    def _look(self, which: Sequence[int]) -> Tensor:
        with torch.no_grad():
            images = self.pairs.images_BCHW(which, size=self.reader.image_size)
            return self.reader.image_tokens(images_BCHW=images).float()


def batches(pairs: Sequence[Pair], *, size: int, mix: float, seed: str) -> Iterator[list[int]]:
    """One pass in shuffled batches of `size` pair numbers, at most a share `mix` of each being random mismatches.

    Mismatches beyond that share are left out of this pass, others are drawn in the next. Raises DataError where the
    pairs don't fill one batch.
    """
    draw = random.Random(seed)
    easy = [n for n, pair in enumerate(pairs) if pair.negative_kind == EASY]
    hard = [n for n, pair in enumerate(pairs) if pair.negative_kind != EASY]
    draw.shuffle(easy)
    draw.shuffle(hard)
    cap = int(mix * size)
    count = min(len(pairs) // size, len(hard) // (size - cap) if cap < size else len(pairs))
    if count == 0:
        raise DataError(
            f"{len(pairs)} pairs, {len(easy)} of them random mismatches, do not fill a batch of {size}; "
            "prepare more data, lower reward.batch, or raise reward.negative_mix"
        )
    used = min(len(easy), cap * count)
    rest = iter(hard)
    for b in range(count):
        batch = easy[b * used // count : (b + 1) * used // count]
        batch += islice(rest, size - len(batch))
        draw.shuffle(batch)
        yield batch
