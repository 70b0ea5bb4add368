"""The scorer as back ends see it: on every protocol the scores of the library, and refusals with reasons."""

from __future__ import annotations

import base64
import http.server
import io
import json
import re
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from serving_process import Running, make_reward, serving

from serving.tensors import HEADER_LENGTH, Tensor, bytes_array, raw_of
from vca.diffusion.train import reward_function
from vca.errors import ArtifactError, ResourceError
from vca.reward import adapter
from vca.reward.remote import RemoteScorer
from vca.reward.scorer import RewardScorer, Scores

PROMPTS = ["red heart", "a blue circle, fluent style", "cat"]
INFER = "/v2/models/vca-reward/infer"


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """uint8 [3, 64, 64, 3]"""
    return np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def expected(reward_folder: Path, images: np.ndarray) -> Scores:
    scorer = RewardScorer.load(reward_folder)
    return scorer.score(prompts=PROMPTS, images_BCHW=torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255)


def encoded(image: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, kind, **options)
    return out.getvalue()


def close(found: Any, expected: torch.Tensor) -> None:
    torch.testing.assert_close(torch.as_tensor(found), expected, rtol=1e-4, atol=1e-4)


def document(datatype: str, shape: list[int], data: Any, **more: Any) -> dict[str, Any]:
    prompt = {"name": "prompt", "datatype": "BYTES", "shape": [3], "data": PROMPTS}
    return {"inputs": [prompt, {"name": "image", "datatype": datatype, "shape": shape, "data": data}], **more}


def test_pictures_in_base64_score_as_the_library_scores_them(
    scorer: Running, images: np.ndarray, expected: Scores
) -> None:
    pictures = [base64.b64encode(encoded(image)).decode() for image in images]
    status, body = scorer.post(INFER, document("BYTES", [3], pictures, id="42"))
    assert status == 200, body
    assert body["id"] == "42"
    assert [output["name"] for output in body["outputs"]] == ["score", "raw_score"]
    close(body["outputs"][0]["data"], expected.calibrated_B)
    close(body["outputs"][1]["data"], expected.raw_B)


def test_raw_pictures_over_rest_s_binary_extension(scorer: Running, images: np.ndarray, expected: Scores) -> None:
    """What the stock server answers with 500."""
    given = [
        Tensor(name="prompt", datatype="BYTES", values=bytes_array([text.encode() for text in PROMPTS])),
        Tensor(name="image", datatype="BYTES", values=bytes_array([encoded(image) for image in images])),
    ]
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": tensor.name,
                    "datatype": tensor.datatype,
                    "shape": tensor.shape,
                    "parameters": {"binary_data_size": len(raw_of(tensor))},
                }
                for tensor in given
            ]
        }
    ).encode()
    body = head + b"".join(map(raw_of, given))
    status, content = scorer.call(INFER, body, **{HEADER_LENGTH: str(len(head))})
    assert status == 200, content
    close(json.loads(content)["outputs"][0]["data"], expected.calibrated_B)


def test_a_tensor_of_uint8(scorer: Running, images: np.ndarray, expected: Scores) -> None:
    status, body = scorer.post(INFER, document("UINT8", [3, 64, 64, 3], images.reshape(-1).tolist()))
    assert status == 200, body
    close(body["outputs"][0]["data"], expected.calibrated_B)


def test_components_where_they_are_asked_for_add_up_to_the_raw_score(scorer: Running, images: np.ndarray) -> None:
    pictures = [base64.b64encode(encoded(image)).decode() for image in images]
    body = document("BYTES", [3], pictures, parameters={"components": True})
    found = {output["name"]: np.array(output["data"]) for output in scorer.post(INFER, body)[1]["outputs"]}
    np.testing.assert_allclose(found["preference"] + found["likelihood"], found["raw_score"], rtol=1e-4, atol=1e-3)
    body = document("BYTES", [3], pictures, outputs=[{"name": "likelihood"}])
    assert [output["name"] for output in scorer.post(INFER, body)[1]["outputs"]] == ["likelihood"]


def test_v1(scorer: Running, images: np.ndarray, expected: Scores) -> None:
    instances = [
        {"prompt": prompt, "image": {"b64": base64.b64encode(encoded(image)).decode()}}
        for prompt, image in zip(PROMPTS, images, strict=True)
    ]
    status, body = scorer.post("/v1/models/vca-reward:predict", {"instances": instances})
    assert status == 200, body
    close([prediction["score"] for prediction in body["predictions"]], expected.calibrated_B)


def test_history_is_scored_as_the_refined_prompt(scorer: Running, images: np.ndarray) -> None:
    picture = {"b64": base64.b64encode(encoded(images[0])).decode()}
    instances = [
        {"prompt": "red heart", "image": picture, "history": ["make it blue", "make it green"]},
        {"prompt": "green heart", "image": picture},
        {"prompt": "red heart", "image": picture},
    ]
    status, body = scorer.post("/v1/models/vca-reward:predict", {"instances": instances})
    assert status == 200, body
    after, green, red = (prediction["raw_score"] for prediction in body["predictions"])
    assert after == pytest.approx(green, abs=1e-3)
    assert abs(after - red) > 1e-2


def test_metadata_carries_what_a_score_rests_on(scorer: Running, reward_folder: Path) -> None:
    marker = adapter.verify(reward_folder)
    body = json.loads(scorer.get("/v2/models/vca-reward")[1])
    facts = body["properties"]
    assert facts["base_digest"] == marker["base_digest"]
    assert facts["adapter_digest"] == marker["files"]["adapter_model.safetensors"]
    assert facts["data_watermark"] == "t0"
    assert (float(facts["calibration_mu"]), float(facts["calibration_s"])) == (0.5, 20.0)
    assert body["versions"] == [facts["release"]]
    assert scorer.get(f"/v2/models/vca-reward/versions/{facts['release']}/ready")[0] == 200
    assert scorer.get("/v2/models/vca-reward/versions/0/ready")[0] == 404


def test_the_remote_scorer_is_the_one_in_this_process(
    scorer: Running, reward_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures that aren't of the model's size, more rows than a request takes."""
    monkeypatch.setattr("vca.reward.remote._ROWS", 3)
    images_BCHW = torch.rand(7, 3, 40, 56, generator=torch.Generator().manual_seed(1))
    prompts = [f"{n} hearts" for n in range(7)]
    here = RewardScorer.load(reward_folder).score(prompts=prompts, images_BCHW=images_BCHW)
    remote = RemoteScorer(scorer.url)
    remote.check(adapter_digest=adapter.verify(reward_folder)["files"]["adapter_model.safetensors"])
    there = remote.score(prompts=prompts, images_BCHW=images_BCHW)
    close(there.raw_B, here.raw_B)
    close(there.calibrated_B, here.calibrated_B)
    close(there.components["likelihood"], here.components["likelihood"])
    with pytest.raises(ArtifactError, match="serves adapter"):
        remote.check(adapter_digest="0" * 64)


class Flaky:
    """In front of the scorer: answers `first` calls with 503, or not at all, and passes the others on."""

    def __init__(self, scorer: Running, *, first: int, hang: bool = False) -> None:
        self.calls = 0
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.calls += 1
                if outer.calls <= first:
                    if hang:
                        time.sleep(2)
                        return
                    self.send_response(503)
                    self.send_header("Retry-After", "0")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                answer = httpx.post(scorer.url + self.path, content=body, headers=dict(self.headers))
                self.send_response(answer.status_code)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(answer.content)

            def log_message(self, *args: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __enter__(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.mark.parametrize("hang", [False, True])
def test_the_remote_scorer_asks_again_what_may_pass(
    scorer: Running, expected: Scores, images: np.ndarray, hang: bool
) -> None:
    flaky = Flaky(scorer, first=2, hang=hang)
    images_BCHW = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    with flaky as url:
        found = RemoteScorer(url, timeout_s=1.0, retries=2).score(prompts=PROMPTS, images_BCHW=images_BCHW)
        close(found.raw_B, expected.raw_B)
        assert flaky.calls == 3
    flaky = Flaky(scorer, first=2, hang=hang)
    with flaky as url, pytest.raises(ResourceError, match="gave no score"):
        RemoteScorer(url, timeout_s=1.0, retries=1).score(prompts=PROMPTS, images_BCHW=images_BCHW)
    assert flaky.calls == 2


def test_what_cannot_pass_is_asked_once(scorer: Running) -> None:
    flaky = Flaky(scorer, first=0)
    with flaky as url, pytest.raises(ResourceError, match="400"):
        RemoteScorer(url, retries=5).score(prompts=[" "], images_BCHW=torch.zeros(1, 3, 8, 8))
    assert flaky.calls == 1


def test_training_gets_the_same_reward_from_a_server(scorer: Running, reward_folder: Path, tmp_path: Path) -> None:
    images_BCHW = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    prompts = ["red heart", "cat", "blue circle", "red heart"]
    rewards = [
        reward_function(reward_folder, device=torch.device("cpu"), url=url)(prompts=prompts, images_BCHW=images_BCHW)
        for url in (None, scorer.url)
    ]
    close(rewards[1], rewards[0])
    other = make_reward(tmp_path / "other", seed=1)
    with pytest.raises(ArtifactError, match="serves adapter"):
        reward_function(other, device=torch.device("cpu"), url=scorer.url)


def test_a_scorer_s_release_is_swapped_or_refused(tmp_path: Path, images: np.ndarray) -> None:
    for seed in (0, 1):
        make_reward(tmp_path / str(seed), seed=seed)
    current = tmp_path / "current"
    shutil.copytree(tmp_path / "0", current)
    body = document("BYTES", [3], [base64.b64encode(encoded(image)).decode() for image in images])
    with serving("scorer", f"--reward={current}", log=tmp_path / "log") as running:
        first = running.post(INFER, body)[1]
        shutil.rmtree(current)
        shutil.copytree(tmp_path / "1", current)
        status, said = running.post("/v2/repository/models/vca-reward/load", {})
        second = running.post(INFER, body)[1]
        assert (status, second["model_version"]) == (200, said["release"])
        assert first["model_version"] != second["model_version"]
        assert np.abs(np.subtract(first["outputs"][1]["data"], second["outputs"][1]["data"])).max() > 0.1
        make_reward(current, seed=2, broken=True)
        status, said = running.post("/v2/repository/models/vca-reward/load", {})
        assert status == 400
        assert "no numbers" in said["error"]
        (current / "head.safetensors").write_bytes(b"pickle")
        status, said = running.post("/v2/repository/models/vca-reward/load", {})
        assert status == 400
        assert running.post(INFER, body)[1] | {"parameters": None} == second | {"parameters": None}


def test_a_scorer_that_is_not_there_is_said_to_be_so() -> None:
    with pytest.raises(ResourceError, match=r"http://127.0.0.1:9 gave no score .*; is it running and ready"):
        RemoteScorer("http://127.0.0.1:9", retries=0).metadata()


@pytest.fixture(scope="module")
def picky(scorer: Running, policy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A generator that asks the scorer."""
    log = tmp_path_factory.mktemp("logs") / "picky.log"
    asks = f"--set=serving.scorer_url={scorer.url}"
    with serving("generator", f"--policy={policy_folder}", asks, log=log) as running:
        yield running


def test_best_of_gives_the_pictures_that_the_scorer_likes_best(picky: Running, reward_folder: Path) -> None:
    order = {"prompt": "red heart", "seed": 5, "n": 6, "steps": 3}
    status, every = picky.post("/openai/v1/images/generations", order)
    assert status == 200
    pictures = {picture["seed"]: base64.b64decode(picture["b64_json"]) for picture in every["data"]}
    arrays = [np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in pictures.values()]
    images_BCHW = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255
    scores = RewardScorer.load(reward_folder).score(prompts=["red heart"] * 6, images_BCHW=images_BCHW).calibrated_B
    ranked = sorted(zip(scores.tolist(), pictures, strict=True), reverse=True)
    status, best = picky.post("/openai/v1/images/generations", {**order, "n": 2, "best_of": 6})
    assert status == 200
    assert [picture["seed"] for picture in best["data"]] == [seed for _, seed in ranked[:2]]
    assert [picture["score"] for picture in best["data"]] == pytest.approx([s for s, _ in ranked[:2]], abs=0.02)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"inputs": []}, "input prompt is missing"),
        (document("BYTES", [2], ["QUJD", "QUJD"]), "image has 2 rows for 3 prompts"),
        (document("BYTES", [3], ["http://169.254.169.254/latest"] * 3), "addresses are not fetched"),
        (document("BYTES", [3], ["%%%"] * 3), "neither a picture nor base64"),
        (document("BYTES", [3], ["QUJD"] * 3), "image: not a PNG, JPEG or WebP file; send a whole one$"),
        (document("INT8", [3, 1, 1, 3], [0] * 9), r"image is INT8 \[3, 1, 1, 3\]; expected"),
        (document("UINT8", [3, 1, 1, 4], [0] * 12), r"image is UINT8 \[3, 1, 1, 4\]; expected"),
        (document("UINT8", [3, 0, 1, 3], []), "at most"),
        (document("FP32", [3, 3, 1, 1], [2.0] * 9), r"must lie in \[0, 1\]"),
        (document("FP32", [3, 3, 1, 1], [1e39] * 9), r"FP32|must lie"),
    ],
)
def test_what_cannot_be_scored_is_refused_with_a_reason(scorer: Running, body: dict[str, Any], reason: str) -> None:
    status, answer = scorer.post(INFER, body)
    assert 400 <= status < 500
    assert re.search(reason, answer["error"]), answer


def test_more_rows_than_a_request_may_have_are_refused(scorer: Running) -> None:
    prompt = {"name": "prompt", "datatype": "BYTES", "shape": [257], "data": ["cat"] * 257}
    image = {"name": "image", "datatype": "UINT8", "shape": [257, 1, 1, 3], "data": [0] * 771}
    status, answer = scorer.post(INFER, {"inputs": [prompt, image]})
    assert (status, answer["error"]) == (400, "257 rows: 1 to 256 may be asked for at once")
