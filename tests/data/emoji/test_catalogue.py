"""The shipped files are what their digests say, and the base's pictures are the shipped base's."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from vca.data.emoji.catalogue import DRAWN, SHIPPED, load_base_pictures, load_catalogue
from vca.data.emoji.source import sides
from vca.data.images import decode
from vca.errors import DataError
from vca.models.location import digest


def test_the_base_pictures_are_the_shipped_bases_some_for_every_item_people_may_see() -> None:
    metadata = pq.read_schema(DRAWN).metadata
    assert metadata[b"base"].decode() == digest("package:stable_diffusion"), "run scripts/draw_base_pictures.py"
    assert metadata[b"catalogue"].decode() == load_catalogue().sha256
    train, validation, _ = sides(load_catalogue())
    seen = [item for item in train + validation if item.fold == "reward"]
    assert load_base_pictures().by_id.keys() == {item.item_id for item in seen}
    for webp in load_base_pictures().by_id[seen[0].item_id]:
        assert decode(webp, size=64).shape == (64, 64, 3)


@pytest.mark.parametrize(("shipped", "load"), [(SHIPPED, load_catalogue), (DRAWN, load_base_pictures)])
def test_a_damaged_file_is_refused(tmp_path: Path, shipped: Path, load: Callable[[Path], object]) -> None:
    for file in (shipped, shipped.with_suffix(".sha256")):
        shutil.copy(file, tmp_path)
    copy = tmp_path / shipped.name
    copy.write_bytes(copy.read_bytes()[:-1])
    with pytest.raises(DataError, match="damaged; restore it"):
        load(copy)
