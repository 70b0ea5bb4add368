"""Spoilt copies of a picture, as a policy draws them when it hacks a reward: here the reward learns to dislike them.

Letters: H, W = height, width in pixels; C = 3 colours.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter

_Image = Image.Image
MIN_DIFFERENCE = 0.01  # mean absolute difference (0..1) below which a copy doesn't look spoilt


def _washed_out(image: _Image, rng: random.Random) -> _Image:
    page = Image.new("RGB", image.size, (255, 255, 255) if rng.random() < 0.6 else (200, 200, 200))
    return Image.blend(image, page, rng.uniform(0.35, 0.75))


def _over_contrast(image: _Image, rng: random.Random) -> _Image:
    return ImageEnhance.Contrast(ImageEnhance.Color(image).enhance(rng.uniform(1.2, 2.5))).enhance(
        rng.uniform(1.8, 4.0)
    )


def _blurred(image: _Image, rng: random.Random) -> _Image:
    return image.filter(ImageFilter.GaussianBlur(rng.uniform(1.2, 3.5)))


def _noisy(image: _Image, rng: random.Random) -> _Image:
    pixels_HWC = np.asarray(image, np.float32)
    noise_HWC = np.random.default_rng(rng.getrandbits(64)).normal(0, 255 * rng.uniform(0.07, 0.25), pixels_HWC.shape)
    return _from_pixels(pixels_HWC + noise_HWC)


def _off_colour(image: _Image, rng: random.Random) -> _Image:
    factor = rng.uniform(0.0, 0.25) if rng.random() < 0.5 else rng.uniform(2.5, 5.0)
    return ImageEnhance.Color(image).enhance(factor)


def _distorted(image: _Image, rng: random.Random) -> _Image:
    """Rows and columns pushed along sine waves."""
    pixels_HWC = np.asarray(image)
    for axis in (0, 1):
        length = pixels_HWC.shape[axis]
        phase, waves, reach = rng.uniform(0, 6.28), rng.uniform(1, 4), rng.uniform(1.5, 5.0)
        shifts = np.rint(reach * np.sin(phase + 2 * np.pi * waves * np.arange(length) / length)).astype(int)
        rows = np.moveaxis(pixels_HWC, axis, 0)
        pushed = np.stack([np.roll(row, shift, axis=0) for row, shift in zip(rows, shifts, strict=True)])
        pixels_HWC = np.moveaxis(pushed, 0, axis)
    return Image.fromarray(pixels_HWC)


def _pixelated(image: _Image, rng: random.Random) -> _Image:
    side = rng.randint(10, 22)
    small = image.resize((side, side), Image.Resampling.BILINEAR)
    return small.resize(image.size, rng.choice((Image.Resampling.NEAREST, Image.Resampling.BILINEAR)))


SPOILERS: dict[str, Callable[[_Image, random.Random], _Image]] = {
    "washed_out": _washed_out,
    "over_contrast": _over_contrast,
    "blurred": _blurred,
    "noisy": _noisy,
    "off_colour": _off_colour,
    "distorted": _distorted,
    "pixelated": _pixelated,
}


def spoil(encoded: bytes, rng: random.Random) -> tuple[str, bytes]:
    """How the copy was spoilt, and the copy as PNG: a way drawn by `rng` that can be seen in this picture.

    A black-and-white picture has no colour to lose: where a way changes next to nothing, the next one is tried.
    """
    image = Image.open(io.BytesIO(encoded)).convert("RGB")
    before_HWC = np.asarray(image, np.float32)
    for name in rng.sample(sorted(SPOILERS), len(SPOILERS)):
        copy = SPOILERS[name](image, rng)
        if np.abs(np.asarray(copy, np.float32) - before_HWC).mean() >= 255 * MIN_DIFFERENCE:
            break
    out = io.BytesIO()
    copy.save(out, "PNG")
    return name, out.getvalue()


def _from_pixels(pixels_HWC: NDArray[np.floating]) -> _Image:
    return Image.fromarray(np.clip(pixels_HWC, 0, 255).astype(np.uint8))
