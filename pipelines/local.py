"""The training pipeline on this machine, through kfp.local: the steps that a cluster runs, as subprocesses.

runs/<run id>/   run.log, run.json; after success data/ reward/ policy/ evaluation/, report.json, report.html
runs/latest      the last run that succeeded; switched by one rename
runs/.cache/     finished results by what they were made from, and attempts that can go on (vca/store.py)
"""

from __future__ import annotations

import datetime
import io
import json
import os
import re
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

import psutil

from vca.cli import TERMINATION_LOG
from vca.errors import Interrupted, VcaError
from vca.stages import STAGES
from vca.store import disk_errors, read_record, write_json

# Component (kfp names a task's folder after it) and artifact of each stage.
ARTIFACTS = {
    "data": ("data-prep", "data"),
    "reward": ("train-reward", "reward"),
    "diffusion": ("train-diffusion", "policy"),
    "evaluation": ("evaluate", "evaluation"),
    "report": ("report", "report"),
}


def run(*, preset: str, overrides: list[str], output: Path, say: Callable[[str], None]) -> Path:
    """Run the pipeline; returns the run's folder. Raises the error that ended a step."""
    started = time.time()
    with disk_errors(output):
        folder = _new_folder(output.resolve())
    work = folder / ".kfp"
    _tell(folder, state="RUNNING", preset=preset, overrides=overrides)
    say(f"run {folder.name}, preset {preset}; every line is kept in {folder / 'run.log'}")
    try:
        from pipelines.training import training

        arguments = {"preset": preset, "overrides": overrides, "store": str(folder.parent / ".cache")}
        execute(training, folder=folder, run_dir=str(folder), **arguments)
        summary = _collect(folder, work)
        costs = {stage: {**cost, "cached": cost["finished"] < started} for stage, cost in summary.items()}
        _tell(folder, stages=costs, seconds=round(time.time() - started, 1))
    except VcaError as error:
        _tell(folder, state="FAILED", error=str(error), exit_code=error.exit_code)
        raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    _switch(folder.parent / "latest", folder.name)
    for line in _table(costs, time.time() - started):
        say(line)
    say(f"report: {output / 'latest' / 'report.html'}")
    return folder


def execute(pipeline: Callable[..., Any], *, folder: Path, **arguments: Any) -> None:
    """Run a pipeline's steps as subprocesses, their artifacts below `folder`/.kfp, every line in `folder`/run.log.

    Lines that begin with "[stage] " are shown as well. Raises the VcaError that a step ended with, Interrupted after
    SIGTERM or Ctrl-C.
    """
    from kfp import local

    note = folder / ".kfp" / "termination.json"
    note.parent.mkdir(exist_ok=True)
    variables = {
        TERMINATION_LOG: str(note),
        "TMPDIR": str(folder / ".kfp"),  # kfp leaves a folder there for every step
        "PYTHONUNBUFFERED": "1",
    }
    if sys.stdout.isatty():
        variables["VCA_TERMINAL"] = os.ttyname(sys.stdout.fileno())
    # Only our own store skips work here, see docs/decisions/cache.md.
    local.init(
        runner=local.SubprocessRunner(use_venv=False),
        pipeline_root=str(folder / ".kfp"),
        workspace_root=str(folder / ".kfp" / "workspace"),
        enable_caching=False,
    )
    with (
        (folder / "run.log").open("w", encoding="utf-8") as log,
        redirect_stdout(_Lines(log, sys.stdout)),
        _stop_steps() as stopped,
        _environment(variables),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # kfp warns of image names without "python" in them
        try:
            pipeline(**arguments)
        except RuntimeError as error:  # kfp: "Inner task failed"; why, the step has noted
            raise _reason(note, stopped, folder) from error


def _reason(note: Path, stopped: list[int], folder: Path) -> VcaError:
    if stopped:
        error: VcaError = Interrupted(
            f"stopped by {signal.Signals(stopped[0]).name}; the same command goes on from the last finished part"
        )
        error.exit_code = 128 + stopped[0]
        return error
    try:
        told = json.loads(note.read_text(encoding="utf-8"))
        error = VcaError(told["message"])
        error.exit_code = told["exit_code"]
    except (OSError, ValueError, KeyError):
        last = [
            line for line in (folder / "run.log").read_text(encoding="utf-8").splitlines() if _PYTHON_ERROR.match(line)
        ]
        why = f": {last[-1].strip()}" if last else ", perhaps killed for want of memory"
        error = VcaError(f"a step ended unexpectedly{why} (see {folder / 'run.log'})")
    return error


_PYTHON_ERROR = re.compile(r"\s*([A-Za-z_][\w.]*(Error|Exception|Exit))(:|$)")
_FOR_PEOPLE = re.compile(rf"\[(preflight|{'|'.join(STAGES)})\] ")


class _Lines(io.TextIOBase):
    """Keeps every line that kfp and the steps print, and shows those that the steps mean for people."""

    def __init__(self, log: TextIO, terminal: TextIO) -> None:
        self.log, self.terminal, self.rest = log, terminal, ""

    def write(self, text: str) -> int:
        *lines, self.rest = (self.rest + text).split("\n")
        for line in lines:
            print(line, file=self.log, flush=True)
            if _FOR_PEOPLE.match(line.strip()):
                print(line.strip(), file=self.terminal, flush=True)
        return len(text)


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Variables for the steps, which inherit ours: kfp.local has no other way to pass them."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@contextmanager
def _stop_steps() -> Iterator[list[int]]:
    """On SIGTERM or Ctrl-C let the running step save what it has and end; a second Ctrl-C ends at once.

    Yields a list that holds the signal once it came.
    """
    stopped: list[int] = []
    told: set[int] = set()

    def handler(signum: int, frame: FrameType | None) -> None:
        if not stopped:
            stopped.append(signum)
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, 1, 1)  # a step may be about to start: look again every second
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):  # it ended meanwhile
                # kfp starts a shell, the shell starts the step, and the step knows best how to end what it started.
                if child.pid not in told and child.name().startswith("python") and child.parent().name() == "sh":
                    child.terminate()
                    told.add(child.pid)

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
    before = {signum: signal.signal(signum, handler) for signum in signals}
    try:
        yield stopped
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for signum, old in before.items():
            signal.signal(signum, old)


def _new_folder(output: Path) -> Path:
    name = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")
    for number in range(1, 100):
        folder = output / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise VcaError(f"{output} already holds 99 runs of this second; try again")


def _collect(folder: Path, work: Path) -> dict[str, dict[str, Any]]:
    """Move the artifacts to where people look for them; what each cost."""
    summary = {}
    for stage, (task, artifact) in ARTIFACTS.items():
        made = next(work.glob(f"*/{task}/{artifact}"))
        record = read_record(made)
        assert record is not None, made
        summary[stage] = {key: record[key] for key in ("seconds", "cpu_seconds", "peak_rss_mb", "digest", "finished")}
        if stage == "report":
            (made / "stage.json").unlink()
            for file in made.iterdir():
                file.rename(folder / file.name)
        else:
            made.rename(folder / STAGES[stage].output)
    return summary


def _tell(folder: Path, **facts: Any) -> None:
    """Complete what the record step wrote, or write it where that step itself was stopped."""
    file = folder / "run.json"
    record = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    write_json(file, {**record, **facts})


def _switch(link: Path, target: str) -> None:
    new = link.with_name(f".{link.name}.new")
    new.unlink(missing_ok=True)
    new.symlink_to(target)
    os.replace(new, link)


def _table(summary: dict[str, dict[str, Any]], seconds: float) -> Iterator[str]:
    yield f"{'stage':12} {'seconds':>8} {'peak MB':>8}"
    for stage, cost in summary.items():
        note = "  (nothing changed: from an earlier run)" if cost["cached"] else ""
        yield f"{stage:12} {cost['seconds']:8.1f} {cost['peak_rss_mb']:8.0f}{note}"
    yield f"{'this run':12} {seconds:8.1f} {max(cost['peak_rss_mb'] for cost in summary.values()):8.0f}"
