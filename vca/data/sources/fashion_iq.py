"""FashionIQ (Wu et al., CVPR 2021): two photographs of garments, and in people's words how the second one differs.

Published layout: `captions/cap.{dress,shirt,toptee}.{train,val,test}.json`, arrays of {candidate, target, captions};
`image_splits/split.{category}.{split}.json`, arrays of image ids; `images/<id>.png` or `.jpg`. The test captions are
published without targets, so they are passed over and `val` is our test side: the published split is kept, since each
photograph appears in many captions and hashing would make most records straddle.

A caption is a dialogue of two rounds: the category and the candidate, then what people said and the target.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vca.data.ledger import Spool
from vca.data.sources.base import Item, PassedOver
from vca.data.sources.files import Unusable, existing_folder, field, stream_array, text
from vca.data.sources.folder import FolderSource
from vca.errors import DataError
from vca.records import Dialogue, Picture, Split, Turn

CATEGORIES = {"dress": "a dress", "shirt": "a shirt", "toptee": "a top"}
SIDES: dict[str, Split] = {"train": "train", "val": "test", "test": "test"}


class FashionIQ(FolderSource):
    """Two-round dialogues of FashionIQ."""

    published_split = True

    def read(self) -> Iterator[Item]:
        root = existing_folder(self.path, what="FashionIQ")
        files = [
            (category, split, root / "captions" / f"cap.{category}.{split}.json")
            for category in CATEGORIES
            for split in SIDES
        ]
        files = [entry for entry in files if entry[2].is_file()]
        if not files:
            raise DataError(f"FashionIQ: {root} holds no captions/cap.{{dress,shirt,toptee}}.{{train,val,test}}.json")
        members = Spool(self.scratch / "fashion_iq.sqlite")
        yield from self._read_splits(root, members)
        for category, split, path in files:
            uri = f"{root.name}/captions/{path.name}"
            try:
                for number, entry in enumerate(stream_array(path, uri=uri)):
                    yield self._caption(entry, category, split, uri=f"{uri}[{number}]", members=members)
            except Unusable as error:
                yield error.refused()
        members.close()

    def _read_splits(self, root: Path, members: Spool) -> Iterator[Item]:
        """Which images the published split files name, as `category.split` -> ids."""
        for category in CATEGORIES:
            for split in SIDES:
                path = root / "image_splits" / f"split.{category}.{split}.json"
                if not path.is_file():
                    continue
                uri = f"{root.name}/image_splits/{path.name}"
                try:
                    for image_id in stream_array(path, uri=uri):
                        members.add(f"{category}/{image_id}", split)
                    members.add(f"{category}.{split}", "listed")
                except Unusable as error:
                    yield error.refused()
        members.index()

    def _caption(self, entry: Any, category: str, split: str, *, uri: str, members: Spool) -> Item:
        try:
            candidate = text(entry, "candidate", uri=uri)
            if split == "test" and "target" not in entry:
                return PassedOver(reason="no_target")
            target = text(entry, "target", uri=uri)
            captions = field(entry, "captions", list, uri=uri)
            said = [caption.strip().rstrip(".") for caption in captions if isinstance(caption, str)]
            said = list(dict.fromkeys(filter(None, said)))
            if not said or len(captions) != sum(isinstance(caption, str) for caption in captions):
                raise Unusable("empty_text" if not said else "wrong_type", uri, "captions")
            dialogue_id = f"fashion_iq/{category}/{candidate}/{target}"
            if not self.chosen(dialogue_id):
                return PassedOver(reason="outside_fraction")
            for image_id in (candidate, target):
                if members.get(f"{category}.{split}") and split not in members.get(f"{category}/{image_id}"):
                    raise Unusable("wrong_split", uri, f"{image_id} is not in split.{category}.{split}.json")
            start, end = self._photo(candidate), self._photo(target)
        except Unusable as error:
            return error.refused()
        garment = CATEGORIES[category]
        wish = f"{garment}, {', '.join(said)}"
        feedback = " and ".join(said)
        return Dialogue(
            dialogue_id=dialogue_id,
            source=self.name,
            theme="fashion",
            style=None,
            initial_prompt=garment,
            intent=wish,
            split=SIDES[split],
            turns=(
                Turn(round=1, feedback="", refined_prompt=garment, operation="initial", image=start),
                Turn(round=2, feedback=feedback, refined_prompt=wish, operation="edit", target=end),
            ),
        )

    def _photo(self, image_id: str) -> Picture:
        for suffix in ("png", "jpg"):
            try:
                return self.picture(f"images/{image_id}.{suffix}", key=f"fashion_iq/{image_id}")
            except Unusable as error:
                if error.reason != "missing_file":
                    raise
        raise Unusable("missing_file", f"{self.path.name}/images/{image_id}.png or .jpg")
