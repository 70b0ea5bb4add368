"""gRPC's status codes, asked by Triton's client in a process of its own: it can't share one with KServe."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from serving_process import Running

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
