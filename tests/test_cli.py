"""The command line as people meet it: quick, and one clear line for every mistake they will make."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from vca import store
from vca.models import location
from vca.progress import Quiet

VCA = Path(sys.executable).with_name("vca")
TINY = (
    "data.sources=[{kind: emoji, train_pairs: 40, validation_pairs: 10, test_pairs: 20, train_dialogues: 4, "
    "validation_dialogues: 2, test_dialogues: 2}]"
)


def vca(*words: str | Path, cwd: Path, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run([VCA, *map(str, words)], cwd=cwd, capture_output=True, text=True, check=False, **options)


def refused(run: subprocess.CompletedProcess[str], code: int, *told: str) -> None:
    """One line that says what to do, the exit code, no traceback."""
    assert run.returncode == code, run
    lines = run.stderr.strip().splitlines()
    assert len(lines) == 1, run.stderr
    assert lines[0].startswith("vca: error: ")
    assert [part for part in told if not re.search(part, lines[0])] == [], lines[0]


def nothing_left(folder: Path, *allowed: str) -> None:
    """No file that a later run could take for a result."""
    left = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {path for path in left if not path.endswith(".lock")} == set(allowed)


def result(folder: Path, **files: str) -> Path:
    """A finished folder, as a stage leaves one."""

    def make(work: Path) -> dict[str, str]:
        for name, text in files.items():
            (work / name.replace("__", ".")).write_text(text)
        return {}

    store.produce(folder, stage="test", parts={}, make=make, progress=Quiet())
    return folder


@pytest.fixture
def bases(tmp_path: Path) -> list[str]:
    """--set options that name two folders as base models, and a third one as another."""
    for name in ("sd", "qwen", "other"):
        (tmp_path / "bases" / name).mkdir(parents=True)
        (tmp_path / "bases" / name / "config.json").write_text(json.dumps({"name": name}))
    sd, qwen = tmp_path / "bases/sd", tmp_path / "bases/qwen"
    return [
        *("--set", f"diffusion.base={sd}", "--set", f"evaluation.base={sd}", "--set", f"evaluation.content_judge={sd}"),
        *("--set", f"reward.base={qwen}"),
    ]


def test_help_answers_at_once(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run = vca("--help", cwd=tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime) < 0.5
    commands = ("run", "data", "train-reward", "train-diffusion", "evaluate", "report", "settings", "refine", "presets")
    assert [
        name for name in (*commands, "verify", "keys") if not re.search(rf"^  {name} ", run.stdout, re.MULTILINE)
    ] == []


def test_presets_and_settings_are_shown(tmp_path: Path) -> None:
    assert re.findall(r"^\w+", vca("presets", cwd=tmp_path).stdout, re.MULTILINE) == ["local", "recommended", "paper"]
    shown = vca("settings", "--preset", "paper", "--set", "diffusion.iterations=7", cwd=tmp_path).stdout
    assert "  iterations: 7\n" in shown
    assert "# reward: 128 pairs = 4 in a micro-batch × 32 accumulated" in shown


@pytest.mark.parametrize("command", ["settings", "run", "data --output out"])
def test_a_wrong_preset(command: str, tmp_path: Path) -> None:
    refused(vca(*command.split(), "--preset", "locla", cwd=tmp_path), 2, "unknown preset 'locla'", "did you mean local")
    nothing_left(tmp_path)


@pytest.mark.parametrize("command", ["run", "data --output out"])
def test_a_wrong_setting_stops_everything_before_it_starts(command: str, tmp_path: Path) -> None:
    run = vca(*command.split(), "--set", "diffusion.lr=1e-4", cwd=tmp_path)
    refused(run, 2, r"unknown key diffusion\.lr", r"diffusion\.learning_rate")
    nothing_left(tmp_path)


def test_a_missing_data_folder(tmp_path: Path, bases: list[str]) -> None:
    source = "data.sources=[{kind: dialogues, path: nowhere}]"
    refused(
        vca("data", "--output", "out", "--set", source, cwd=tmp_path), 3, r"data\.sources\.0\.path: nowhere does not"
    )
    command = ("train-reward", "--data", "nowhere", "--output", "out", *bases)
    refused(vca(*command, cwd=tmp_path), 4, "data: nowhere does not exist; give the folder")
    assert not (tmp_path / "out").exists()


def test_an_empty_data_set(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    source = "data.sources=[{kind: dialogues, path: empty}]"
    refused(vca("data", "--output", "out", "--set", source, cwd=tmp_path), 3, "empty is empty; give the place")
    (tmp_path / "empty/broken.json").write_text("{")
    refused(vca("data", "--output", "out", "--set", source, cwd=tmp_path), 3, "empty|dialogues")
    assert not (tmp_path / "out").exists()
    assert vca("data", "--output", "out", "--set", TINY, cwd=tmp_path).returncode == 0  # nothing stands in the way


def test_no_disk_space(tmp_path: Path) -> None:
    (tmp_path / "huge").mkdir()
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    with (tmp_path / "huge/a.json").open("w") as file:
        file.truncate(free)  # sparse: claims the space without taking it
    source = "data.sources=[{kind: dialogues, path: huge}]"
    refused(
        vca("data", "--output", "out", "--set", source, cwd=tmp_path), 5, "GB free, this run needs about", "--output"
    )
    assert not (tmp_path / "out").exists()
    with open("/dev/full", "w") as full:
        run = subprocess.run([VCA, "presets"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    refused(run, 5, "no space left on the disk")


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(vca("data", "--output", "file/out", "--set", TINY, cwd=tmp_path), 5, "file cannot be written", "--output")


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_an_interrupted_stage_can_simply_be_started_again(tmp_path: Path, signum: int, code: int) -> None:
    command = [VCA, "data", "--output", "out", "--set", TINY.replace("train_dialogues: 4", "train_dialogues: 1500")]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    )
    while not (tmp_path / "out.partial").exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signum)
    _, errors = process.communicate()
    assert process.returncode == code
    if signum != signal.SIGKILL:
        assert len(errors.strip().splitlines()) == 1
        assert "the same command goes on" in errors
    assert not (tmp_path / "out").exists()
    assert vca("data", "--output", "out", "--set", TINY, cwd=tmp_path).returncode == 0
    assert store.input_digest(tmp_path / "out", name="data")
    assert not (tmp_path / "out.partial").exists()


def test_a_corrupt_adapter(tmp_path: Path, bases: list[str]) -> None:
    result(tmp_path / "data", manifest__json="{}")
    reward = result(tmp_path / "reward", adapter_model__safetensors="weights", adapter__json="{}")
    (reward / "adapter_model.safetensors").write_text("we1ghts")
    command = ("train-diffusion", "--data", "data", "--reward", "reward", "--output", "out", *bases)
    refused(vca(*command, cwd=tmp_path), 4, r"reward/adapter_model\.safetensors is corrupt", "make it again")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("adapter", ["reward", "policy"])
def test_an_adapter_for_another_base_model(adapter: str, tmp_path: Path, bases: list[str]) -> None:
    base = {"reward": "qwen", "policy": "sd"}
    for name in base:
        trained_on = str(tmp_path / "bases" / ("other" if name == adapter else base[name]))
        told = json.dumps({"base": trained_on, "base_digest": location.digest(trained_on)})
        result(tmp_path / name, adapter__json=told)
    result(tmp_path / "data", manifest__json="{}")
    command = ("evaluate", "--data", "data", "--reward", "reward", "--policy", "policy", "--output", "out", *bases)
    refused(vca(*command, cwd=tmp_path), 4, f"{adapter} was trained on another base model", "bases/other", "--set")
    assert not (tmp_path / "out").exists()


def test_a_result_is_never_overwritten(tmp_path: Path) -> None:
    result(tmp_path / "out", file="mine")
    refused(vca("data", "--output", "out", "--set", TINY, cwd=tmp_path), 4, "out holds a result of 'test'", "remove it")
    assert (tmp_path / "out/file").read_text() == "mine"


def test_a_reader_who_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    run = subprocess.run(
        f"{VCA} settings | head -n 1", shell=True, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (run.stdout, run.stderr) == ("seed: 0\n", "")


@pytest.mark.parametrize(("command", "module"), [("verify picture.png", "c2pa"), ("keys keys", "cryptography")])
def test_an_extra_that_is_not_installed(tmp_path: Path, command: str, module: str) -> None:
    (tmp_path / "picture.png").write_bytes(b"x")
    script = f"import sys; sys.modules[{module!r}] = None; from vca.cli import main; main()"
    words = [sys.executable, "-c", script, *command.split()]
    run = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    refused(run, 2, f"{module} is not installed; install the project with its extra `serve`")
    assert not (tmp_path / "keys").exists()
