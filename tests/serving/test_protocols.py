"""Schemathesis, which knows nothing of us, against the protocol's own document and against ours."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from serving_process import Running

quick = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


def protocol(running: Running) -> dict[str, Any]:
    """The Open Inference Protocol's document; paths written ${X} there are {X} to everybody else."""
    import yaml

    folder = os.environ.get("VCA_SPEC_DIR")
    if folder is None:
        pytest.skip("VCA_SPEC_DIR names no folder with open_inference_rest.yaml")
    text = (Path(folder) / "open_inference_rest.yaml").read_text().replace("${", "{")
    document: dict[str, Any] = yaml.safe_load(text)
    release = json.loads(running.get(f"/v2/models/{running.model}")[1])["versions"][0]
    for item in document["paths"].values():
        for parameter in item.get("parameters", []):  # half of the calls reach the model
            known = {"MODEL_NAME": running.model, "MODEL_VERSION": release}[parameter["name"]]
            parameter["schema"] = {"anyOf": [{"const": known}, {"type": "string", "minLength": 1}]}
    return document


def check_all(document: dict[str, Any], running: Running, checks: list[Callable[..., Any]]) -> int:
    """Call every operation of a document with what schemathesis makes up; the number of calls."""
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=running.url)
    calls = 0
    for result in schema.get_all_operations():
        operation = result.ok()

        @quick
        @given(case=operation.as_strategy())
        def one(case: Any) -> None:
            nonlocal calls
            calls += 1
            case.call_and_validate(checks=checks)

        one()
    return calls


@pytest.mark.parametrize("server", ["generator", "scorer"])
def test_the_open_inference_protocol(server: str, request: pytest.FixtureRequest) -> None:
    running: Running = request.getfixturevalue(server)
    calls = check_all(protocol(running), running, [not_a_server_error, response_schema_conformance])
    assert calls >= 50


@pytest.mark.parametrize("server", ["generator", "scorer"])
def test_our_own_document(server: str, request: pytest.FixtureRequest) -> None:
    running: Running = request.getfixturevalue(server)
    document = json.loads(running.get("/openapi.json")[1])
    checks = [not_a_server_error, response_schema_conformance, status_code_conformance, content_type_conformance]
    assert check_all(document, running, checks) >= 50
