"""Decoding pictures that strangers made: safely, to RGB on white, within limits, and into the form that shards keep.

Only PNG, JPEG and WebP are ever opened, whatever the file is called, and the size is checked before the pixels are.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "WEBP")
NO_PICTURE = "not a PNG, JPEG or WebP file"
SMALL_PX = 128  # up to this side pictures are kept lossless: they are icons, and JPEG would ring around their edges
JPEG_QUALITY = 95
MAX_PIXELS = 64_000_000  # a shard's pictures are far smaller; this only stops a forged one


class BadImage(Exception):
    """A picture that can't be used. `reason` is the quarantine's word for it, the text says what was found."""

    def __init__(self, reason: Literal["broken_image", "image_too_large"], detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A checked picture as a shard keeps it: at most `image_size` px on its longer side, RGB, nothing hidden.

    source_side: shorter side of the original in px. sharpness: variance of the Laplacian of the stored picture's grey
    values (0..255), low where it is blurred or flat.
    """

    data: bytes = field(repr=False)
    width: int
    height: int
    source_side: int
    sharpness: float


class Opened(NamedTuple):
    """image: RGB on white, upright. as_is: the bytes already are exactly that. side: the original's shorter, in px."""

    image: Image.Image
    as_is: bool
    side: int


def open_rgb(data: bytes, *, max_pixels: int, fit: int | None = None) -> Opened:
    """Decode. fit: the side in px it will be shrunk to, which lets a JPEG be decoded at a fraction of its size.

    Errors: BadImage, and nothing else whatever the bytes are.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of bombs below our own limit, and of odd EXIF
            image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
            if image.width * image.height > max_pixels:
                raise BadImage(
                    "image_too_large", f"{image.width}x{image.height} px, allowed are {max_pixels} px in all"
                )
            side = min(image.size)  # before `draft`, which changes it
            if fit is not None:
                image.draft("RGB", (2 * fit, 2 * fit))
            image.load()
            plain = image.mode == "RGB" and "transparency" not in image.info and getattr(image, "n_frames", 1) == 1
            if plain and image.getexif().get(0x0112, 1) == 1:
                return Opened(image, True, side)
            return Opened(_on_white(ImageOps.exif_transpose(image)), False, side)
    except BadImage:
        raise
    except UnidentifiedImageError:  # its own words name an object in memory
        raise BadImage("broken_image", NO_PICTURE) from None
    except Image.DecompressionBombError as error:
        raise BadImage("image_too_large", str(error)) from None
    except Exception as error:  # Pillow's decoders fail in a dozen types; each of them means that the file is broken
        raise BadImage("broken_image", f"{type(error).__name__}: {error}"[:200]) from None


def store(data: bytes, *, image_size: int, max_pixels: int) -> Stored:
    """Check a picture and bring it into the form that shards keep. Bytes that already are in it stay as they are."""
    image, as_is, side = open_rgb(data, max_pixels=max_pixels, fit=image_size)
    if max(image.size) > image_size:
        image.thumbnail((image_size, image_size), Image.Resampling.LANCZOS, reducing_gap=2.0)
        as_is = False
    grey = np.asarray(image.convert("L"))
    return Stored(
        data=data if as_is else encode(image),
        width=image.width,
        height=image.height,
        source_side=side,
        sharpness=sharpness(grey),
    )


def encode(image: Image.Image) -> bytes:
    """PNG for small pictures, JPEG without chroma subsampling for the others."""
    out = io.BytesIO()
    if max(image.size) <= SMALL_PX:
        image.save(out, "PNG")
    else:
        image.save(out, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return out.getvalue()


def decode(data: bytes, *, size: int) -> np.ndarray:
    """[size, size, 3] uint8 RGB: the whole picture, fitted into a white square. Errors: BadImage."""
    return fitted(open_rgb(data, max_pixels=MAX_PIXELS, fit=size).image, size=size)


def fitted(image: Image.Image, *, size: int) -> np.ndarray:
    """[size, size, 3] uint8: the whole RGB picture in the middle of a white square; its thinner side is 1 px at least.

    Pillow's own `pad` refuses pictures more than twice as thin as the square is wide.
    """
    if image.size == (size, size):
        return np.array(image)
    longer = max(image.size)
    width, height = (max(1, round(side / longer * size)) for side in image.size)
    canvas = Image.new("RGB", (size, size), (255, 255, 255))
    place = round((size - width) * 0.5), round((size - height) * 0.5)
    canvas.paste(image.resize((width, height), Image.Resampling.LANCZOS), place)
    return np.array(canvas)


def sharpness(grey: np.ndarray) -> float:
    """Variance of the 4-neighbour Laplacian of grey [H, W] uint8; 0 for pictures below 3 px."""
    if min(grey.shape) < 3:
        return 0.0
    values = grey.astype(np.int16)
    centre = values[1:-1, 1:-1]
    laplacian = values[:-2, 1:-1] + values[2:, 1:-1] + values[1:-1, :-2] + values[1:-1, 2:] - (centre << 2)
    return float(np.var(laplacian, dtype=np.float32))


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion clips everything above 255 to white
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    if image.mode in ("LA", "PA", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode == "RGBA":
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
