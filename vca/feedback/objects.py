"""Pictures, kept under the SHA-256 of their bytes: a folder, or whatever pyarrow reaches (s3://, gs://).

A picture is there whole or not at all, and the same picture is kept once. Keys come from digests only, never from words
of people, so no path can lead elsewhere.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor

from pyarrow import fs

from vca.errors import ArtifactError
from vca.feedback.errors import StoreDown

_DIGEST = re.compile(r"[0-9a-f]{64}")
_PART, _REQUESTS = 100, 32  # a remote store answers one question at a time: ask many at once


class Objects:
    """Thread-safe."""

    def __init__(self, place: str) -> None:
        """place: a folder or an address; its folder is made where it is missing."""
        self.place = place
        try:
            if "://" in place:
                self._files, self._root = fs.FileSystem.from_uri(place)
            else:
                self._files, self._root = fs.LocalFileSystem(), place
                self._files.create_dir(self._root, recursive=True)
        except (OSError, ValueError) as error:
            raise ArtifactError(f"feedback.objects {place}: {' '.join(str(error).split())[:200]}") from None
        self._local = isinstance(self._files, fs.LocalFileSystem)

    def put(self, data: bytes) -> str:
        """Keep `data`; its digest. Raises StoreDown."""
        digest = hashlib.sha256(data).hexdigest()
        path = self._path(digest)
        try:
            if self._files.get_file_info(path).type is fs.FileType.File:
                return digest
            if not self._local:  # an object appears whole when its upload ends
                self._write(path, data)
                return digest
            self._files.create_dir(path.rpartition("/")[0], recursive=True)
            building = f"{path}.{secrets.token_hex(4)}"
            self._write(building, data)
            self._files.move(building, path)
        except OSError as error:
            raise StoreDown(f"pictures can't be kept in {self.place} ({_short(error)}); try again") from error
        return digest

    def get(self, digest: str) -> bytes | None:
        """The picture; None where there is none, or its bytes are no longer those. Raises StoreDown."""
        try:
            with self._files.open_input_stream(self._path(digest)) as file:
                data = bytes(file.read())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreDown(f"pictures can't be read from {self.place} ({_short(error)}); try again") from error
        return data if hashlib.sha256(data).hexdigest() == digest else None

    def sizes(self, digests: Collection[str]) -> dict[str, int]:
        """Bytes of the pictures that are there, of these; contents are not read. Raises StoreDown."""
        paths = {self._path(digest): digest for digest in digests}
        names = list(paths)
        parts = [names[start : start + _PART] for start in range(0, len(names), _PART)]
        try:
            with ThreadPoolExecutor(1 if self._local else _REQUESTS) as pool:
                found = [info for part in pool.map(self._files.get_file_info, parts) for info in part]
        except OSError as error:
            raise StoreDown(f"pictures can't be looked up in {self.place} ({_short(error)}); try again") from error
        return {paths[info.path]: info.size for info in found if info.type is fs.FileType.File}

    def delete(self, digest: str) -> bool:
        """Whether there was one. Raises StoreDown."""
        try:
            self._files.delete_file(self._path(digest))
        except FileNotFoundError:
            return False
        except OSError as error:
            raise StoreDown(f"pictures can't be deleted from {self.place} ({_short(error)}); try again") from error
        return True

    def _write(self, path: str, data: bytes) -> None:
        with self._files.open_output_stream(path) as file:
            file.write(data)

    def _path(self, digest: str) -> str:
        if not _DIGEST.fullmatch(digest):
            raise ValueError(f"no SHA-256 digest: {digest[:80]!r}")
        return f"{self._root}/{digest[:2]}/{digest}"


def _short(error: OSError) -> str:
    return " ".join(str(error).split())[:200]
