"""What raises an alarm, and what does not yet."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from vca.feedback.reliability import Agreement, Reliability

FINE = Reliability(
    as_of=datetime(2027, 1, 31, tzinfo=UTC),
    people=10,
    dialogues=100,
    choices=400,
    slots=(),
    flips=Agreement(value=0.1, n=100),
    picks=Agreement(value=None, n=0),
    ratings={},
    untrusted=0,
    in_bursts=0,
    clusters=0,
    gates={"pass": 95, "unknown": 5},
)


def test_nothing_is_wrong() -> None:
    assert FINE.alarms == []


@pytest.mark.parametrize(
    ("flips", "n", "alarmed"),
    [(0.35, 20, True), (0.35, 19, False), (0.1, 10_000, False), (None, 0, False)],  # one label in twenty makes .1
)
def test_too_many_flipped_labels(flips: float | None, n: int, alarmed: bool) -> None:
    """Case 19."""
    told = replace(FINE, flips=Agreement(value=flips, n=n)).alarms
    assert [("35 % of repeated rounds" in line) for line in told] == [True] * alarmed
