"""One thread owns the device. Work waits in a bounded queue and goes to it in batches that change at every turn.

A unit is one picture. At each turn the thread takes waiting units up to the batch's size, lets go of those whose
caller left or whose time is over, and advances all it holds at once: a scorer's unit is finished after one turn, a
generator's after as many as it has steps. Nothing ever waits for a whole batch to end.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from vca.monitoring import metrics

logger = logging.getLogger(__name__)


class Busy(Exception):
    """The queue is full, or the wait was longer than the deadline. `retry_after`: whole seconds until it may pay."""

    def __init__(self, message: str, *, retry_after: int, full: bool) -> None:
        super().__init__(message)
        self.retry_after, self.full = retry_after, full


class Stopping(Exception):
    """The server is shutting down and takes nothing new."""


@dataclass(eq=False, kw_only=True)
class Unit:
    """One picture's worth of work. The device thread sets `done`; `failed` says why it could not be done."""

    done: bool = False
    failed: Exception | None = None
    cancelled: bool = False
    arrived: float = field(default_factory=time.monotonic)
    deadline: float = math.inf
    seconds: float = 0.0  # its share of the device's time so far


U = TypeVar("U", bound=Unit)


class Device(Generic[U]):
    """The thread and its queue. `advance(units)` does one turn's work on all of them, in the device's thread."""

    def __init__(self, *, name: str, advance: Callable[[list[U]], None], batch: int, queue: int) -> None:
        self.name, self.advance, self.batch, self.queue = name, advance, batch, queue
        self._waiting: deque[tuple[U, asyncio.Future[None]]] = deque()
        self._active: list[tuple[U, asyncio.Future[None]]] = []
        self._changed = threading.Condition()
        self._stopping = False
        self._seconds_per_unit = 0.0  # moving average of what a unit costs, for retry_after
        self._thread = threading.Thread(target=self._work, name=f"device of {name}", daemon=True)
        metrics.QUEUE_CAPACITY.labels(name).set(queue)
        self._thread.start()

    async def run(self, units: Sequence[U]) -> None:
        """Have the units done, all or none. They are given up when the caller's task is cancelled.

        Raises Busy where the queue has no room for them or their deadline passes, Stopping while shutting down, and
        what `advance` raised where it failed.
        """
        loop = asyncio.get_running_loop()
        futures = [loop.create_future() for _ in units]
        with self._changed:
            if self._stopping:
                raise Stopping(f"{self.name} is shutting down; ask another replica")
            if len(self._waiting) + len(units) > self.queue:
                metrics.REJECTED.labels(self.name, "queue_full").inc(len(units))
                raise Busy(
                    f"{len(self._waiting)} pictures wait already, {self.queue} may",
                    retry_after=self._retry_after(),
                    full=True,
                )
            self._waiting.extend(zip(units, futures, strict=True))
            metrics.QUEUE_DEPTH.labels(self.name).set(len(self._waiting))
            self._changed.notify()
        try:
            await asyncio.gather(*futures)
        finally:
            for unit in units:  # after a failure or a cancellation the others are of no use either
                unit.cancelled = unit.cancelled or not unit.done
            for future in futures:
                future.cancel()

    def stop(self) -> None:
        """Take nothing new, finish what waits, end the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def _retry_after(self) -> int:
        return max(1, math.ceil(self._seconds_per_unit * len(self._waiting)))

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._active:
                    if self._stopping:
                        return
                    self._changed.wait()
                self._admit()
            if self._active:
                self._turn()

    def _admit(self) -> None:
        """Fill the batch from the queue; the caller holds the lock."""
        now = time.monotonic()
        while self._waiting and len(self._active) < self.batch:
            unit, future = self._waiting.popleft()
            if unit.cancelled:
                continue
            if now > unit.deadline:
                metrics.REJECTED.labels(self.name, "deadline").inc()
                unit.failed = Busy("the deadline passed in the queue", retry_after=self._retry_after(), full=False)
                _settle(unit, future)
                continue
            metrics.QUEUE_SECONDS.labels(self.name).observe(now - unit.arrived)
            self._active.append((unit, future))
        metrics.QUEUE_DEPTH.labels(self.name).set(len(self._waiting))

    def _turn(self) -> None:
        self._active = [pair for pair in self._active if not pair[0].cancelled]
        units = [unit for unit, _ in self._active]
        if not units:
            return
        started = time.monotonic()
        try:
            self.advance(units)
        except Exception as error:
            logger.exception("%s: a turn of %d pictures failed", self.name, len(units))
            for unit in units:
                unit.failed = unit.failed or error
        seconds = time.monotonic() - started
        metrics.BATCH_SIZE.labels(self.name).observe(len(units))
        metrics.TURN_SECONDS.labels(self.name).observe(seconds)
        for unit in units:
            unit.seconds += seconds / len(units)
            if not unit.done and unit.failed is None and time.monotonic() > unit.deadline:
                metrics.REJECTED.labels(self.name, "deadline").inc()
                unit.failed = Busy("the deadline passed", retry_after=self._retry_after(), full=False)
        finished = [pair for pair in self._active if pair[0].done or pair[0].failed is not None]
        for unit, future in finished:
            self._seconds_per_unit += 0.1 * (unit.seconds - self._seconds_per_unit)
            _settle(unit, future)
        self._active = [pair for pair in self._active if not (pair[0].done or pair[0].failed is not None)]


def _settle(unit: Unit, future: asyncio.Future[None]) -> None:
    """Tell the caller, in its own event loop; it may have left in the meantime."""

    def tell() -> None:
        if not future.done():
            if unit.failed is None:
                future.set_result(None)
            else:
                future.set_exception(unit.failed)

    future.get_loop().call_soon_threadsafe(tell)
