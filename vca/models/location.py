"""Where a base model lies, and which one it is.

A location is one of
* `package:NAME`: weights shipped inside this package, under `vca/models/base/NAME`;
* a path to a folder;
* a Hugging Face Hub id, `ORGANISATION/NAME`;
* `s3://…`, `gs://…` or `oci://…`: a bucket or an image that the platform mounts as a folder; the environment variable
  VCA_MODEL_MOUNT names the mount, and `s3://bucket/key` lies at `$VCA_MODEL_MOUNT/s3/bucket/key`.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from vca.errors import ArtifactError

MOUNT_VARIABLE = "VCA_MODEL_MOUNT"
SHIPPED = Path(__file__).parent / "base"

_MOUNTED = re.compile(r"(s3|gs|oci)://(.+)")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# Files that decide what a model computes; notes, licences and model cards do not change its digest.
_WEIGHTS_AND_SETTINGS = {".safetensors", ".json", ".txt", ".jinja", ".model"}


def resolve(location: str) -> str:
    """The folder that `location` stands for, or the hub id itself, as `from_pretrained` takes it.

    Raises ArtifactError where nothing is there.
    """
    if location.startswith("package:"):
        name = location.removeprefix("package:")
        shipped = sorted(folder.name for folder in SHIPPED.iterdir() if folder.is_dir()) if SHIPPED.is_dir() else []
        if name not in shipped:
            raise ArtifactError(
                f"model location {location!r}: this package ships {', '.join(shipped) or 'no weights'}; "
                "choose one of these or run `make base-models`"
            )
        return str(SHIPPED / name)
    if match := _MOUNTED.fullmatch(location):
        mount = os.environ.get(MOUNT_VARIABLE)
        if not mount:
            raise ArtifactError(
                f"model location {location!r} needs a mounted folder: set {MOUNT_VARIABLE} to where it is mounted"
            )
        folder = Path(mount, *match.groups())
        if not folder.is_dir():
            raise ArtifactError(
                f"model location {location!r}: nothing is mounted at {folder}; check {MOUNT_VARIABLE}={mount}"
            )
        return str(folder)
    folder = Path(location).expanduser()
    if location and folder.is_dir():
        return str(folder)
    if _HUB_ID.fullmatch(location):
        return location
    raise ArtifactError(
        f"model location {location!r} is no folder; allowed: a folder, package:NAME, a hub id ORGANISATION/NAME, "
        "s3://…, gs://…, oci://…"
    )


def digest(location: str) -> str:
    """A fingerprint of the model at `location`, so that an adapter can refuse to run on another base.

    For a folder: `sha256:` over the names and contents of its weight and settings files, wherever it lies. For a hub
    id: `hub:ID@COMMIT`, the commit that is in the local cache or, failing that, the newest on the hub.
    """
    resolved = resolve(location)
    if not Path(resolved).is_dir():
        return f"hub:{resolved}@{_hub_commit(resolved)}"
    total = hashlib.sha256()
    files = [f for f in Path(resolved).rglob("*") if f.is_file() and f.suffix in _WEIGHTS_AND_SETTINGS]
    if not files:
        raise ArtifactError(f"model location {location!r}: the folder {resolved} holds no weights")
    for file in sorted(files, key=lambda f: f.relative_to(resolved).as_posix()):
        with file.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        total.update(f"{file.relative_to(resolved).as_posix()} {content}\n".encode())
    return f"sha256:{total.hexdigest()}"


def _hub_commit(model_id: str) -> str:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model_id, allow_patterns=["config.json", "model_index.json"])).name
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"model location {model_id!r} is neither a folder nor found on the Hugging Face Hub; check the spelling, "
            "the network, or give a folder"
        ) from error
