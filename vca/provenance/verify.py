"""Where does a picture come from? Both layers, asked of a file that strangers may have made."""

from __future__ import annotations

from typing import Literal

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict

from vca.data.images import BadImage, open_rgb
from vca.provenance.credentials import Credentials, read
from vca.provenance.watermark import detect

MAX_PIXELS = 20_000_000  # looking for the watermark takes 22 bytes a pixel
DRAWN_PX = (64, 512, 768, 1024)  # sides of the square pictures that models draw: where a copy of another size came from


class Findings(BaseModel):
    """payload: the watermark's, where one was found: 0 to 65535."""

    model_config = ConfigDict(frozen=True)

    credentials: Credentials
    watermark: Literal["found", "not found", "not looked for"]
    payload: int | None = None

    @property
    def tampered(self) -> bool:
        """The file was changed after it was signed."""
        return self.credentials.state == "invalid"

    @property
    def genuine(self) -> bool:
        """A key that others lack vouches that VCA drew it, and nothing speaks against it.

        With the watermark alone nothing tells whether the picture was changed since.
        """
        signed = self.credentials.state == "trusted" and self.credentials.facts is not None
        return not self.tampered and (signed or self.watermark == "found")


def verify(data: bytes, *, watermark_key: bytes | None, trust_anchors: bytes | None) -> Findings:
    """What a PNG, JPEG or WebP file tells of its origin. Without a key the watermark isn't looked for.

    Errors: BadImage for bytes that are no picture, or one of more than 20 million pixels, and hold no credentials
    either; ArtifactError for trust anchors that are no certificates.
    """
    found = read(data, trust_anchors=trust_anchors)
    try:
        image = open_rgb(data, max_pixels=MAX_PIXELS).image
    except BadImage:
        if found.state == "none":
            raise
        return Findings(credentials=found, watermark="not looked for")  # a byte was changed that no decoder forgives
    if watermark_key is None:
        return Findings(credentials=found, watermark="not looked for")
    payload = _payload(image, watermark_key)
    return Findings(credentials=found, watermark="not found" if payload is None else "found", payload=payload)


def in_words(findings: Findings) -> list[str]:
    """The findings for people who never heard of credentials and watermarks: the verdict, then what it rests on."""
    found = findings.credentials
    lines = {
        "none": "no signature",
        "trusted": f"signed by {found.issuer}, unchanged since",
        "untrusted": f"signed, unchanged since, but by an unknown issuer: anyone could have done it ({found.reason})",
        "invalid": f"the signature doesn't fit the file any more ({found.reason})",
    }
    marks = {
        "found": f"VCA's watermark is there (release mark {findings.payload})",
        "not found": "no watermark of this key",
        "not looked for": "watermark not looked for: that needs its key and a whole picture",
    }
    words = [_verdict(findings), lines[found.state], marks[findings.watermark]]
    if found.facts:
        said = "it states" if found.state == "trusted" else "it claims, which proves nothing"
        facts = f"release {found.facts.release}, request {found.facts.request_id}, model {found.facts.model}"
        words.insert(2, f"{said}: {facts}")
    return words


def _verdict(findings: Findings) -> str:
    if findings.tampered:
        return "changed after signing"
    if findings.genuine:
        since = "unchanged since" if findings.credentials.state == "trusted" else "perhaps changed since"
        return f"made by VCA, {since}"
    return "nothing proves that VCA made it"


def _payload(image: Image.Image, key: bytes) -> int | None:
    sizes = [image.size]
    if image.width == image.height:
        sizes += [(side, side) for side in DRAWN_PX if side != image.width]
    for size in sizes:
        pixels_HWC = np.asarray(image.resize(size, Image.Resampling.LANCZOS))  # a copy where the size stays
        payload = detect(pixels_HWC, key=key)
        if payload is not None:
            return payload
    return None
