"""The keys folder: what a server signs with, what a person checks with, and how to make one for development."""

from __future__ import annotations

import os
import secrets
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from vca.errors import ArtifactError
from vca.provenance.certificates import development_chain

CERTIFICATES = "certificates.pem"  # the signer's certificate, then those of its issuers
PRIVATE_KEY = "private_key.pem"
TRUST_ANCHORS = "trust_anchors.pem"  # the issuers whose signatures count
WATERMARK_KEY = "watermark.key"  # 64 hexadecimal digits
FILES = (CERTIFICATES, PRIVATE_KEY, TRUST_ANCHORS, WATERMARK_KEY)


@dataclass(frozen=True, kw_only=True)
class Keys:
    """What a keys folder holds; None for a file that it lacks. Who only checks needs the last two."""

    certificates: bytes | None = None
    private_key: bytes | None = field(default=None, repr=False)
    trust_anchors: bytes | None = None
    watermark_key: bytes | None = field(default=None, repr=False)

    @classmethod
    def load(cls, folder: Path) -> Keys:
        """Errors: ArtifactError where the folder holds no key at all, or one that can't be read."""
        found: dict[str, bytes] = {}
        for name in FILES:
            try:
                found[name] = (folder / name).read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                raise ArtifactError(f"{folder / name} can't be read ({error.strerror}); mend its permissions") from None
        if not found:
            raise ArtifactError(f"{folder} holds none of {', '.join(FILES)}; make development keys: vca keys {folder}")
        watermark_key = found.get(WATERMARK_KEY)
        return cls(
            certificates=found.get(CERTIFICATES),
            private_key=found.get(PRIVATE_KEY),
            trust_anchors=found.get(TRUST_ANCHORS),
            watermark_key=None if watermark_key is None else _from_hex(watermark_key, folder / WATERMARK_KEY),
        )


def create(folder: Path) -> None:
    """Development keys in a new folder: all four files or none, readable by their owner only.

    Errors: ArtifactError where `folder` exists or can't be made.
    """
    if folder.exists():
        raise ArtifactError(f"{folder} exists; keys are never overwritten, so choose another folder")
    chain = development_chain()
    contents = {
        CERTIFICATES: chain.certificates,
        PRIVATE_KEY: chain.private_key,
        TRUST_ANCHORS: chain.anchors,
        WATERMARK_KEY: secrets.token_hex(32).encode() + b"\n",
    }
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as place:
            work = Path(place) / folder.name
            work.mkdir(mode=0o700)
            for name, content in contents.items():
                descriptor = os.open(work / name, os.O_WRONLY | os.O_CREAT, 0o600)
                with os.fdopen(descriptor, "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
            os.rename(work, folder)  # fails where somebody else put something there meanwhile
    except OSError as error:
        raise ArtifactError(f"{folder} can't be made ({error.strerror}); choose another folder") from error


def _from_hex(text: bytes, path: Path) -> bytes:
    try:
        key = bytes.fromhex(text.decode("ascii"))
    except ValueError:  # UnicodeDecodeError is one
        key = b""
    if len(key) != 32:
        raise ArtifactError(f"{path} is no watermark key; it must hold 64 hexadecimal digits (openssl rand -hex 32)")
    return key
