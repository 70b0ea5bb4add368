"""Group commit: callers who write at the same time share one transaction.

What a commit costs is waiting for the disk, and that costs the same for one event as for fifty. Whoever comes first
works for all who came meanwhile; there is no thread of its own and no waiting for company.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class _Waiting(Generic[T, R]):
    def __init__(self, item: T) -> None:
        self.item = item
        self.result: R | BaseException | None = None


class Grouped(Generic[T, R]):
    """Thread-safe. `run` gets what is to be written, and gives a result or an error for each, or raises for all."""

    def __init__(self, run: Callable[[Sequence[T]], Sequence[R | BaseException]], *, most: int = 64) -> None:
        """most: items of one group."""
        self._run, self._most = run, most
        self._queue: deque[_Waiting[T, R]] = deque()
        self._turn = threading.Lock()

    def __call__(self, item: T) -> R:
        """Returns or raises what `run` made of it."""
        mine: _Waiting[T, R] = _Waiting(item)
        self._queue.append(mine)
        while mine.result is None:
            with self._turn:  # who waited here finds its item done, most of the time
                if mine.result is None:
                    self._work([self._queue.popleft() for _ in range(min(self._most, len(self._queue)))])
        if isinstance(mine.result, BaseException):
            raise mine.result
        return mine.result

    def _work(self, group: Sequence[_Waiting[T, R]]) -> None:
        try:
            results: Sequence[R | BaseException] = self._run([one.item for one in group])
        except BaseException as error:
            results = [error] * len(group)
        for one, result in zip(group, results, strict=True):
            one.result = result
