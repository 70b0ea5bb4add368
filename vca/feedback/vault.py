"""Keys: one per person, each encrypted with the store's master key. Without a person's key their words are noise.

AES-256-GCM (NIST SP 800-38D); a ciphertext is nonce (12 bytes) | sealed text and tag. What it belongs to (the row's id)
is authenticated with it, so a ciphertext that was moved to another row does not open.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import tempfile
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from vca.errors import ArtifactError

_NONCE = 12
_BYTES = 32


class Vault:
    """Seals and opens with the master key; Subject keys come out of it as `PersonKey`."""

    def __init__(self, master: bytes) -> None:
        """master: 32 bytes."""
        self._wrap = AESGCM(_derived(master, b"wrap"))
        self._hash = _derived(master, b"hash")

    @classmethod
    def load(cls, file: Path, *, create: bool) -> Vault:
        """The vault of the key in `file`: 64 hexadecimal digits. create: make a new key where there is none.

        Raises ArtifactError for a missing or unreadable key.
        """
        if create and not file.exists():
            _create(file)
        try:
            text = file.read_text(encoding="ascii").strip()
            master = bytes.fromhex(text)
        except FileNotFoundError:
            raise ArtifactError(
                f"no master key at {file} (feedback.key), but the store is not new; bring the key back from its "
                "backup: without it nothing that people wrote can be read"
            ) from None
        except (OSError, ValueError) as error:
            raise ArtifactError(
                f"the master key {file} can't be read ({error}); it holds 64 hexadecimal digits"
            ) from None
        if len(master) != _BYTES:
            raise ArtifactError(f"the master key {file} has {len(text)} digits; it holds 64 hexadecimal digits")
        return cls(master)

    def hmac(self, text: str) -> str:
        """A keyed hash of `text`, hexadecimal: equal texts look alike, and nobody without the key can guess them."""
        return hmac.new(self._hash, text.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()

    def new_person(self, subject_id: str) -> bytes:
        """A new person's key, wrapped, as it is stored."""
        return _seal(self._wrap, secrets.token_bytes(_BYTES), subject_id)

    def person(self, subject_id: str, wrapped: bytes) -> PersonKey:
        """Raises ArtifactError where `wrapped` was made with another master key, or for another person."""
        return PersonKey(_open(self._wrap, wrapped, subject_id))


class PersonKey:
    """Seals and opens one person's words."""

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)

    def seal(self, text: str, *, row: str) -> bytes:
        """row: the id of the row that the text belongs to."""
        return _seal(self._cipher, text.encode("utf-8", "surrogatepass"), row)

    def open(self, sealed: bytes, *, row: str) -> str:
        """Raises ArtifactError where it was not sealed with this key for this row."""
        return _open(self._cipher, sealed, row).decode("utf-8", "surrogatepass")


def _derived(master: bytes, use: bytes) -> bytes:
    return hmac.new(master, b"vca feedback " + use, hashlib.sha256).digest()


def _seal(cipher: AESGCM, data: bytes, belongs_to: str) -> bytes:
    nonce = os.urandom(_NONCE)
    return nonce + cipher.encrypt(nonce, data, belongs_to.encode())


def _open(cipher: AESGCM, sealed: bytes, belongs_to: str) -> bytes:
    try:
        return cipher.decrypt(sealed[:_NONCE], sealed[_NONCE:], belongs_to.encode())
    except (InvalidTag, ValueError):
        raise ArtifactError(
            f"what is stored under {belongs_to} does not open: it was made with another master key, or changed"
        ) from None


def _create(file: Path) -> None:
    """Whole or not at all, readable by its owner only, and never over a key that is there."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=file.parent)  # mode 0600
    with os.fdopen(handle, "w", encoding="ascii") as temporary:
        temporary.write(secrets.token_hex(_BYTES) + "\n")
        temporary.flush()
        os.fsync(temporary.fileno())
    try:
        os.link(name, file)
    except FileExistsError:  # another process was first
        pass
    finally:
        os.unlink(name)
