"""EmojiDialog: every picture of the local preset with its name and its factors, as shipped in one Parquet file.

`scripts/build_emoji_dialog.py` builds the file; docs and notices stand beside it. Pictures are 64x64 RGB PNG.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from vca.errors import DataError
from vca.records import Picture, Split

STYLES = ("noto", "twemoji", "fluent")
TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
SHIPPED = Path(__file__).with_name("emoji_dialog.parquet")
DRAWN = Path(__file__).with_name("base_pictures.parquet")


@dataclass(frozen=True, kw_only=True)
class EmojiItem:
    """One picture. A factor is None where it doesn't apply to the subject.

    root: the concept, shared by all variants in gender, skin, hair and colour. held_out: "root" if the whole concept
    is kept for tests, "combination" if only this combination of attributes is. fold: "judge" pictures train the
    evaluation judges and appear in no reward pair.
    """

    item_id: str
    style: str
    hexcode: str
    subject: str
    root: str
    group: str
    subgroup: str
    keywords: tuple[str, ...]
    tone: str | None
    gender: str | None
    hair: str | None
    role: str | None
    color: str | None
    species: str | None
    direction: str | None
    held_out: str | None
    fold: str
    png: bytes = field(repr=False)

    @property
    def split(self) -> Split:
        return "test" if self.held_out else "train"

    @property
    def attributes(self) -> tuple[str, ...]:
        """The words after the subject, in caption order."""
        parts = []
        if self.tone:
            parts.append(f"{self.tone} skin")
        if self.hair:
            parts.append(self.hair)
        if self.direction:
            parts.append(f"facing {self.direction}")
        return tuple(parts)

    @property
    def key(self) -> str:
        """What must not straddle the split: the concept if it is held out whole, else this combination."""
        return self.root if self.held_out == "root" else caption(self, style=False)

    def picture(self) -> Picture:
        return Picture(data=self.png, uri=f"emoji-dialog:{self.item_id}", key=self.key)


def caption(item: EmojiItem, *, style: bool) -> str:
    """ "woman firefighter, medium-dark skin, twemoji style"; without `style` the drawing style is left open."""
    ending = (f"{item.style} style",) if style else ()
    return ", ".join((item.subject, *item.attributes, *ending))


@dataclass(frozen=True)
class Catalogue:
    """All items, sorted by `item_id`."""

    items: tuple[EmojiItem, ...]
    sha256: str

    @cached_property
    def by_id(self) -> dict[str, EmojiItem]:
        return {item.item_id: item for item in self.items}

    def side(self, split: Split) -> Sequence[EmojiItem]:
        return [item for item in self.items if item.split == split]


@lru_cache(maxsize=2)
def load_catalogue(path: Path = SHIPPED) -> Catalogue:
    """Read the Parquet and check it against the digest beside it; a mismatch is a DataError."""
    rows, digest = _read(path)
    items = tuple(EmojiItem(**{**row, "keywords": tuple(row["keywords"])}) for row in rows)
    return Catalogue(items=items, sha256=digest)


@dataclass(frozen=True)
class BasePictures:
    """What the shipped Stable Diffusion drew for items' captions, style included: WebP by `item_id`, some of each."""

    by_id: dict[str, tuple[bytes, ...]] = field(repr=False)
    sha256: str

    def one_of(self, item: EmojiItem, rng: random.Random) -> Picture:
        """A picture drawn for `item`, which must be of the train side and not the judges'."""
        views = self.by_id[item.item_id]
        view = rng.randrange(len(views))
        return Picture(data=views[view], uri=f"emoji-dialog:drawn/{item.item_id}?{view}", key=item.key)


@lru_cache(maxsize=2)
def load_base_pictures(path: Path = DRAWN) -> BasePictures:
    """Read the Parquet that `scripts/draw_base_pictures.py` wrote; errors as `load_catalogue`."""
    rows, digest = _read(path)
    return BasePictures(by_id={row["item_id"]: tuple(row["webp"]) for row in rows}, sha256=digest)


def _read(path: Path) -> tuple[list[dict[str, Any]], str]:
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    expected = path.with_suffix(".sha256").read_text().split()[0]
    if digest != expected:
        raise DataError(
            f"{path} has sha256 {digest}, expected {expected}: the file is damaged; restore it from the repository"
        )
    return pq.read_table(path).to_pylist(), digest
