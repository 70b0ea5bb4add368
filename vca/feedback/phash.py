"""A perceptual hash: pictures that look alike differ in few of its 64 bits, re-saved and re-scaled ones included.

The signs of the lowest 8x8 frequencies of the picture's grey values, against their median (pHash's DCT hash).
"""

from __future__ import annotations

import numpy as np
from PIL import Image

SIDE, LOW = 32, 8
# the lowest rows of the orthonormal DCT-II, [LOW, SIDE]; a common scale, which is left out, changes no bit
_DCT = np.cos(np.pi * np.outer(np.arange(LOW), 2 * np.arange(SIDE) + 1) / (2 * SIDE))
_DCT[0] /= np.sqrt(2)


def phash(image: Image.Image) -> str:
    """64 bits, as 16 hexadecimal digits."""
    grey = np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS), dtype=np.float64)
    low = (_DCT @ grey @ _DCT.T).ravel()
    bits = low > np.median(low[1:])  # the first one is the mean brightness
    return np.packbits(bits).tobytes().hex()


def distance(one: str, other: str) -> int:
    """In how many bits two hashes differ."""
    return (int(one, 16) ^ int(other, 16)).bit_count()
