"""Records that can't be used, each with its place, its reason and what was found: one JSON line each, none lost."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import TracebackType

from vca.data.sources.base import Refused

FILE_NAME = "quarantine.jsonl"
DETAIL_CHARS = 300


class Quarantine:
    """Appends to `path`. `by_source[source][reason]` counts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.by_source: dict[str, Counter[str]] = {}
        self._lines = path.open("w", encoding="utf-8")

    def add(self, refused: Refused, *, source: str) -> None:
        """Keep one refused record in mind and on disk."""
        self.by_source.setdefault(source, Counter())[refused.reason] += 1
        line = {"source": source, "reason": refused.reason, "uri": refused.uri, "detail": refused.detail[:DETAIL_CHARS]}
        # ASCII only, so that a lone surrogate or a control character in a record can't break the file
        self._lines.write(json.dumps(line) + "\n")

    def __enter__(self) -> Quarantine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lines.close()
