"""PNG files: a plain one, and one that somebody changed without breaking it."""

from __future__ import annotations

import io
import zlib

import numpy as np
from PIL import Image


def png(pixels_HWC: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels_HWC).save(out, "PNG")
    return out.getvalue()


def repainted(png: bytes) -> bytes:
    """The PNG with one pixel a shade off: a whole file that every viewer opens, its credentials where they were."""
    pixels = np.array(Image.open(io.BytesIO(png)))
    pixels[5, 5] ^= 1
    start = png.index(b"IDAT") - 4
    length = int.from_bytes(png[start : start + 4], "big")
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    body = b"IDAT" + zlib.compress(rows)
    chunk = (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
    return png[:start] + chunk + png[start + 12 + length :]
