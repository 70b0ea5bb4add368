"""Reading strangers' files: every failure becomes `Unusable`, which a source turns into a refused record."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import ijson

from vca.data.sources.base import Reason, Refused
from vca.errors import DataError
from vca.records import Picture

MIB = 2**20
T = TypeVar("T")


class Unusable(Exception):
    """A record, or a part of it, that can't be used."""

    def __init__(self, reason: Reason, uri: str, detail: str = "") -> None:
        super().__init__(detail)
        self.reason, self.uri, self.detail = reason, uri, detail

    def refused(self) -> Refused:
        return Refused(reason=self.reason, uri=self.uri, detail=self.detail)


def existing_folder(path: Path, *, what: str) -> Path:
    """The folder, or a DataError that says what should be there."""
    if not path.is_dir():
        raise DataError(f"{what}: no folder {path}; set data.sources.path to where the data set lies")
    return path


def read_picture(root: Path, relative: str, *, key: str, max_mb: int) -> Picture:
    """The bytes of the picture at `relative` below `root`. Errors: Unusable."""
    uri = f"{root.name}/{relative}"
    parts = PurePosixPath(relative)  # by its words alone: a folder that people linked elsewhere is still theirs
    if "\0" in relative or parts.is_absolute() or ".." in parts.parts:
        raise Unusable("outside_folder", uri, "the path leads out of the data set's folder")
    try:
        with (root / relative).open("rb") as file:
            data = file.read(max_mb * MIB + 1)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise Unusable("missing_file", uri) from None
    except (OSError, UnicodeEncodeError) as error:
        raise Unusable("missing_file", uri, str(error)) from None
    if len(data) > max_mb * MIB:
        raise Unusable("image_too_large", uri, f"more than {max_mb} MiB")
    return Picture(data=data, uri=uri, key=key)


def field(record: Any, name: str, kind: type[T], *, uri: str) -> T:
    """`record[name]`, which must be there and a `kind`. Errors: Unusable."""
    if not isinstance(record, dict):
        raise Unusable("wrong_type", uri, f"expected an object, found {type(record).__name__}")
    if name not in record:
        raise Unusable("missing_field", uri, name)
    value = record[name]
    if kind is float and type(value) is int:
        value = float(value)
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        raise Unusable("wrong_type", uri, f"{name}: expected {kind.__name__}, found {type(value).__name__}")
    return value


def text(record: Any, name: str, *, uri: str) -> str:
    """`record[name]` as text that is not blank. Errors: Unusable."""
    value = field(record, name, str, uri=uri).strip()
    if not value:
        raise Unusable("empty_text", uri, name)
    return value


def optional(record: dict[str, Any], name: str, kind: type[T], default: T, *, uri: str) -> T:
    """`record[name]`, or `default` where it is missing or null. Errors: Unusable for another type."""
    return default if record.get(name) is None else field(record, name, kind, uri=uri)


def load_json(path: Path, *, uri: str) -> Any:
    """A small JSON file. Errors: Unusable."""
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # ValueError: bad JSON, and bytes that are no text
        raise Unusable("invalid_json", uri, str(error)) from None
    except OSError as error:
        raise Unusable("missing_file", uri, str(error)) from None


def stream_array(path: Path, *, uri: str) -> Iterator[Any]:
    """The elements of a JSON file that holds one array, however large. Errors: Unusable where it stops being JSON."""
    try:
        with path.open("rb") as file:
            if not _opens_array(file.read(64)):
                raise Unusable("invalid_json", uri, "expected a JSON array")
            file.seek(0)
            yield from ijson.items(file, "item", use_float=True)
    except (ijson.JSONError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise Unusable("invalid_json", uri, f"the rest of the file is lost: {error}"[:300]) from None
    except OSError as error:
        raise Unusable("missing_file", uri, str(error)) from None


def _opens_array(start: bytes) -> bool:
    return start.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["


def state_of(path: Path) -> str:
    """Twelve hex digits that change when any file below `path` does, by name, size and time; contents aren't read."""
    digest = hashlib.sha256()
    files = _walk(path) if path.is_dir() else iter([path])
    for file in files:
        status = file.stat()
        digest.update(f"{file.relative_to(path)}\0{status.st_size}\0{status.st_mtime_ns}\n".encode("utf-8", "replace"))
    return digest.hexdigest()[:12]


def _walk(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            file = Path(parent, name)
            if file.is_file():
                yield file
