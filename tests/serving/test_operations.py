"""What operators rely on: readiness, liveness, overload, drain, release swaps, refusal of bad releases."""

from __future__ import annotations

import base64
import http.client
import io
import json
import re
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from serving_process import Running, make_policy, start

from vca.models.stable_diffusion import ADAPTER_FILE, WEIGHTS_FILE

GENERATIONS = "/openai/v1/images/generations"


def server(policy: Path, tmp_path: Path, *sets: str) -> Running:
    return start("generator", f"--policy={policy}", *(f"--set=serving.{one}" for one in sets), log=tmp_path / "log")


def picture(body: Any) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(body["data"][0]["b64_json"]))).convert("RGB")).astype(int)


def test_a_thousand_requests_of_32_callers_get_their_own_pictures(generator: Running) -> None:
    """The content tells whose picture it is: the same order drawn alone, and no other order's."""
    orders = [
        {"prompt": f"{colour} {thing}", "seed": seed, "steps": 1}
        for seed, (colour, thing) in enumerate(
            [(c, t) for c in ("red", "blue", "green", "orange") for t in ("heart", "circle", "square", "cat")] * 4
        )
    ]
    alone = [picture(generator.post(GENERATIONS, order)[1]) for order in orders]
    distance = [[np.abs(one - other).mean() for other in alone] for one in alone]
    assert min(d for i, row in enumerate(distance) for j, d in enumerate(row) if i != j) > 2

    def ask(number: int) -> bool:
        while True:
            status, body = generator.post(GENERATIONS, orders[number % len(orders)], X_Request_Id=f"caller-{number}")
            if status == 429:
                time.sleep(0.1)
                continue
            mine = np.abs(picture(body) - alone[number % len(orders)]).max() <= 1
            return status == 200 and mine and body["request_id"] == f"caller-{number}"

    with ThreadPoolExecutor(32) as callers:
        assert all(callers.map(ask, range(1000)))


def test_before_it_is_ready_it_lives_and_says_so(policy_folder: Path, tmp_path: Path) -> None:
    running = server(policy_folder, tmp_path)
    try:
        while True:  # until it listens, which it does before it has loaded anything
            try:
                assert running.get("/v2/health/live")[0] == 200
                break
            except OSError:
                time.sleep(0.05)
        assert running.get("/v2/health/ready")[0] == 503
        assert running.get(f"/v2/models/{running.model}/ready")[0] == 503
        status, body = running.post(GENERATIONS, {"prompt": "x"})
        assert (status, body["error"]["code"]) == (503, "not_ready")
        running.wait()
        assert running.get("/v2/health/ready")[0] == 200
        assert running.stop() == 0
    finally:
        running.process.kill()


def test_a_model_that_can_not_load_ends_the_server_with_one_line(tmp_path: Path) -> None:
    running = server(tmp_path / "nowhere", tmp_path)
    assert running.process.wait(120) == 4
    assert running.log.read_text().splitlines()[-1].startswith("vca: error: ")


def test_sigterm_finishes_what_is_under_way_and_takes_nothing_new(policy_folder: Path, tmp_path: Path) -> None:
    running = server(policy_folder, tmp_path)
    try:
        running.wait()
        with ThreadPoolExecutor(4) as callers:
            slow = [callers.submit(running.post, GENERATIONS, {"prompt": "x", "steps": 60, "n": 4}) for _ in range(3)]
            while b"vca_batch_size_count" not in running.get("/metrics")[1]:
                time.sleep(0.02)
            time.sleep(0.5)
            running.process.terminate()
            time.sleep(0.3)
            with pytest.raises((OSError, http.client.HTTPException)):
                running.post(GENERATIONS, {"prompt": "x"})
            assert [one.result()[0] for one in slow] == [200, 200, 200]
        assert running.process.wait(60) == 0
    finally:
        running.process.kill()


def test_health_answers_while_the_device_works(generator: Running) -> None:
    """No figure of time: in a test that would depend on the machine. Health answers before the work is done."""
    with ThreadPoolExecutor(1) as caller:
        slow = caller.submit(generator.post, GENERATIONS, {"prompt": "x", "steps": 100, "n": 16})
        time.sleep(0.3)
        for path in ("/v2/health/live", "/v2/health/ready", f"/v2/models/{generator.model}/ready"):
            assert generator.get(path)[0] == 200
        assert not slow.done()
        assert slow.result()[0] == 200


def test_a_full_queue_refuses_politely_and_what_was_admitted_is_answered(policy_folder: Path, tmp_path: Path) -> None:
    running = server(policy_folder, tmp_path, "queue=8", "max_pictures=8", "batch=4")
    try:
        running.wait()
        with ThreadPoolExecutor(24) as callers:
            answers = list(
                callers.map(lambda n: running.post(GENERATIONS, {"prompt": "x", "seed": n, "steps": 20}), range(72))
            )
        statuses = [status for status, _ in answers]
        assert set(statuses) == {200, 429}
        refused = next(body for status, body in answers if status == 429)
        assert refused["error"]["code"] == "queue_full"
        connection = http.client.HTTPConnection("127.0.0.1", running.http, timeout=60)
        blockers = [
            threading.Thread(target=running.post, args=(GENERATIONS, {"prompt": "x", "steps": 100, "n": 8}))
            for _ in range(3)
        ]
        for one in blockers:
            one.start()
        time.sleep(0.5)
        connection.request(
            "POST", GENERATIONS, json.dumps({"prompt": "x", "n": 8}), {"Content-Type": "application/json"}
        )
        answer = connection.getresponse()
        assert answer.status == 429
        assert int(answer.headers["Retry-After"]) >= 1
        for one in blockers:
            one.join()
        assert running.post(GENERATIONS, {"prompt": "x"})[0] == 200
    finally:
        running.process.kill()


def test_a_deadline_of_the_caller_s_own(generator: Running) -> None:
    status, body = generator.post(GENERATIONS, {"prompt": "x", "steps": 100, "n": 16}, X_Request_Timeout="0.2")
    assert (status, body["error"]["code"]) == (503, "deadline")
    status, body = generator.post(GENERATIONS, {"prompt": "x"}, X_Request_Timeout="soon")
    assert status == 400


def swap(running: Running) -> tuple[int, Any]:
    return running.post(f"/v2/repository/models/{running.model}/load", {})


@pytest.fixture(scope="module")
def swappable(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("swap")
    for seed in (1, 2):
        make_policy(folder / str(seed), seed=seed)
    shutil.copytree(folder / "1", folder / "current")
    running = server(folder / "current", folder)
    try:
        running.wait()
        yield running, folder
    finally:
        running.process.kill()


def put(folder: Path, which: str) -> None:
    shutil.rmtree(folder / "current")
    shutil.copytree(folder / which, folder / "current")


def test_a_release_is_swapped_without_a_failed_request(swappable: tuple[Running, Path]) -> None:
    running, folder = swappable
    put(folder, "1")
    first = swap(running)[1]["release"]
    order = {"prompt": "red heart", "seed": 7, "steps": 6}
    pictures = {first: picture(running.post(GENERATIONS, order)[1])}
    stopping = threading.Event()
    found: list[tuple[int, str, np.ndarray]] = []

    def ask() -> None:
        while not stopping.is_set():
            status, body = running.post(GENERATIONS, order)
            found.append((status, body.get("release", str(body)), picture(body)))

    callers = [threading.Thread(target=ask) for _ in range(6)]
    for caller in callers:
        caller.start()
    time.sleep(1)
    put(folder, "2")
    status, body = swap(running)
    assert status == 200
    time.sleep(1)
    stopping.set()
    for caller in callers:
        caller.join()
    second = body["release"]
    pictures[second] = picture(running.post(GENERATIONS, order)[1])
    assert np.abs(pictures[first] - pictures[second]).mean() > 2
    assert {status for status, _, _ in found} == {200}
    assert {release for _, release, _ in found} == {first, second}
    assert all(np.abs(shown - pictures[release]).max() <= 1 for _, release, shown in found)


def damaged(folder: Path, how: str) -> None:
    """Damage the adapter in `folder`; where the digest would tell first, the card is made to agree."""
    import hashlib

    weights, card = folder / WEIGHTS_FILE, folder / ADAPTER_FILE
    facts = json.loads(card.read_text())
    if how == "foreign":
        facts["base_digest"] = "sha256:" + "0" * 64
    elif how == "changed":
        weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    elif how == "pickle":
        torch.save({"x": torch.zeros(1)}, weights)
    elif how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "missing":
        weights.unlink()
    else:
        tensors = load_file(weights)
        name = next(iter(tensors))
        if how == "NaN":
            tensors[name][0] = float("nan")
        elif how == "wrong shape":
            tensors[name] = tensors[name][:, :1].contiguous()
        elif how == "wrong names":
            tensors["other"] = tensors.pop(name)
        elif how == "huge":
            tensors = {name: tensor * 1e30 for name, tensor in tensors.items()}
        save_file(tensors, weights)
    if how not in ("changed", "missing"):
        facts["files"][WEIGHTS_FILE] = hashlib.sha256(weights.read_bytes()).hexdigest()
    card.write_text(json.dumps(facts))


@pytest.mark.parametrize(
    "how", ["foreign", "changed", "pickle", "truncated", "missing", "NaN", "wrong shape", "wrong names", "huge"]
)
def test_a_bad_release_is_refused_and_the_old_one_serves_on(swappable: tuple[Running, Path], how: str) -> None:
    running, folder = swappable
    put(folder, "1")
    serving = swap(running)[1]["release"]
    damaged(folder / "current", how)
    status, body = swap(running)
    assert status == 400, body
    assert body["error"].endswith(f"{serving} goes on serving")
    status, body = running.post(GENERATIONS, {"prompt": "x"})
    assert (status, body["release"]) == (200, serving)


def test_a_container_s_log_tells_what_serves(generator: Running) -> None:
    log = generator.log.read_text()
    assert re.search(r"INFO .*vca-generator is ready, release policy-\w{12} \(imports", log)
    assert "gemm_4bit" not in log


def test_unloading_is_not_for_strangers(generator: Running) -> None:
    assert generator.post(f"/v2/repository/models/{generator.model}/unload", {})[0] == 400
    assert generator.get(f"/v2/models/{generator.model}/ready")[0] == 200


def test_metrics_tell_of_requests_pictures_batches_and_the_release(generator: Running) -> None:
    generator.post(GENERATIONS, {"prompt": "x"})
    text = generator.get("/metrics")[1].decode()
    for name in (
        "vca_requests_total",
        "vca_request_seconds_bucket",
        "vca_queue_capacity",
        "vca_batch_size_bucket",
        "vca_pictures_total",
        "vca_release_info",
        "vca_cold_start_seconds",
    ):
        assert name in text
    count = re.search(r'^request_predict_seconds_count\{model_name="vca-generator"\} (\S+)$', text, re.M)
    assert count  # KServe's own
    assert float(count[1]) > 0
