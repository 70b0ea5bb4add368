"""The shipped files are what their digests say, and the base's pictures are the shipped base's."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from vca.data.emoji.catalogue import DRAWN, SHIPPED, caption, load_base_pictures, load_catalogue
from vca.data.emoji.people import PREFERRED_STYLE
from vca.data.emoji.source import sides
from vca.data.images import decode
from vca.errors import DataError
from vca.models.judge import Judge
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


def test_the_base_pictures_show_what_they_were_drawn_for() -> None:
    """By the judges: the caption rather than another one's, and the liked style where that was asked for."""
    judge, drawn = Judge.load(), load_base_pictures().by_id
    items = [load_catalogue().by_id[item_id] for item_id in random.Random(0).sample(sorted(drawn), 120)]
    pixels = np.stack([decode(drawn[item.item_id][n % 2], size=64) for n, item in enumerate(items)])
    features_BF = judge.features(images_BCHW=torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255)
    texts_BE = judge.embed_texts(texts=[caption(item, style=False) for item in items])
    scores_BB = judge.embed_features(features_BF=features_BF) @ texts_BE.T
    assert (scores_BB.diagonal() > scores_BB.roll(1, dims=1).diagonal()).float().mean() > 0.8
    seen_B = judge.style_logp(features_BF=features_BF).argmax(1) == judge.styles.index(PREFERRED_STYLE)
    asked_B = torch.tensor([item.style == PREFERRED_STYLE for item in items])
    assert (seen_B == asked_B).float().mean() > 0.65


@pytest.mark.parametrize(("shipped", "load"), [(SHIPPED, load_catalogue), (DRAWN, load_base_pictures)])
def test_a_damaged_file_is_refused(tmp_path: Path, shipped: Path, load: Callable[[Path], object]) -> None:
    for file in (shipped, shipped.with_suffix(".sha256")):
        shutil.copy(file, tmp_path)
    copy = tmp_path / shipped.name
    copy.write_bytes(copy.read_bytes()[:-1])
    with pytest.raises(DataError, match="damaged; restore it"):
        load(copy)
