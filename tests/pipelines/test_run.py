"""`vca run`, the whole loop on the shipped base models, with few pictures: `make run` in small.

One story in one test, since every part builds on the runs before it.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

VCA = Path(sys.executable).with_name("vca")
SMALL = {
    "data.sources": "[{kind: emoji, train_pairs: 64, validation_pairs: 40, test_pairs: 40, train_dialogues: 8, "
    "validation_dialogues: 6, test_dialogues: 8}]",
    "reward.batch": "16",
    "reward.micro_batch": "16",
    "reward.learning_rate": "1e-4",
    "diffusion.iterations": "6",
    "diffusion.dialogues": "2",
    "diffusion.siblings": "2",
    "diffusion.rounds": "1",
    "diffusion.batch": "4",
    "diffusion.micro_batch": "2",
    "diffusion.noise_batch": "4",
    "diffusion.checkpoint_every": "1",
    "evaluation.steps": "2",
    "evaluation.prompts": "8",
    "evaluation.dialogues": "4",
    "evaluation.validation_prompts": "6",
    "evaluation.scales": "[1.0]",
    "evaluation.max_rounds": "3",
    "evaluation.selection_prompts": "1",
    "evaluation.selection_images": "[4]",
    "evaluation.win_rounds": "2",
    "evaluation.bootstrap": "100",
    "evaluation.shown_dialogues": "1",
}


def command(**changes: object) -> list[str]:
    chosen = {**SMALL, **{key.replace("__", "."): value for key, value in changes.items()}}
    return [str(VCA), "run", *(word for key, value in chosen.items() for word in ("--set", f"{key}={value}"))]


def run(folder: Path, **changes: object) -> dict[str, bool]:
    """Which stages ran, and which results were found."""
    done = subprocess.run(command(**changes), cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads((folder / "runs/latest/run.json").read_text())
    assert told["state"] == "SUCCEEDED"
    return {stage: not cost["cached"] for stage, cost in told["stages"].items()}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_loop_runs_whole_runs_again_only_what_changed_and_survives_being_stopped(tmp_path: Path) -> None:
    # Stopped while the generator trains: told in one line, nothing counts as finished, `latest` does not appear.
    process = subprocess.Popen(command(), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not list(tmp_path.glob("runs/.cache/diffusion/*.partial/result/checkpoints/*")):
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    assert process.returncode == 143
    assert (
        errors.splitlines()[-1]
        == "vca: error: stopped by SIGTERM; the same command goes on from the last finished part"
    )
    assert not (tmp_path / "runs/latest").exists()
    (stopped,) = (tmp_path / "runs").glob("2*")
    told = json.loads((stopped / "run.json").read_text())
    assert (told["state"], told["exit_code"]) == ("FAILED", 143)
    assert told["error"].startswith("stopped by SIGTERM")
    assert list(tmp_path.glob("runs/.cache/diffusion/*/stage.json")) == []

    # The same command goes on: data and reward are there, the generator continues.
    assert run(tmp_path) == {"data": False, "reward": False, "diffusion": True, "evaluation": True, "report": True}
    latest = tmp_path / "runs/latest"
    updates = [json.loads(line)["update"] for line in (latest / "policy/metrics.jsonl").read_text().splitlines()]
    assert updates == [1, 2, 3, 4, 5, 6]
    figures = json.loads((latest / "report.json").read_text())
    assert set(figures["seconds"]) == {"data", "reward", "diffusion", "evaluation"}
    assert figures["peak_rss_mb"] > 100
    assert "<html" in (latest / "report.html").read_text()
    assert list(latest.glob(".kfp")) == []

    # Nothing changed: nothing but the report runs.
    first = latest.resolve()
    assert run(tmp_path) == {"data": False, "reward": False, "diffusion": False, "evaluation": False, "report": True}
    assert latest.resolve() != first

    # A setting of evaluation concerns evaluation alone; one of the generator what comes after it.
    changed = run(tmp_path, evaluation__bootstrap=101)
    assert changed == {"data": False, "reward": False, "diffusion": False, "evaluation": True, "report": True}
    changed = run(tmp_path, diffusion__learning_rate=0.001)
    assert changed == {"data": False, "reward": False, "diffusion": True, "evaluation": True, "report": True}

    # A damaged result is noticed and made again, and nothing after it has changed.
    shard = next(path for path in tmp_path.glob("runs/.cache/data/*/*.parquet"))
    content = shard.read_bytes()
    shard.unlink()
    shard.write_bytes(content[:-1])
    assert run(tmp_path) == {"data": True, "reward": False, "diffusion": False, "evaluation": False, "report": True}

    # Killed outright: the last success stands, and the next run is as if nothing had been.
    before = latest.resolve()
    process = subprocess.Popen(command(seed=1), cwd=tmp_path, stdout=subprocess.DEVNULL, start_new_session=True)
    while process.poll() is None and not list(tmp_path.glob("runs/.cache/reward/*.partial")):
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert latest.resolve() == before
    assert json.loads((latest / "run.json").read_text())["state"] == "SUCCEEDED"
