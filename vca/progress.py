"""Progress with an ETA for every long part: a live bar on a terminal, plain lines otherwise.

The library only ever sees `Progress`; nothing else in it prints. `Quiet` is for tests and for callers with a UI of
their own.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, TextIO


class Task(Protocol):
    """One long part of a stage."""

    def advance(self, n: int = 1, **figures: float) -> None:
        """Count `n` more units as done; `figures` (loss=…, reward=…) are shown beside them."""


class Progress(Protocol):
    """Where a stage reports to."""

    def task(self, name: str, total: int | None, unit: str = "steps") -> AbstractContextManager[Task]:
        """The context in which `name` runs; `total` is None where it can't be known."""

    def say(self, text: str) -> None:
        """One line for people."""


class _Nothing:
    def advance(self, n: int = 1, **figures: float) -> None:
        return None


class Quiet:
    """Reports nothing."""

    @contextmanager
    def task(self, name: str, total: int | None, unit: str = "steps") -> Iterator[Task]:
        yield _Nothing()

    def say(self, text: str) -> None:
        return None


class _Line:
    """Plain lines, one every `every` seconds at most, and one at the end."""

    def __init__(self, stream: TextIO, name: str, total: int | None, unit: str, every: float) -> None:
        self.stream, self.name, self.total, self.unit, self.every = stream, name, total, unit, every
        self.done, self.figures = 0, ""
        self.start = self.last = time.monotonic()

    def advance(self, n: int = 1, **figures: float) -> None:
        self.done += n
        self.figures = "".join(f"  {key} {value:.4g}" for key, value in figures.items())
        if time.monotonic() - self.last >= self.every:
            self.last = time.monotonic()
            self.write(f"  ETA {_span(self.eta())}" if self.total else "")

    def eta(self) -> float:
        elapsed = time.monotonic() - self.start
        return elapsed / max(self.done, 1) * max((self.total or 0) - self.done, 0)

    def write(self, end: str) -> None:
        of = f"/{self.total}" if self.total else ""
        print(f"{self.name}: {self.done}{of} {self.unit}{end}{self.figures}", file=self.stream, flush=True)

    def finish(self) -> None:
        self.write(f"  done in {_span(time.monotonic() - self.start)}")


class Plain:
    """Lines for logs: KFP pods, CI, a pipe."""

    def __init__(self, stream: TextIO | None = None, every: float = 10.0, prefix: str = "") -> None:
        self.stream = stream or sys.stdout
        self.every = every
        self.prefix = prefix

    @contextmanager
    def task(self, name: str, total: int | None, unit: str = "steps") -> Iterator[Task]:
        line = _Line(self.stream, f"{self.prefix}{name}", total, unit, self.every)
        yield line
        line.finish()

    def say(self, text: str) -> None:
        print(f"{self.prefix}{text}", file=self.stream, flush=True)


class _Bar:
    def __init__(self, bars: object, task_id: object) -> None:
        self.bars, self.task_id = bars, task_id

    def advance(self, n: int = 1, **figures: float) -> None:
        text = " ".join(f"{key} {value:.4g}" for key, value in figures.items())
        self.bars.update(self.task_id, advance=n, figures=text)  # type: ignore[attr-defined]


class Live:
    """Bars for a terminal, drawn by rich. `terminal`: where to draw them, if that isn't where lines go."""

    def __init__(self, stream: TextIO | None = None, prefix: str = "", terminal: TextIO | None = None) -> None:
        self.stream = stream or sys.stdout
        self.terminal = terminal or self.stream
        self.prefix = prefix

    @contextmanager
    def task(self, name: str, total: int | None, unit: str = "steps") -> Iterator[Task]:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
        )
        with Bars(*columns, console=Console(file=self.terminal), redirect_stdout=False, redirect_stderr=False) as bars:
            yield _Bar(bars, bars.add_task(f"{self.prefix}{name}", total=total, figures=""))

    def say(self, text: str) -> None:
        print(f"{self.prefix}{text}", file=self.stream, flush=True)


def _span(seconds: float) -> str:
    minutes, rest = divmod(int(seconds + 0.5), 60)
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def for_stream(stream: TextIO | None = None, *, prefix: str = "") -> Progress:
    """Bars where a person watches, lines where a log is kept.

    A pipeline runner that reads its steps' output through a pipe names the terminal in VCA_TERMINAL, so that the steps
    can draw their bars there.
    """
    stream = stream or sys.stdout
    if stream.isatty():
        return Live(stream, prefix)
    terminal = os.environ.get("VCA_TERMINAL")
    if terminal and stream is sys.stdout:
        return Live(stream, prefix, open(terminal, "w", encoding="utf-8", buffering=1))
    return Plain(stream, prefix=prefix)
