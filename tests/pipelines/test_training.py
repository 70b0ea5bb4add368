"""What a cluster will see: the compiled pipeline."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp import compiler

from pipelines.training import training
from vca.stages import STAGES

NEVER_CACHED = {"preflight", "report", "record"}
STEPS = {"data-prep", "train-reward", "train-diffusion", "evaluate"} | NEVER_CACHED


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    file = tmp_path_factory.mktemp("compiled") / "training.yaml"
    compiler.Compiler().compile(training, str(file))
    return yaml.safe_load(file.read_text())


@pytest.fixture(scope="module")
def tasks(spec: dict[str, Any]) -> dict[str, Any]:
    body = spec["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    return {name: task for name, task in {**spec["root"]["dag"]["tasks"], **body}.items() if name in STEPS}


def test_the_steps_run_in_order_and_the_record_comes_last_whatever_happens(tasks: dict[str, Any]) -> None:
    assert set(tasks) == STEPS
    before = {name: set(task.get("dependentTasks", [])) for name, task in tasks.items()}
    assert before["data-prep"] == {"preflight"}
    assert before["train-reward"] == {"preflight", "data-prep"}
    assert before["train-diffusion"] == before["train-reward"] | {"train-reward"}
    assert before["evaluate"] == before["train-diffusion"] | {"train-diffusion"}
    assert before["report"] == before["evaluate"] | {"evaluate"}
    assert tasks["record"]["triggerPolicy"] == {"strategy": "ALL_UPSTREAM_TASKS_COMPLETED"}


def test_what_says_what_is_now_is_never_cached_and_the_rest_is(tasks: dict[str, Any]) -> None:
    cached = {name for name, task in tasks.items() if task["cachingOptions"].get("enableCache")}
    assert cached == STEPS - NEVER_CACHED


def test_every_cached_step_takes_all_it_depends_on_as_parameters(tasks: dict[str, Any]) -> None:
    """A cluster's cache key holds parameters, and of artifacts only the names."""
    for name in STEPS - NEVER_CACHED:
        inputs = tasks[name]["inputs"]
        parameters = inputs["parameters"]
        assert {"settings", "code_version"} <= set(parameters), name
        for artifact, source in inputs.get("artifacts", {}).items():
            digest = parameters[f"{artifact}_digest"]["taskOutputParameter"]
            assert digest["outputParameterKey"] == "Output"
            assert digest["producerTask"] == source["taskOutputArtifact"]["producerTask"], (name, artifact)
        # … and nothing that changes from run to run, or it would never be found in the cache.
        assert "run_dir" not in parameters
    assert "watermark" in tasks["data-prep"]["inputs"]["parameters"]


def test_each_step_gets_its_own_code_version_and_settings(tasks: dict[str, Any]) -> None:
    own = {"data-prep": "data", "train-reward": "reward", "train-diffusion": "diffusion", "evaluate": "evaluation"}
    for name, stage in {**own, "report": "report"}.items():
        parameters = tasks[name]["inputs"]["parameters"]
        assert parameters["code_version"]["taskOutputParameter"]["outputParameterKey"] == f"{stage}_code"
        assert parameters["settings"]["taskOutputParameter"]["outputParameterKey"] == stage
    assert {*own.values(), "report"} == set(STAGES)


def test_no_step_installs_anything(spec: dict[str, Any]) -> None:
    for executor in spec["deploymentSpec"]["executors"].values():
        assert "pip" not in " ".join(executor["container"]["command"])


def test_the_image_is_named_in_one_place(tmp_path: Path) -> None:
    image = "registry.example/vca@sha256:" + "0" * 64
    script = (
        "from kfp import compiler; from pipelines.training import training; "
        f"compiler.Compiler().compile(training, {str(tmp_path / 't.yaml')!r})"
    )
    subprocess.run([sys.executable, "-c", script], check=True, env={**os.environ, "VCA_IMAGE": image})
    spec = yaml.safe_load((tmp_path / "t.yaml").read_text())
    assert {executor["container"]["image"] for executor in spec["deploymentSpec"]["executors"].values()} == {image}
