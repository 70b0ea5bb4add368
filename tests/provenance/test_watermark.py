"""The watermark: found wherever it was put, after what people do to pictures, and nowhere else."""

from __future__ import annotations

import hashlib
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vca.errors import SettingsError
from vca.provenance import watermark
from vca.provenance.watermark import detect, embed

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks/ is run from the repository and never installed

from benchmarks.provenance import CHANGES, psnr, texture

KEY = b"the tests' key"


def picture(kind: str, height: int, width: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    if kind == "flat":
        return np.full((height, width, 3), random.choice([0, 255, 37, 200], 3), np.uint8)
    if kind == "noise":
        return random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    rows_H11 = np.linspace(0, 255, height)[:, None, None]
    return np.broadcast_to(rows_H11, (height, width, 3)).astype(np.uint8)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["flat", "noise", "slope"]),
    height=st.integers(64, 300),
    width=st.integers(64, 300),
    seed=st.integers(0, 2**32),
    payload=st.integers(0, 2**16 - 1),
)
def test_what_goes_in_comes_out(kind: str, height: int, width: int, seed: int, payload: int) -> None:
    before = picture(kind, height, width, seed)
    kept = before.copy()
    after = embed(before, key=KEY, payload=payload)
    assert detect(after, key=KEY) == payload
    assert detect(before, key=KEY) is None
    assert detect(after, key=KEY + b"'") is None
    assert after.shape == before.shape
    assert after.dtype == np.uint8
    np.testing.assert_array_equal(before, kept)  # the caller's picture stays as it was
    np.testing.assert_array_equal(after[height // 8 * 8 :], before[height // 8 * 8 :])  # no whole block there


@pytest.mark.parametrize("grey", [0, 1, 128, 254, 255])
def test_plain_pictures_have_no_room_on_one_side_and_carry_it_on_the_other(grey: int) -> None:
    plain = np.full((64, 64, 3), grey, np.uint8)
    marked = embed(plain, key=KEY, payload=4711)
    assert detect(marked, key=KEY) == 4711
    assert psnr(plain, marked) > 37


def test_it_can_hardly_be_seen(icons: list[np.ndarray]) -> None:
    small = [psnr(icon, embed(icon, key=KEY, payload=1)) for icon in icons[::25]]
    assert np.median(small) > 38.5
    assert min(small) > 37.5
    large = texture(512, seed=0)
    assert psnr(large, embed(large, key=KEY, payload=1)) > 41


# Share of the pictures: floors a little under what benchmarks/provenance.py measures with more of them.
SURVIVES = {
    "PNG": (1, 1),
    "JPEG 90": (1, 1),
    "JPEG 75": (0.98, 1),
    "JPEG 50": (0.4, 1),
    "WebP 80": (0.9, 1),
    "blur 0.6 px": (0.8, 1),
    "blur 1 px": (0.3, 1),
    "10 brighter": (0.6, 1),
    "10 darker": (1, 1),
    "contrast 1.1": (0.75, 1),
    "to 3/4 and back": (0.98, 1),
    "to 1/2 and back": (0.55, 1),
    "to double and back": (1, 1),
}


@pytest.mark.parametrize("change", SURVIVES)
def test_what_it_outlives(change: str, icons: list[np.ndarray]) -> None:
    """At 64 px for the floor's share of the icons; at 512 px for each picture tried."""
    large = [texture(512, seed=1), np.asarray(Image.fromarray(icons[500]).resize((512, 512)))]
    for pixels, floor in zip((icons[::20], large), SURVIVES[change], strict=True):
        found = 0
        for number, before in enumerate(pixels):
            marked = Image.fromarray(embed(before, key=KEY, payload=number))
            found += detect(np.asarray(CHANGES[change](marked)), key=KEY) == number
        assert found >= floor * len(pixels)


def test_cropping_loses_it() -> None:
    """As the documentation says; the day that this fails, the documentation is to be mended."""
    marked = embed(texture(512, seed=2), key=KEY, payload=1)
    assert detect(np.asarray(CHANGES["1 px cut off"](Image.fromarray(marked))), key=KEY) is None


def chance(most_wrong: int) -> float:
    """That a codeword is by chance no further than this from 256 fair coins, summed over the codewords."""
    near = sum(math.comb(watermark.CODE_BITS, wrong) for wrong in range(most_wrong + 1))
    return float(watermark.PAYLOADS * near / 2**watermark.CODE_BITS)


def test_false_alarms_are_as_rare_as_the_documentation_says() -> None:
    assert chance(watermark.MOST_WRONG) == pytest.approx(1.4e-10, rel=0.01)


def test_the_arithmetic_of_false_alarms_holds(icons: list[np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    """At 90 of 256 the same arithmetic lets so many through that they can be counted: for keys and pictures at random.

    Flat, correlated and dark pictures count: if the bits of an unmarked picture weren't fair coins, these would tell.
    """
    most_wrong = 90
    expected = 1 - math.exp(-chance(most_wrong))
    assert 0.02 < expected < 0.2
    monkeypatch.setattr(watermark, "MOST_WRONG", most_wrong)
    plain = [np.full((64, 64, 3), grey, np.uint8) for grey in (0, 128, 255)]
    pixels = [*plain, *icons[::50], texture(64, seed=3), embed(icons[0], key=b"another's", payload=9)]
    tries = 400
    alarms = sum(detect(pixels[n % len(pixels)], key=b"key %d" % n) is not None for n in range(tries))
    spread = math.sqrt(tries * expected * (1 - expected))
    assert abs(alarms - tries * expected) < 4 * spread


def test_unmarked_pictures_and_other_keys_pictures_have_none(icons: list[np.ndarray]) -> None:
    assert [n for n, icon in enumerate(icons) if detect(icon, key=KEY) is not None] == []
    others = (embed(icon, key=b"another's", payload=n) for n, icon in enumerate(icons[::2]))
    assert [n for n, icon in enumerate(others) if detect(icon, key=KEY) is not None] == []


def test_a_picture_marked_by_an_earlier_version_is_still_found() -> None:
    """Where the marks are, and what they say, follows from the key by this arithmetic for ever."""
    bit_NF, start_NF = watermark._places(KEY, 8, 8)
    form = repr((watermark.SIDE, watermark.FREQUENCIES, [watermark._step(texture(side, seed=0)) for side in (64, 512)]))
    made = (
        form.encode()
        + bit_NF.astype("<i8").tobytes()
        + start_NF.astype("<f4").tobytes()
        + watermark._codebook(KEY).tobytes()
    )
    assert hashlib.sha256(made).hexdigest()[:16] == "c498919f3abce634"


@pytest.mark.parametrize("payload", [-1, 2**16])
def test_payload_out_of_range(payload: int) -> None:
    with pytest.raises(SettingsError, match=rf"{payload}; allowed is 0 to 65535"):
        embed(np.zeros((64, 64, 3), np.uint8), key=KEY, payload=payload)


def test_too_small_a_picture() -> None:
    small = np.zeros((63, 64, 3), np.uint8)
    with pytest.raises(SettingsError, match="64x63 px are too few"):
        embed(small, key=KEY, payload=0)
    assert detect(small, key=KEY) is None
