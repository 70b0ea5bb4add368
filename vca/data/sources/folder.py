"""What all sources that read a folder share."""

from __future__ import annotations

from pathlib import Path

from vca.data.settings import FolderSettings, source_name
from vca.data.sources.files import read_picture, state_of
from vca.data.splits import group_of, unit
from vca.errors import DataError
from vca.records import Picture


class FolderSource:
    """Holds the settings. scratch: an empty folder for what has to be remembered on disk while reading."""

    people = 0
    published_split = False
    brings_pairs = False

    def __init__(self, settings: FolderSettings, *, seed: int, max_file_mb: int, scratch: Path) -> None:
        self.declares_split = self.published_split or settings.keep_split
        self.declares_role = settings.keep_split
        self.make_negatives = not (self.brings_pairs or settings.keep_split)
        self.name = source_name(settings)
        self.path = settings.path
        self.settings = settings
        self.seed = seed
        self.max_file_mb = max_file_mb
        self.scratch = scratch

    def total(self) -> int | None:
        return None

    def watermark(self) -> str:
        return self._state(self.path)

    def _state(self, path: Path) -> str:
        if not self.path.exists():
            raise DataError(
                f"{self.name}: {self.path} does not exist; set data.sources.path to where the data set lies"
            )
        return state_of(path)

    def chosen(self, record_id: str) -> bool:
        """Whether this dialogue is in the share of the data set that the settings ask for."""
        return unit(group_of(record_id), salt=f"fraction{self.seed}") < self.settings.fraction

    def picture(self, relative: str, *, key: str, root: Path | None = None) -> Picture:
        """Errors: Unusable."""
        return read_picture(root or self.path, relative, key=key, max_mb=self.max_file_mb)
