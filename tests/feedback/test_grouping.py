from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from vca.feedback import grouping
from vca.feedback.grouping import Grouped


def test_everybody_gets_their_own_answer_and_nothing_is_done_twice() -> None:
    groups: list[list[int]] = []
    inside = threading.Lock()

    def run(items: Sequence[int]) -> list[int | BaseException]:
        assert inside.acquire(blocking=False), "two groups at once"
        groups.append(list(items))
        inside.release()
        return [ValueError(str(item)) if item % 7 == 0 else item * 2 for item in items]

    grouped: Grouped[int, int] = Grouped(run, most=5)

    def call(item: int) -> int | str:
        try:
            return grouped(item)
        except ValueError as error:
            return str(error)

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(call, range(500)))

    assert answers == [str(item) if item % 7 == 0 else item * 2 for item in range(500)]
    assert sorted(item for group in groups for item in group) == list(range(500))
    assert max(map(len, groups)) <= 5


def test_who_comes_while_another_works_shares_the_next_turn() -> None:
    groups: list[list[int]] = []
    working, go_on = threading.Event(), threading.Event()

    def run(items: Sequence[int]) -> list[int | BaseException]:
        groups.append(list(items))
        working.set()
        assert go_on.wait(60)
        return list(items)

    grouped: Grouped[int, int] = Grouped(run)
    with ThreadPoolExecutor(9) as pool:
        first = pool.submit(grouped, 0)
        assert working.wait(60)
        others = [pool.submit(grouped, item) for item in range(1, 9)]
        while len(grouped._queue) < 8:
            pass
        go_on.set()
        assert [one.result() for one in (first, *others)] == list(range(9))
    assert groups[0] == [0]
    assert sorted(groups[1]) == list(range(1, 9))
    assert len(groups) == 2


def test_a_group_waits_for_those_who_were_just_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouping, "GATHER_S", 60)
    groups: list[list[int]] = []
    working, go_on = threading.Event(), threading.Event()

    def run(items: Sequence[int]) -> list[int | BaseException]:
        groups.append(sorted(items))
        working.set()
        assert go_on.wait(60)
        return list(items)

    grouped: Grouped[int, int] = Grouped(run)
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(lambda: (grouped(0), grouped(3)))
        assert working.wait(60)
        others = [pool.submit(grouped, item) for item in (1, 2)]
        while len(grouped._queue) < 2:
            pass
        go_on.set()
        assert [first.result(), *(one.result() for one in others)] == [(0, 3), 1, 2]
    assert groups == [[0], [1, 2, 3]]


def test_what_fails_for_all_is_raised_for_all_and_the_next_ones_are_served() -> None:
    down = [True]

    def run(items: Sequence[int]) -> list[int | BaseException]:
        if down[0]:
            raise OSError("away")
        return list(items)

    grouped: Grouped[int, int] = Grouped(run)
    with pytest.raises(OSError, match="away"):
        grouped(1)
    down[0] = False
    assert grouped(2) == 2
