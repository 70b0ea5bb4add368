"""Preference labels: one large JSON array, read as a stream (paper, section 4.2: labels in a single large JSON file).

[{prompt, images: [a, b], labels: [1, 0]}, ...]: the image labelled 1 fits the prompt, the one labelled 0 doesn't;
[0.5, 0.5] is a tie. Optional: pair_id (else the place in the file), dialogue_id, source, kind, negative_kind,
label_confidence, split, role. An image is a path relative to the file's folder, or {uri, sha256, w, h, key}.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args, get_type_hints

from vca.data.ledger import Spool
from vca.data.sources.base import Item, PassedOver
from vca.data.sources.dialogues import check_sha256, picture_key, stated_role, stated_split
from vca.data.sources.files import Unusable, field, optional, stream_array, text
from vca.data.sources.folder import FolderSource
from vca.data.splits import group_of
from vca.errors import DataError
from vca.records import Picture, PreferencePair

NEGATIVE_KINDS = get_args(get_type_hints(PreferencePair)["negative_kind"])
LABELS = {(1.0, 0.0): 1.0, (0.0, 1.0): 0.0, (0.5, 0.5): 0.5}


class Preferences(FolderSource):
    """Pairs from one JSON file."""

    brings_pairs = True

    def watermark(self) -> str:
        return self._state(self.path.parent)  # the pictures lie beside the file

    def read(self) -> Iterator[Item]:
        if not self.path.is_file():
            raise DataError(f"preferences: no file {self.path}; set data.sources.path to the JSON file of labels")
        users = Spool(self.scratch / "pictures.sqlite")
        try:
            for number, entry in enumerate(stream_array(self.path, uri="")):
                for relative in _paths(entry):
                    users.add(relative, group_of(self._owner(entry, number)))
        except Unusable:
            pass  # reading it in earnest meets the same place again, and refuses it
        users.index()
        uri = self.path.name
        try:
            for number, entry in enumerate(stream_array(self.path, uri=uri)):
                yield self._pair(entry, number, users, uri=f"{uri}[{number}]")
        except Unusable as error:
            yield error.refused()
        users.close()

    def _pair(self, entry: Any, number: int, users: Spool, *, uri: str) -> Item:
        try:
            prompt = text(entry, "prompt", uri=uri)
            images = field(entry, "images", list, uri=uri)
            labels = field(entry, "labels", list, uri=uri)
            label = LABELS.get(tuple(labels)) if all(type(value) in (int, float) for value in labels) else None
            if len(images) != 2 or label is None:
                allowed = "[1, 0], [0, 1] or [0.5, 0.5]"
                raise Unusable("wrong_label", uri, f"{len(images)} images with labels {labels!r}; allowed: {allowed}")
            owner = self._owner(entry, number)
            if not self.chosen(owner):
                return PassedOver(reason="outside_fraction")
            first, second = (self._picture(image, group_of(owner), users, uri=uri) for image in images)
            negative_kind = optional(entry, "negative_kind", str, "human", uri=uri)
            if negative_kind not in NEGATIVE_KINDS:
                raise Unusable("wrong_label", uri, f"negative_kind {negative_kind!r}")
            return PreferencePair(
                pair_id=optional(entry, "pair_id", str, f"{self.name}/{number}", uri=uri),
                prompt=prompt,
                positive=second if label == 0 else first,
                negative=first if label == 0 else second,
                source=optional(entry, "source", str, self.name, uri=uri) if self.declares_split else self.name,
                kind=optional(entry, "kind", str, negative_kind, uri=uri),
                negative_kind=negative_kind,  # type: ignore[arg-type]  # one of NEGATIVE_KINDS
                label=max(label, 1 - label),
                label_confidence=optional(entry, "label_confidence", float, 1.0, uri=uri),
                dialogue_id=optional(entry, "dialogue_id", str, "", uri=uri) or None,
                split=stated_split(entry, uri=uri) if self.declares_split else "train",
                role=stated_role(entry, uri=uri) if self.declares_role else "unused",
            )
        except Unusable as error:
            return error.refused()

    def _picture(self, image: Any, own: str, users: Spool, *, uri: str) -> Picture:
        relative = image if isinstance(image, str) else text(image, "uri", uri=uri)
        key = picture_key(image, relative, own, users, uri=uri)
        picture = self.picture(relative, key=key, root=self.path.parent)
        check_sha256(image, picture)
        return picture

    def _owner(self, entry: Any, number: int) -> str:
        """The dialogue that the pair belongs to, or the pair itself: what split and role are drawn by."""
        for name in ("dialogue_id", "pair_id"):
            if isinstance(entry, dict) and isinstance(entry.get(name), str) and entry[name]:
                return str(entry[name])
        return f"{self.name}/{number}"


def _paths(entry: Any) -> list[str]:
    images = entry.get("images") if isinstance(entry, dict) else None
    paths = (
        [image.get("uri") if isinstance(image, dict) else image for image in images] if isinstance(images, list) else []
    )
    return [path for path in paths if isinstance(path, str)]
