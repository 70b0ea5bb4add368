"""What people said in the studio: a snapshot of the feedback store. Needs its folder and its pictures, no database.

Pairs are human ones, `kind` being the rule that made them (`vca.feedback.rules`). A choice makes several pairs, whose
weights sum to 1: a pair's weight is its `label_confidence`, by which reward training multiplies its loss, so that every
choice counts once however many pictures it was made from. With `even_slots` the weight is also divided by how often
people pick from that place on the screen (inverse propensity; the snapshot's manifest has the figures).

The snapshot's split is by dialogue and is kept. Of a dialogue for training, the pairs go to the reward model and the
dialogue itself to the generator; val is for validation, test for tests. A picture's key is its digest: should a picture
ever be in dialogues on both sides, the later record straddles.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from vca.data.settings import FeedbackSourceSettings
from vca.data.sources.base import Item, PassedOver
from vca.data.sources.files import Unusable
from vca.feedback.objects import Objects
from vca.feedback.snapshot_files import read_manifest, read_rows
from vca.records import Dialogue, Picture, PreferencePair, Role, Split, Turn

SIDES: dict[str, tuple[Split, Role, Role]] = {  # split of the snapshot: side, role of pairs, role of dialogues
    "train": ("train", "reward", "diffusion"),
    "val": ("train", "validation", "validation"),
    "test": ("test", "test", "test"),
}
KEPT_PICTURES = 16  # of one dialogue, whose pairs follow each other


class Feedback:
    """Errors on opening: ArtifactError where the snapshot is missing, changed, or holds somebody who was erased."""

    declares_split = True
    declares_role = True
    make_negatives = False

    def __init__(self, *, settings: FeedbackSourceSettings, name: str = "feedback") -> None:
        self.settings, self.name = settings, name
        self.manifest = read_manifest(settings.path, verify=False)
        self.people = self.manifest.people
        self.objects = Objects(settings.objects)
        self._pictures: OrderedDict[str, Picture] = OrderedDict()
        self._weights = {one.n: one.weights for one in self.manifest.slots} if settings.even_slots else {}

    def total(self) -> int | None:
        return self.manifest.rows("pairs") + self.manifest.rows("dialogues")

    def watermark(self) -> str:
        """The snapshot's id, which comes from what is in it."""
        return self.manifest.snapshot_id

    def read(self) -> Iterator[Item]:
        """Pairs, then dialogues. Errors: StoreDown where the pictures can't be reached."""
        for kind, made in (("pairs", self._pair), ("dialogues", self._dialogue)):
            for row in read_rows(self.settings.path, kind):  # type: ignore[arg-type]  # both are kinds
                if row["excluded_reason"] is not None:
                    yield PassedOver(reason=row["excluded_reason"])
                    continue
                try:
                    yield made(row)
                except Unusable as error:
                    yield error.refused()

    def _pair(self, row: dict[str, Any]) -> PreferencePair:
        split, role, _ = SIDES[row["split"]]
        weight = row["weight"]
        if row["rule"] == "best_of_n" and row["slots"] in self._weights:
            weight *= self._weights[row["slots"]][row["slot_chosen"]]
        return PreferencePair(
            pair_id=row["pair_id"],
            prompt=row["prompt"],
            positive=self._picture(row["image_chosen"]),
            negative=self._picture(row["image_rejected"]),
            source=self.name,
            kind=row["rule"],
            negative_kind="human",
            label=row["label"],
            label_confidence=weight,
            dialogue_id=row["dialogue_id"],
            split=split,
            role=role,
        )

    def _dialogue(self, row: dict[str, Any]) -> Dialogue:
        split, _, role = SIDES[row["split"]]
        steps = row["steps"]
        turns = tuple(
            Turn(
                round=step["round"],
                feedback=step["critique"],
                refined_prompt=step["prompt"],
                operation="edit" if step["round"] > 1 else "initial",
                image=step["image"] and self._picture(step["image"]),
                target=step["target"] and self._picture(step["target"]),
                satisfied=row["accepted"] or None if step is steps[-1] else False,
            )
            for step in steps
        )
        return Dialogue(
            dialogue_id=row["dialogue_id"],
            source=self.name,
            theme="",
            style=None,
            initial_prompt=turns[0].refined_prompt,
            intent=turns[-1].refined_prompt,
            turns=turns,
            split=split,
            role=role,
        )

    def _picture(self, digest: str) -> Picture:
        """Errors: Unusable where it is gone, or its bytes are no longer those."""
        known = self._pictures.get(digest)
        if known is not None:
            return known
        data = self.objects.get(digest)
        if data is None:
            raise Unusable("missing_file", digest, f"no such picture in {self.objects.place}")
        self._pictures[digest] = picture = Picture(data=data, uri=digest, key=digest)
        if len(self._pictures) > KEPT_PICTURES:
            self._pictures.popitem(last=False)
        return picture
