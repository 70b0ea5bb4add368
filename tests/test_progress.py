"""Bars where a person watches, lines where a log is kept, an ETA in both."""

from __future__ import annotations

import io
import os
import pty
import select

import pytest

from vca import progress


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


def test_plain_lines_come_every_ten_seconds_with_eta_and_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, stream = Clock(monkeypatch), io.StringIO()
    with progress.Plain(stream, prefix="[reward] ").task("training", 40, "steps") as task:
        for _ in range(40):
            clock.now += 2.5
            task.advance(loss=0.25)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "[reward] training: 4/40 steps  ETA 1m30s  loss 0.25"
    assert lines[-1] == "[reward] training: 40/40 steps  done in 1m40s  loss 0.25"
    assert len(lines) == 11


def test_an_unknown_total_has_no_eta(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, stream = Clock(monkeypatch), io.StringIO()
    with progress.Plain(stream).task("reading", None, "records") as task:
        clock.now += 11
        task.advance(7)
    assert stream.getvalue().splitlines()[0] == "reading: 7 records"


def test_a_pipe_gets_lines_and_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.delenv("VCA_TERMINAL", raising=False)
    assert isinstance(progress.for_stream(io.StringIO()), progress.Plain)
    ours, theirs = pty.openpty()
    try:
        monkeypatch.setenv("TERM", "xterm")
        # The steps of a pipeline write into a pipe; the runner names its terminal to them.
        monkeypatch.setenv("VCA_TERMINAL", os.ttyname(theirs))
        bars = progress.for_stream(prefix="[reward] ")
        assert isinstance(bars, progress.Live)
        with bars.task("training", 4) as task:
            for _ in range(4):
                task.advance(loss=0.5)
        bars.say("a line")
        drawn = b""
        while select.select([ours], [], [], 1)[0]:  # a terminal gives what it has, perhaps in pieces
            drawn += os.read(ours, 65536)
    finally:
        os.close(theirs)
        os.close(ours)
    for shown in (b"[reward] training", b"4/4", b"loss 0.5", b"ETA"):
        assert shown in drawn
    # What is said goes through the pipe, where the runner logs it and shows it.
    assert capsys.readouterr().out == "[reward] a line\n"
    assert b"a line" not in drawn
