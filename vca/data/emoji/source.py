"""EmojiDialog as a data source: dialogues and preference pairs drawn from the shipped catalogue, with split and role.

The catalogue decides the test side (whole concepts, and single combinations of attributes of the other concepts).
Of the train side's keys a fixed share is for validation; no validation picture is in a pair or dialogue for training.
Test pairs are about held-out concepts; only "hair", a factor of one single concept, is tested on combinations.
Pairs come from the reward fold alone, since the other pictures trained the judges of the evaluation.
"""

from __future__ import annotations

from collections.abc import Iterator

from vca.data.emoji.catalogue import Catalogue, EmojiItem, load_base_pictures, load_catalogue
from vca.data.emoji.dialogues import dialogues
from vca.data.emoji.graph import well_told
from vca.data.emoji.pairs import PairMaker, counts_by_kind, pairs
from vca.data.emoji.people import Panel, majority
from vca.data.emoji.settings import EmojiSettings
from vca.data.splits import unit
from vca.records import Dialogue, PreferencePair, Role

VALIDATION_SHARE = 0.10
TESTED_ON_COMBINATIONS = ("hair",)


class EmojiSource:
    """The data set that comes with the package; `seed` draws its dialogues, pairs and judgements."""

    declares_split = True
    declares_role = True
    make_negatives = False
    people = 0

    def __init__(self, *, settings: EmojiSettings, seed: int, name: str = "emoji") -> None:
        self.settings, self.seed, self.name = settings, seed, name

    def total(self) -> int | None:
        """An upper bound: a rare kind of pair can run out."""
        s = self.settings
        pair_count = s.train_pairs + s.validation_pairs + s.test_pairs
        return pair_count + s.train_dialogues + s.validation_dialogues + s.test_dialogues

    def watermark(self) -> str:
        """The digests of the catalogue and of the base's pictures."""
        return f"sha256:{load_catalogue().sha256}+{load_base_pictures().sha256}"

    def read(self) -> Iterator[Dialogue | PreferencePair]:
        """Pairs for training, validation and test, then dialogues for the same."""
        train, validation, test = sides(load_catalogue())
        yield from self._pairs(train, validation, test)
        yield from self._dialogues(train, validation, test)

    def _pairs(
        self, train: list[EmojiItem], validation: list[EmojiItem], test: list[EmojiItem]
    ) -> Iterator[PreferencePair]:
        s, panel = self.settings, Panel(settings=self.settings)
        common = counts_by_kind(total=s.test_pairs, settings=s)
        rare = {kind: common.pop(kind) for kind in TESTED_ON_COMBINATIONS}
        parts: list[tuple[Role, list[EmojiItem], str | None, dict[str, int], Panel]] = [
            ("reward", train, None, counts_by_kind(total=s.train_pairs, settings=s), panel),
            ("validation", validation, None, counts_by_kind(total=s.validation_pairs, settings=s), panel),
            ("test", test, "root", common, majority(s)),
            ("test", test, "combination", rare, majority(s)),
        ]
        for role, items, held_out, counts, judges in parts:
            base = None if role == "test" else load_base_pictures()
            maker = PairMaker(items=items, settings=s, held_out=held_out, base=base)
            yield from pairs(maker=maker, panel=judges, counts=counts, role=role, seed=self.seed, source=self.name)

    def _dialogues(
        self, train: list[EmojiItem], validation: list[EmojiItem], test: list[EmojiItem]
    ) -> Iterator[Dialogue]:
        s = self.settings
        parts: list[tuple[Role, list[EmojiItem], int]] = [
            ("diffusion", train, s.train_dialogues),
            ("validation", validation, s.validation_dialogues),
            ("test", test, s.test_dialogues),
        ]
        for role, items, count in parts:
            yield from dialogues(
                items=items, count=count, role=role, style_open=s.style_open, seed=self.seed, source=self.name
            )


def sides(catalogue: Catalogue) -> tuple[list[EmojiItem], list[EmojiItem], list[EmojiItem]]:
    """The items for training, validation and test: no two share a key or a picture, the same for every seed."""
    train: list[EmojiItem] = []
    validation: list[EmojiItem] = []
    test: list[EmojiItem] = []
    for item in well_told(catalogue.items):
        if item.split == "test":
            test.append(item)
        else:
            (validation if unit(item.key, salt="emoji-validation") < VALIDATION_SHARE else train).append(item)
    return train, validation, test
