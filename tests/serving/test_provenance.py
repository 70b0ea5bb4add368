"""What a served picture tells of itself, on every protocol and in every format."""

from __future__ import annotations

import base64
import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from serving_process import ROOT, Running, serving

from vca.errors import SettingsError
from vca.provenance import keys
from vca.provenance.stamp import release_mark
from vca.provenance.verify import verify
from vca.settings import load

GENERATIONS = "/openai/v1/images/generations"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("keys") / "keys"
    keys.create(place)
    return place


@pytest.fixture(scope="module")
def marking(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    log = tmp_path_factory.mktemp("logs") / "log"
    with serving("generator", f"--set=serving.keys={folder}", log=log) as running:
        yield running


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_a_picture_is_signed_and_marked(marking: Running, folder: Path, kind: str) -> None:
    order = {"prompt": "red heart", "output_format": kind}
    status, body = marking.post(GENERATIONS, order, X_Request_Id="my-request")
    assert status == 200, body
    data = base64.b64decode(body["data"][0]["b64_json"])
    known = keys.Keys.load(folder)
    found = verify(data, watermark_key=known.watermark_key, trust_anchors=known.trust_anchors)
    assert found.credentials.state == "trusted"
    assert found.credentials.facts is not None
    assert (found.credentials.facts.release, found.credentials.facts.request_id) == (body["release"], "my-request")
    assert found.payload == release_mark(body["release"])
    # saved again the signature is gone, and the mark says whose picture it is
    out = io.BytesIO()
    Image.open(io.BytesIO(data)).save(out, "PNG")
    again = verify(out.getvalue(), watermark_key=known.watermark_key, trust_anchors=known.trust_anchors)
    assert (again.credentials.state, again.payload) == ("none", found.payload)


def test_v1_and_v2_sign_too_and_the_command_line_says_so(marking: Running, folder: Path, tmp_path: Path) -> None:
    prompt = {"name": "prompt", "datatype": "BYTES", "shape": [1], "data": ["red heart"]}
    status, body = marking.post("/v2/models/vca-generator/infer", {"inputs": [prompt]})
    assert status == 200
    encoded = next(output["data"][0] for output in body["outputs"] if output["name"] == "image")
    status, body = marking.post("/v1/models/vca-generator:predict", {"instances": [{"prompt": "red heart"}]})
    assert status == 200
    for number, data in enumerate([encoded, body["predictions"][0]["images"][0]["b64"]]):
        (tmp_path / f"{number}.png").write_bytes(base64.b64decode(data))
        command = ["verify", str(tmp_path / f"{number}.png"), "--keys", str(folder)]
        done = subprocess.run(
            [sys.executable, "-c", "from vca.cli import main; main()", *command],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "made by VCA, unchanged since" in done.stdout


def test_production_does_not_start_without_keys() -> None:
    with pytest.raises(SettingsError, match=r"serving\.keys is missing"):
        load(preset="local", overrides=["serving.safety.profile=production"])
    unmarked = ["serving.safety.profile=production", "serving.credentials=false", "serving.watermark=false"]
    assert load(preset="local", overrides=unmarked).serving.keys is None
