"""Real components through kfp.local: what is kept, what runs again, how a failing step is told."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from kfp import dsl

from components.data_prep import data_prep
from components.preflight import preflight
from components.record import record
from pipelines import local
from vca import store
from vca.errors import VcaError

TINY = (
    "data.sources=[{kind: emoji, train_pairs: 40, validation_pairs: 10, test_pairs: 20, train_dialogues: 4, "
    "validation_dialogues: 2, test_dialogues: 2}]"
)


@dsl.pipeline(name="first-part")
def first_part(preset: str, overrides: list[str], store: str, run_dir: str) -> None:
    """The training pipeline up to data preparation: what is cheap."""
    with dsl.ExitHandler(record(preset=preset, overrides=overrides, run_dir=run_dir)):
        plan = preflight(preset=preset, overrides=overrides, store=store)
        data_prep(
            settings=plan.outputs["data"],
            code_version=plan.outputs["data_code"],
            watermark=plan.outputs["watermark"],
            store=store,
        )


@pytest.fixture
def bases(tmp_path: Path) -> list[str]:
    """Overrides that name a folder as every base model; preparing data loads none."""
    (tmp_path / "base").mkdir()
    (tmp_path / "base/config.json").write_text("{}")
    keys = ("reward.base", "diffusion.base", "evaluation.base", "evaluation.content_judge")
    return [f"{key}={tmp_path / 'base'}" for key in keys]


def run(folder: Path, *overrides: str) -> Path:
    """The data artifact of one run."""
    folder.mkdir()
    local.execute(
        first_part,
        folder=folder,
        preset="local",
        overrides=[TINY, *overrides],
        store=str(folder.parent / "store"),
        run_dir=str(folder),
    )
    return next((folder / ".kfp").glob("*/data-prep/data"))


def test_a_step_runs_once_for_the_same_work_and_again_for_other(tmp_path: Path, bases: list[str], capsys) -> None:
    first, second = run(tmp_path / "1", *bases), run(tmp_path / "2", *bases)
    assert store.input_digest(first, name="data") == store.input_digest(second, name="data")
    assert store.read_record(first) == store.read_record(second)  # the same result, not one made again
    assert len(list((tmp_path / "store/data").glob("*/stage.json"))) == 1
    shown = capsys.readouterr().out
    assert "[data] done: " in shown
    assert "[data] nothing changed: " in shown
    assert "KFP Executor" not in shown
    assert "KFP Executor" in (tmp_path / "1/run.log").read_text()
    assert "VCA_TERMINATION_LOG" not in os.environ  # what is set for the steps is not left behind

    third = run(tmp_path / "3", *bases, "data.seed=1")
    assert store.digest(third) != store.digest(first)
    assert json.loads((tmp_path / "3/run.json").read_text())["state"] == "SUCCEEDED"


def test_a_failing_step_ends_the_run_with_its_own_words(tmp_path: Path, bases: list[str]) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/dialogue.json").write_text("{")
    with pytest.raises(VcaError, match="dialogue") as caught:
        run(tmp_path / "1", *bases, "data.sources=[{kind: dialogues, path: " + str(tmp_path / "broken") + "}]")
    assert caught.value.exit_code == 3
    assert "Traceback" not in str(caught.value)
    told = json.loads((tmp_path / "1/run.json").read_text())
    assert told["state"] == "FAILED"
    assert list((tmp_path / "store/data").glob("*/stage.json")) == []


def test_a_step_that_dies_without_a_word_points_to_the_log(tmp_path: Path) -> None:
    script = f"""
from pathlib import Path
from kfp import dsl
from pipelines import local

@dsl.component(base_image="python", install_kfp_package=False)
def dies(how: str):
    import os, signal
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    raise KeyError("oops")

@dsl.pipeline(name="dying")
def dying(how: str):
    dies(how=how)

for how in ("kill", "raise"):
    folder = Path({str(tmp_path)!r}, how)
    folder.mkdir()
    try:
        local.execute(dying, folder=folder, how=how)
    except Exception as error:
        print("told:", error)
"""
    (tmp_path / "script.py").write_text(script)
    out = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True, check=True).stdout
    killed, raised = [line for line in out.splitlines() if line.startswith("told: ")]
    assert "perhaps killed for want of memory" in killed
    assert "KeyError: 'oops'" in raised
    assert str(tmp_path / "raise/run.log") in raised


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_run_lets_its_step_save_and_is_told_so(tmp_path: Path, signum: signal.Signals, code: int) -> None:
    (tmp_path / "script.py").write_text(f"""
from pathlib import Path
from kfp import dsl
from pipelines import local
from vca.cli import guard

@dsl.component(base_image="python", install_kfp_package=False)
def trains(place: str):
    import signal, time
    from pathlib import Path
    def save(signum, frame):
        time.sleep(0.5)
        Path(place, "saved").write_text("")
        raise SystemExit(143)
    signal.signal(signal.SIGTERM, save)
    Path(place, "training").write_text("")
    time.sleep(600)

@dsl.pipeline(name="training")
def training(place: str):
    trains(place=place)

with guard():
    local.execute(training, folder=Path({str(tmp_path)!r}), place={str(tmp_path)!r})
""")
    process = subprocess.Popen([sys.executable, tmp_path / "script.py"], stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "training").exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signum)  # to the runner alone, as `kill` does
    _, errors = process.communicate()
    assert (tmp_path / "saved").exists()
    assert process.returncode == code
    told = f"vca: error: stopped by {signum.name}; the same command goes on from the last finished part"
    assert errors.splitlines()[-1] == told
