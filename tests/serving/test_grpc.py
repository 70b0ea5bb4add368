"""gRPC's status codes, asked by Triton's client in a process of its own: it can't share one with KServe."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from serving_process import Running, serving

ASK = """
import json, sys
import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

client = triton.InferenceServerClient(sys.argv[1])


def words(name, *values):
    given = triton.InferInput(name, [len(values)], "BYTES")
    given.set_data_from_numpy(np.array(values, dtype=np.object_))
    return given


def status(model, inputs, **options):
    try:
        client.infer(model, inputs, **options)
    except InferenceServerException as error:
        return error.status().split(".")[-1]
    return "OK"


prompt = words("prompt", b"red heart")
steps = triton.InferInput("steps", [1], "INT32")
steps.set_data_from_numpy(np.array([100000], dtype=np.int32))
found = {
    "live": client.is_server_live(),
    "ready": client.is_server_ready(),
    "model ready": client.is_model_ready(sys.argv[2]),
    "inputs": [tensor.name for tensor in client.get_model_metadata(sys.argv[2]).inputs],
    "good": status(sys.argv[2], [prompt]),
    "its release": status(sys.argv[2], [prompt], model_version=sys.argv[3]),
    "another release": status(sys.argv[2], [prompt], model_version="7"),
    "another model": status("nobody", [prompt]),
    "no prompt": status(sys.argv[2], [words("image", b"x")]),
    "too many steps": status(sys.argv[2], [prompt, steps]),
    "no picture": status(sys.argv[2], [prompt, words("image", b"\\xff\\xd8 nonsense")]),
    "not in time": status(sys.argv[2], [prompt], headers={"x-request-timeout": "0.000001"}),
}
try:
    client.unload_model(sys.argv[2])
except InferenceServerException as error:
    found["unload"] = error.status().split(".")[-1]
print(json.dumps(found))
"""


def test_status_codes(generator: Running) -> None:
    release = json.loads(generator.get(f"/v2/models/{generator.model}")[1])["versions"][0]
    command = [sys.executable, "-c", ASK, f"127.0.0.1:{generator.grpc}", generator.model, release]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout)
    assert found.pop("inputs")[:2] == ["prompt", "image"]
    assert found == {
        "live": True,
        "ready": True,
        "model ready": True,
        "good": "OK",
        "its release": "OK",
        "another release": "NOT_FOUND",
        "another model": "NOT_FOUND",
        "no prompt": "INVALID_ARGUMENT",
        "too many steps": "INVALID_ARGUMENT",
        "no picture": "INVALID_ARGUMENT",
        "not in time": "UNAVAILABLE",
        "unload": "INVALID_ARGUMENT",
    }


LONG = """
import sys
import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

client = triton.InferenceServerClient(sys.argv[1])
prompt = triton.InferInput("prompt", [8], "BYTES")
prompt.set_data_from_numpy(np.array([b"red heart"] * 8, dtype=np.object_))
steps = triton.InferInput("steps", [1], "INT32")
steps.set_data_from_numpy(np.array([100], dtype=np.int32))
print("asking", flush=True)
try:
    drawn = client.infer("vca-generator", [prompt, steps], client_timeout=float(sys.argv[2]))
    print(len(drawn.as_numpy("image")), flush=True)
except InferenceServerException as error:
    print(error.status(), flush=True)
"""


def outcomes(running: Running) -> dict[str, float]:
    """Requests over gRPC by how they ended."""
    lines = running.get("/metrics")[1].decode().splitlines()
    mine = [line for line in lines if line.startswith('vca_requests_total{api="v2-grpc"')]
    return {line.split('outcome="')[1].split('"')[0]: float(line.split()[-1]) for line in mine}


def ask(running: Running, *, timeout: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", LONG, f"127.0.0.1:{running.grpc}", str(timeout)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "asking\n"
    return process


def test_a_call_that_is_given_up_frees_the_device(generator: Running) -> None:
    before = outcomes(generator).get("left", 0)
    client = ask(generator, timeout=0.7)
    assert "DEADLINE_EXCEEDED" in client.communicate(timeout=60)[0]
    end = time.monotonic() + 30
    while outcomes(generator).get("left", 0) == before:
        assert time.monotonic() < end
        time.sleep(0.05)


def test_sigterm_finishes_calls_that_are_under_way(policy_folder: Path, tmp_path: Path) -> None:
    with serving("generator", f"--policy={policy_folder}", log=tmp_path / "log") as running:
        client = ask(running, timeout=60)
        while b"vca_batch_size_sum" not in running.get("/metrics")[1]:
            time.sleep(0.02)
        time.sleep(0.5)
        running.process.terminate()
        assert client.communicate(timeout=60)[0] == "8\n"
        assert running.process.wait(60) == 0
