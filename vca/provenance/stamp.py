"""What a server does to every final picture: the watermark into its pixels, the credentials into its file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from vca.errors import ArtifactError
from vca.provenance.credentials import Facts, Signer
from vca.provenance.keys import CERTIFICATES, PRIVATE_KEY, WATERMARK_KEY, Keys
from vca.provenance.watermark import embed


def release_mark(release: str) -> int:
    """The watermark's payload for a release, 0 to 65535: there is room for no more than to tell releases apart."""
    return int.from_bytes(hashlib.sha256(release.encode()).digest()[:2], "big")


@dataclass(frozen=True, kw_only=True)
class Stamp:
    """Both layers; None switches one off. Threads may share it; a forked process needs its own."""

    signer: Signer | None
    watermark_key: bytes | None = field(repr=False)

    @classmethod
    def of(cls, keys: Keys, *, sign: bool, watermark: bool) -> Stamp:
        """Errors: ArtifactError where the keys of a layer that is switched on are missing or unusable."""
        signer = None
        if sign:
            if keys.certificates is None or keys.private_key is None:
                raise ArtifactError(f"signing needs {CERTIFICATES} and {PRIVATE_KEY}; add them or switch signing off")
            signer = Signer(certificates=keys.certificates, private_key=keys.private_key)
        if watermark and keys.watermark_key is None:
            raise ArtifactError(f"the watermark needs {WATERMARK_KEY}; add it or switch the watermark off")
        return cls(signer=signer, watermark_key=keys.watermark_key if watermark else None)

    def file(self, pixels_HWC: np.ndarray, *, facts: Facts, encode: Callable[[np.ndarray], bytes]) -> bytes:
        """The file of a uint8 RGB picture, with both layers. encode: to PNG, JPEG or WebP.

        Errors: SettingsError for a picture too small for the watermark.
        """
        if self.watermark_key is not None:
            pixels_HWC = embed(pixels_HWC, key=self.watermark_key, payload=release_mark(facts.release))
        data = encode(pixels_HWC)
        return data if self.signer is None else self.signer.sign(data, facts=facts)
