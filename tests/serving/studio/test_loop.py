"""People in the studio, then `vca run`: what they said is trained on, and the report says so."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving_process import Running
from studio_process import Studio, begin, event, finished, next_round, studio_of

sys.path.insert(0, str(Path(__file__).parents[2] / "pipelines"))

from test_run import SMALL, VCA

DIALOGUES = 30
THINGS = ("red heart", "cat face", "blue car", "woman firefighter, medium-dark skin", "green apple")


def run(folder: Path, studio: Studio) -> dict[str, bool]:
    """`vca run` on the studio's store: which stages ran, and which results were found."""
    sets = [f"{key}={value}" for key, value in SMALL.items()]
    sets += [one for one in studio.settings if one.startswith("feedback.")]
    command = [str(VCA), "run", *(word for one in sets for word in ("--set", one))]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads((folder / "runs/latest/run.json").read_text())
    return {stage: not cost["cached"] for stage, cost in told["stages"].items()}


def manifest(folder: Path) -> Any:
    return json.loads((folder / "runs/latest/data/manifest.json").read_text())


def refine(client: httpx.Client, number: int) -> None:
    """A dialogue: a pick, in every third one a second round, and "this is it"."""
    dialogue_id, round_id = begin(client, THINGS[number % len(THINGS)])
    shown = finished(client, round_id)
    client.post("/v1/events", json=event(shown["presentation"], "pick", 0)).raise_for_status()
    if number % 3 == 0:
        shown = finished(client, next_round(client, dialogue_id, shown, "make it purple"))
    client.post("/v1/events", json=event(shown["presentation"], "accept", 0)).raise_for_status()


@pytest.mark.timeout(1800)
def test_what_people_say_is_trained_on_and_only_what_depends_on_it_runs_again(
    generator: Running, tmp_path: Path
) -> None:
    patient = "feedback.rules.burst_events=100000"  # a script chooses faster than people do
    with studio_of(tmp_path, generator.url, patient) as studio, studio.client() as client:
        refine(client, 1)  # without consent
        time.sleep(11)  # a snapshot looks ten seconds back
        assert all(run(tmp_path, studio).values())
        assert list(manifest(tmp_path)["sources"]) == ["emoji"]

        client.put("/v1/me/consent", json={"train": True}).raise_for_status()
        for number in range(DIALOGUES):
            refine(client, number)
        time.sleep(11)
        assert all(run(tmp_path, studio).values())
        source = manifest(tmp_path)["sources"]["feedback"]
        pairs = sum(number for key, number in source["accepted"].items() if key.startswith("pairs/"))
        assert (source["people"], source["quarantined"]) == (1, {})
        assert pairs >= 3 * DIALOGUES * 0.8  # near-duplicates of the small generator are left out
        report = (tmp_path / "runs/latest/report.html").read_text()
        assert f"{pairs:,} pairs of pictures that 1 person compared in the studio" in report

        nothing_new = run(tmp_path, studio)
        assert nothing_new == {**dict.fromkeys(nothing_new, False), "report": True}

        listed = subprocess.run(
            [str(VCA), "feedback", "snapshots", *(w for one in studio.settings[:4] for w in ("--set", one))],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        assert (tmp_path / "runs/latest").resolve().name in listed.stdout
