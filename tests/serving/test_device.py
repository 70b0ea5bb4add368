"""The device's thread: batches that change at every turn, a bounded queue, deadlines, leaving, stopping."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.device import Busy, Device, Stopping, Unit


@dataclass(eq=False, kw_only=True)
class Count(Unit):
    """Counts to `turns`."""

    turns: int = 1
    taken: int = 0
    batches: list[int] = field(default_factory=list)


class Counter:
    """`advance` of the tests: can be held at a gate, and fails where it is told to."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.poison: Exception | None = None

    def __call__(self, units: list[Count]) -> None:
        self.entered.set()
        assert self.gate.wait(10)
        if self.poison is not None:
            raise self.poison
        for unit in units:
            unit.taken += 1
            unit.batches.append(len(units))
            unit.done = unit.taken == unit.turns


def device(counter: Counter, *, batch: int = 4, queue: int = 8) -> Device[Count]:
    return Device(name="test", advance=counter, batch=batch, queue=queue)


async def held(dev: Device[Count], counter: Counter) -> tuple[Count, asyncio.Task[None]]:
    """A unit that is inside its turn, until the gate opens."""
    counter.gate.clear()
    counter.entered.clear()
    unit = Count()
    task = asyncio.create_task(dev.run([unit]))
    await asyncio.to_thread(counter.entered.wait, 10)
    return unit, task


@settings(max_examples=30, deadline=None)
@given(turns=st.lists(st.integers(1, 6), min_size=1, max_size=20), batch=st.integers(1, 5))
def test_every_unit_gets_its_own_turns_and_batches_are_bounded(turns: list[int], batch: int) -> None:
    dev = device(Counter(), batch=batch, queue=len(turns))
    units = [Count(turns=number) for number in turns]

    async def all_of_them() -> None:
        await asyncio.gather(*(dev.run([unit]) for unit in units))

    asyncio.run(all_of_them())
    dev.stop()
    assert [unit.taken for unit in units] == turns
    assert max(size for unit in units for size in unit.batches) <= batch


def test_a_unit_joins_while_a_longer_one_is_under_way() -> None:
    async def scene() -> None:
        counter = Counter()
        dev = device(counter)
        counter.gate.clear()
        long = Count(turns=3)
        first = asyncio.create_task(dev.run([long]))
        await asyncio.to_thread(counter.entered.wait, 10)
        short = Count()
        second = asyncio.create_task(dev.run([short]))
        await asyncio.sleep(0.05)
        counter.gate.set()
        await asyncio.gather(first, second)
        assert long.batches == [1, 2, 1]
        assert short.batches == [2]
        dev.stop()

    asyncio.run(scene())


def test_a_full_queue_refuses_at_once_all_or_nothing_and_says_when_to_come_back() -> None:
    async def scene() -> None:
        counter = Counter()
        dev = device(counter, batch=1, queue=2)
        _, task = await held(dev, counter)
        waiting = asyncio.create_task(dev.run([Count()]))
        await asyncio.sleep(0)
        with pytest.raises(Busy, match="1 pictures wait already, 2 may") as refusal:
            await dev.run([Count(), Count()])
        assert refusal.value.full
        assert refusal.value.retry_after >= 1
        counter.gate.set()
        await asyncio.gather(task, waiting)
        await dev.run([Count(), Count()])  # there is room again
        dev.stop()

    asyncio.run(scene())


def test_come_back_when_what_waits_will_be_done() -> None:
    async def scene() -> None:
        counter = Counter()
        dev = device(counter, batch=1, queue=100)
        _, task = await held(dev, counter)
        await asyncio.sleep(0.3)  # what a unit costs, of which the moving average takes a tenth
        counter.gate.set()
        await task
        units = [Count() for _ in range(100)]
        held_again = await held(dev, counter)
        waiting = asyncio.create_task(dev.run(units))
        await asyncio.sleep(0)
        with pytest.raises(Busy) as refusal:
            await dev.run([Count()])
        assert refusal.value.retry_after >= 3
        counter.gate.set()
        await asyncio.gather(held_again[1], waiting)
        dev.stop()

    asyncio.run(scene())


def test_a_deadline_that_passes_in_the_queue_costs_the_device_nothing() -> None:
    async def scene() -> None:
        counter = Counter()
        dev = device(counter, batch=1)
        _, task = await held(dev, counter)
        late = Count(deadline=time.monotonic() + 0.02)
        waiting = asyncio.create_task(dev.run([late]))
        await asyncio.sleep(0.05)
        counter.gate.set()
        with pytest.raises(Busy, match="deadline"):
            await waiting
        await task
        assert late.taken == 0
        dev.stop()

    asyncio.run(scene())


def test_who_leaves_is_dropped_before_the_next_turn() -> None:
    async def scene() -> None:
        counter = Counter()
        dev = device(counter, batch=2)
        counter.gate.clear()
        units = [Count(turns=1000), Count(turns=2)]
        tasks = [asyncio.create_task(dev.run([unit])) for unit in units]
        await asyncio.to_thread(counter.entered.wait, 10)
        tasks[0].cancel()
        await asyncio.sleep(0.01)
        counter.gate.set()
        await tasks[1]
        assert units[0].taken <= 1
        with pytest.raises(asyncio.CancelledError):
            await tasks[0]
        dev.stop()

    asyncio.run(scene())


def test_a_turn_that_fails_fails_its_units_and_the_thread_lives() -> None:
    async def scene() -> None:
        counter = Counter()
        dev = device(counter)
        counter.poison = RuntimeError("out of memory")
        with pytest.raises(RuntimeError, match="out of memory"):
            await dev.run([Count(), Count()])
        counter.poison = None
        await dev.run([Count()])
        assert dev.alive
        dev.stop()

    asyncio.run(scene())


def test_stopping_finishes_what_was_admitted_and_takes_nothing_new() -> None:
    async def scene() -> None:
        counter = Counter()
        dev = device(counter, batch=1)
        _, task = await held(dev, counter)
        queued = Count(turns=3)
        waiting = asyncio.create_task(dev.run([queued]))
        await asyncio.sleep(0)
        stopping = asyncio.create_task(asyncio.to_thread(dev.stop))
        await asyncio.sleep(0.05)
        with pytest.raises(Stopping):
            await dev.run([Count()])
        counter.gate.set()
        await asyncio.gather(task, waiting, stopping)
        assert queued.taken == 3
        assert not dev.alive

    asyncio.run(scene())
