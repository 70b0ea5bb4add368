"""Pictures at the door: out of JSON, decoded safely, and encoded for the answer."""

from __future__ import annotations

import base64
import binascii
import io
from typing import Any

from PIL import Image

from serving.drawing import Pixels
from serving.refusal import Refused
from vca.data.images import BadImage, fitted, open_rgb
from vca.service import ServingSettings

FORMATS = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP"}
_DATA_URL = "data:image/"


def picture_bytes(value: Any, *, param: str = "image") -> bytes:
    """A picture's own bytes from what JSON carries: base64, or a data URL of it. Nothing is fetched from anywhere."""
    if isinstance(value, bytes):
        if value.startswith((b"\x89PNG", b"\xff\xd8", b"RIFF")):
            return value
        value = value.decode("latin-1")
    if not isinstance(value, str):
        raise Refused(f"{param}: expected a picture in base64, got {type(value).__name__}", param=param)
    if value.startswith(_DATA_URL):
        value = value.partition(",")[2]
    elif "://" in value[:20]:
        raise Refused(f"{param}: addresses are not fetched; send the picture itself in base64", param=param)
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise Refused(f"{param}: neither a picture nor base64 of one", param=param) from None


def open_picture(data: bytes, *, size: int, limits: ServingSettings, param: str = "image") -> Pixels:
    """[size, size, 3]: the whole picture, upright, fitted into a white square.

    Raises Refused: 413 for one with too many pixels, before any is decoded; 422 for one that is broken.
    """
    try:
        image = open_rgb(data, max_pixels=limits.max_pixels, fit=size).image
    except BadImage as error:
        if error.reason == "image_too_large":
            raise Refused(f"{param}: {error}", status=413, code=error.reason, param=param) from None
        raise Refused(f"{param}: {error}; send a whole one", status=422, code="invalid_image", param=param) from None
    return fitted(image, size=size)


def encode(pixels: Pixels, kind: str, quality: int) -> bytes:
    """A file of format `kind` (of FORMATS); quality 0 to 100 for JPEG and WebP, whose 100 is lossless."""
    out = io.BytesIO()
    options: dict[str, dict[str, Any]] = {
        "png": {"compress_level": 1},  # a third of the time, a fifth more bytes
        "jpeg": {"quality": max(1, min(quality, 95)), "subsampling": 0},
        "webp": {"lossless": quality == 100, "quality": quality},
    }
    Image.fromarray(pixels).save(out, FORMATS[kind], **options[kind])
    return out.getvalue()
