"""Decoding of strangers' pictures."""

from __future__ import annotations

import io

import numpy as np
import pytest
from data_layouts import image_bytes
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from vca.data.images import BadImage, decode, fitted, open_rgb, sharpness, store


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def test_transparency_becomes_white() -> None:
    image = Image.new("RGBA", (4, 4), (200, 0, 0, 0))
    image.putpixel((0, 0), (200, 0, 0, 255))
    pixels = decode(encoded(image), size=4)
    assert pixels.dtype == np.uint8
    assert pixels[0, 0].tolist() == [200, 0, 0]
    assert pixels[3, 3].tolist() == [255, 255, 255]


def test_palette_transparency_becomes_white() -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([9, 9, 9, 0, 255, 0])
    data = encoded(image, transparency=1)
    assert decode(data, size=4)[2, 2].tolist() == [255, 255, 255]


def test_sixteen_bit_grey_keeps_its_tones() -> None:
    image = Image.fromarray(np.full((4, 4), 32768, dtype=np.uint16))
    assert abs(int(decode(encoded(image), size=4)[0, 0, 0]) - 128) <= 1


def test_rotation_flag_is_obeyed() -> None:
    image = Image.new("RGB", (6, 4), (0, 0, 0))
    image.paste((255, 0, 0), (0, 0, 3, 4))  # left half red
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees to the right: what was left is on top
    opened = open_rgb(encoded(image, exif=exif), max_pixels=100)
    assert not opened.as_is
    assert opened.image.size == (4, 6)
    assert opened.image.getpixel((1, 0)) == (255, 0, 0)


def test_whole_picture_is_fitted_into_a_white_square() -> None:
    pixels = decode(encoded(Image.new("RGB", (20, 10), (0, 0, 255))), size=16)
    assert pixels.shape == (16, 16, 3)
    assert pixels[8, 8].tolist() == [0, 0, 255]
    assert pixels[0, 8].tolist() == [255, 255, 255]


def test_size_is_checked_before_the_pixels() -> None:
    bomb = encoded(Image.new("1", (4000, 4000)))
    with pytest.raises(BadImage) as error:
        open_rgb(bomb, max_pixels=1_000_000)
    assert error.value.reason == "image_too_large"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no picture",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        encoded(Image.new("RGB", (8, 8)), "GIF"),  # a format that is not allowed
        encoded(Image.new("RGB", (8, 8)), "TIFF"),
        image_bytes(1, format="JPEG")[:-200],
        image_bytes(1)[:-30],
    ],
)
def test_what_is_no_whole_picture_is_broken(data: bytes) -> None:
    with pytest.raises(BadImage) as error:
        store(data, image_size=64, max_pixels=10**6)
    assert error.value.reason == "broken_image"
    assert "0x" not in str(error.value)  # Pillow's words name an object in memory


def test_what_is_no_picture_is_said_in_plain_words() -> None:
    with pytest.raises(BadImage, match=r"^not a PNG, JPEG or WebP file$"):
        decode(b"no picture", size=4)


@settings(max_examples=150, deadline=None)
@given(
    format=st.sampled_from(["PNG", "JPEG", "WEBP"]),
    cuts=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=6),
    keep=st.floats(0, 1),
)
def test_corrupt_bytes_never_raise_anything_else(format: str, cuts: list[tuple[float, int]], keep: float) -> None:
    data = bytearray(image_bytes(7, format=format))
    for place, value in cuts:
        data[int(place * (len(data) - 1))] = value
    try:
        stored = store(bytes(data[: max(1, int(keep * len(data)))]), image_size=32, max_pixels=10**6)
    except BadImage:
        return
    assert max(stored.width, stored.height) <= 32


def test_bytes_that_are_right_already_stay_as_they_are() -> None:
    data = image_bytes(3)
    assert store(data, image_size=64, max_pixels=10**6).data == data


def test_large_pictures_shrink_and_keep_their_shape() -> None:
    data = image_bytes(3, size=(800, 400), format="JPEG")
    stored = store(data, image_size=200, max_pixels=10**6)
    with Image.open(io.BytesIO(stored.data)) as image:
        assert image.size == (200, 100) == (stored.width, stored.height)
        before = np.asarray(Image.open(io.BytesIO(data)).resize((200, 100)), dtype=float)
        assert np.abs(np.asarray(image, dtype=float) - before).mean() < 6
    assert stored.source_side == 400


def test_small_results_are_lossless() -> None:
    stored = store(image_bytes(3, mode="RGBA"), image_size=64, max_pixels=10**6)
    assert Image.open(io.BytesIO(stored.data)).format == "PNG"


def test_sharpness_is_the_variance_of_the_laplacian() -> None:
    grey = np.random.default_rng(0).integers(0, 256, (9, 7)).astype(np.uint8)
    values = grey.astype(float)
    laplacian = [
        values[y - 1, x] + values[y + 1, x] + values[y, x - 1] + values[y, x + 1] - 4 * values[y, x]
        for y in range(1, 8)
        for x in range(1, 6)
    ]
    assert sharpness(grey) == pytest.approx(np.var(laplacian), rel=1e-4)
    assert sharpness(np.full((9, 9), 77, dtype=np.uint8)) == 0


@given(width=st.integers(1, 300), height=st.integers(1, 300), size=st.sampled_from([8, 64, 65]))
def test_fitting_keeps_the_whole_picture_in_the_middle_of_white(width: int, height: int, size: int) -> None:
    """As Pillow's own `pad` does it, where that can."""
    image = Image.new("RGB", (width, height), (10, 200, 30))
    found = fitted(image, size=size)
    assert found.shape == (size, size, 3)
    if round(min(width, height) / max(width, height) * size) >= 1:
        expected = ImageOps.pad(image, (size, size), Image.Resampling.LANCZOS, color=(255, 255, 255))
        assert np.array_equal(found, np.array(expected))
    else:
        assert (found == (10, 200, 30)).all(-1).sum() == size
