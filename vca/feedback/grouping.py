"""Group commit: callers who write at the same time share one transaction.

What a commit costs is waiting for the disk, and that costs the same for one event as for fifty. Whoever comes first
works for all who came meanwhile; there is no thread of its own, and who is alone waits for nobody.

Callers who were just answered come again at once if they have more to write, but not before the next group could
begin: two halves would take turns, each in small groups. So a group waits until as many are there as were at the end
of the last one, answered or waiting, for GATHER_S at most.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

GATHER_S = 0.001  # for an answer to be read and the next item to come

T = TypeVar("T")
R = TypeVar("R")


class _Waiting(Generic[T, R]):
    """woken: it is done, or it is first in the queue and has to do the work."""

    def __init__(self, item: T) -> None:
        self.item = item
        self.result: R | BaseException | None = None
        self.woken = threading.Event()


class Grouped(Generic[T, R]):
    """Thread-safe. `run` gets what is to be written, and gives a result or an error for each, or raises for all."""

    def __init__(self, run: Callable[[Sequence[T]], Sequence[R | BaseException]], *, most: int = 64) -> None:
        """most: items of one group."""
        self._run, self._most = run, most
        self._lock = threading.Lock()
        self._enough = threading.Condition(self._lock)
        self._queue: deque[_Waiting[T, R]] = deque()
        self._busy = False  # somebody works, or was woken to
        self._expected = 1  # callers of the next group

    def __call__(self, item: T) -> R:
        """Returns or raises what `run` made of it."""
        mine: _Waiting[T, R] = _Waiting(item)
        with self._lock:
            self._queue.append(mine)
            if len(self._queue) >= self._expected:
                self._enough.notify()
            first, self._busy = not self._busy, True
        if not first:
            mine.woken.wait()
        if mine.result is None:
            self._work()
        assert mine.result is not None
        if isinstance(mine.result, BaseException):
            raise mine.result
        return mine.result

    def _work(self) -> None:
        """Write the next group, whose first item is the caller's; then wake it, and who writes the next one."""
        with self._lock:
            self._enough.wait_for(lambda: len(self._queue) >= self._expected, timeout=GATHER_S)
            group = [self._queue.popleft() for _ in range(min(self._most, len(self._queue)))]
        try:
            results: Sequence[R | BaseException] = self._run([one.item for one in group])
        except BaseException as error:
            results = [error] * len(group)
        for one, result in zip(group, results, strict=True):
            one.result = result
        with self._lock:
            following = self._queue[0] if self._queue else None
            self._busy = following is not None
            self._expected = min(self._most, len(group) + len(self._queue))
        for one in group:
            one.woken.set()
        if following is not None:
            following.woken.set()
