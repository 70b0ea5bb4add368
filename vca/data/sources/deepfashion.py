"""DeepFashion (Liu et al., CVPR 2016), two of its benchmarks in their published layout.

List files are text: the number of entries, a line of column names, then one entry per line. They lie in `Anno/`,
`Anno_coarse/`, `Eval/` or beside the images, as the archives were unpacked; image paths start with `img/`.

* In-shop Clothes Retrieval: `list_eval_partition.txt` (image_name item_id evaluation_status) and, where there,
  `list_description_inshop.json` ({item, color, description}). Images are
  `img/WOMEN/Dresses/id_00000002/02_1_front.jpg`: gender, category, item, then variant, number and view. The pictures
  of one variant become a dialogue whose rounds ask for another view.
* Category and Attribute Prediction: `list_category_img.txt` (image_name category_label), `list_category_cloth.txt`
  (category_name category_type), `list_attr_cloth.txt` (attribute_name attribute_type) and `list_attr_img.txt`
  (image_name, then 1, 0 or -1 for each attribute). Each image becomes a dialogue of one round.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path, PurePosixPath

from vca.data.ledger import Spool
from vca.data.sources.base import Item, PassedOver
from vca.data.sources.files import Unusable, existing_folder, stream_array
from vca.data.sources.folder import FolderSource
from vca.data.splits import GROUP_MARK
from vca.errors import DataError
from vca.records import Dialogue, Turn

FOLDERS = ("", "Anno", "Anno_coarse", "Anno_fine", "Eval")
VIEWS = {
    "front": "from the front",
    "back": "from the back",
    "side": "from the side",
    "full": "worn, in full",
    "additional": "from another angle",
    "flat": "laid flat",
}
MAX_ATTRIBUTES = 6  # a caption of more runs past what a text encoder reads


class DeepFashion(FolderSource):
    """Dialogues of In-shop Clothes Retrieval, or of Category and Attribute Prediction: whichever lies there."""

    def read(self) -> Iterator[Item]:
        root = existing_folder(self.path, what="DeepFashion")
        images = root / "Img" if (root / "Img").is_dir() else root
        categories, partition = _find(root, "list_category_img.txt"), _find(root, "list_eval_partition.txt")
        if categories:
            yield from self._attributes(root, images, categories)
        elif partition:
            yield from self._in_shop(root, images, partition)
        else:
            raise DataError(f"DeepFashion: {root} holds no list_category_img.txt and no list_eval_partition.txt")

    def _in_shop(self, root: Path, images: Path, partition: Path) -> Iterator[Item]:
        spool = Spool(self.scratch / "deepfashion.sqlite")
        try:
            for words in _entries(partition, columns=3):
                try:
                    name, item = words[0], words[1]
                    variant = PurePosixPath(name).name.split("_")[0]
                    spool.add(f"{item}{GROUP_MARK}{variant}", name)
                except IndexError:
                    yield Unusable("invalid_line", partition.name, " ".join(words)[:200]).refused()
        except Unusable as error:
            yield error.refused()
        colours = _find(root, "list_description_inshop.json")
        if colours:
            try:
                for entry in stream_array(colours, uri=colours.name):
                    if isinstance(entry, dict) and isinstance(entry.get("color"), str):
                        spool.add(f"colour {entry.get('item')}", entry["color"])
            except Unusable as error:
                yield error.refused()
        spool.index()
        for key, names in spool.groups():
            if key.startswith("colour "):
                continue
            item, _, variant = key.partition(GROUP_MARK)
            colour = spool.get(f"colour {item}")
            # The description names one colour per item; only the item's first variant is sure to have it.
            yield self._views(
                item, variant, sorted(names), images=images, colour=colour[0] if colour and variant == "01" else ""
            )
        spool.close()

    def _views(self, item: str, variant: str, names: list[str], *, images: Path, colour: str) -> Item:
        group = f"{self.name}/{item}"
        dialogue_id = f"{group}{GROUP_MARK}{variant}"
        if not self.chosen(dialogue_id):
            return PassedOver(reason="outside_fraction")
        try:
            parts = PurePosixPath(names[0]).parts
            if len(parts) < 5:
                raise Unusable("invalid_line", names[0], "expected img/GENDER/Category/item/picture.jpg")
            gender, category = parts[1].lower(), parts[2].replace("_", " ").lower()
            garment = ", ".join(filter(None, [f"{gender}'s {category}", colour.lower()]))
            turns = []
            for number, name in enumerate(names, start=1):
                view = VIEWS.get(PurePosixPath(name).stem.split("_")[-1], "")
                turns.append(
                    Turn(
                        round=number,
                        feedback=f"show it {view or 'once more'}" if number > 1 else "",
                        refined_prompt=", ".join(filter(None, [garment, view])),
                        operation="view" if number > 1 else "initial",
                        target=self.picture(name, key=group, root=images),
                    )
                )
        except Unusable as error:
            return error.refused()
        return Dialogue(
            dialogue_id=dialogue_id,
            source=self.name,
            theme="fashion",
            style=None,
            initial_prompt=turns[0].refined_prompt,
            intent=turns[-1].refined_prompt,
            turns=tuple(turns),
        )

    def _attributes(self, root: Path, images: Path, categories: Path) -> Iterator[Item]:
        try:
            names = [" ".join(words[:-1]) for words in _entries(_need(root, "list_category_cloth.txt"), columns=2)]
            attributes_file = _find(root, "list_attr_img.txt")
            attributes: list[str] = []
            rows: Iterator[list[str]] = repeat([])
            if attributes_file:
                attributes = [" ".join(words[:-1]) for words in _entries(_need(root, "list_attr_cloth.txt"), columns=2)]
                rows = _entries(attributes_file, columns=2)
            for words in _entries(categories, columns=2):
                yield self._garment(words, next(rows, []), names, attributes, images=images, where=categories.name)
        except Unusable as error:
            yield error.refused()

    def _garment(
        self, words: list[str], row: list[str], names: list[str], attributes: list[str], *, images: Path, where: str
    ) -> Item:
        path = words[0]
        group = f"{self.name}/{PurePosixPath(path).parent.name}"
        dialogue_id = f"{group}{GROUP_MARK}{PurePosixPath(path).stem}"
        if not self.chosen(dialogue_id):
            return PassedOver(reason="outside_fraction")
        try:
            label = words[1] if len(words) == 2 else ""
            if not label.isdecimal() or not 1 <= int(label) <= len(names):
                raise Unusable("wrong_label", f"{where}: {path}", f"category {label!r}; there are {len(names)}")
            if attributes and (row[:1] != [path] or len(row) != len(attributes) + 1):
                raise Unusable("invalid_line", f"list_attr_img.txt: {path}", "the attribute list doesn't match")
            has = [name for name, mark in zip(attributes, row[1:], strict=False) if mark == "1"][:MAX_ATTRIBUTES]
            caption = ", ".join([names[int(label) - 1].replace("_", " ").lower(), *has])
            picture = self.picture(path, key=group, root=images)
        except Unusable as error:
            return error.refused()
        turn = Turn(round=1, feedback="", refined_prompt=caption, operation="initial", target=picture)
        return Dialogue(
            dialogue_id=dialogue_id,
            source=self.name,
            theme="fashion",
            style=None,
            initial_prompt=caption,
            intent=caption,
            turns=(turn,),
        )


def _find(root: Path, name: str) -> Path | None:
    return next((path for folder in FOLDERS if (path := root / folder / name).is_file()), None)


def _need(root: Path, name: str) -> Path:
    path = _find(root, name)
    if path is None:
        raise Unusable("missing_file", name, f"looked in {root} and its {', '.join(FOLDERS[1:])}")
    return path


def _entries(path: Path, *, columns: int) -> Iterator[list[str]]:
    """The words of each entry line. Errors: Unusable for a list that isn't one, or has fewer entries than it says."""
    try:
        with path.open(encoding="utf-8", errors="replace") as lines:
            count = next(lines, "").strip()
            header = next(lines, "").split()
            if not re.fullmatch(r"\d{1,12}", count) or len(header) < columns:
                raise Unusable("invalid_line", path.name, "expected a line with the count and a line of column names")
            found = 0
            for line in lines:
                if words := line.split():
                    found += 1
                    yield words
    except OSError as error:
        raise Unusable("missing_file", path.name, str(error)) from None
    if found < int(count):
        raise Unusable("invalid_line", path.name, f"the list says {count} entries and ends after {found}")
