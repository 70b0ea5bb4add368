"""The model servers under load, in ratios within one run.

    make bench NAME=serving [ARGS='--only batching scorer --seconds 60']

cold_start   seconds to ready and what they are spent on
health       latency of liveness while a request of seconds is under way
batching     generator, 16 callers: pictures a second and p99 with batches of 16 against batches of 1, in turns
overhead     generator, one caller: HTTP round trip against the same pipeline called in a process of its own, in turns
scorer       scorer, 16 callers with one picture each, against plain transformers scoring one at a time, in turns
overload     more callers than the queue holds, for --seconds; then p99 as before, how soon, and memory

Servers run the untrained base, with the safety filter and provenance off where a bare pipeline is the peer, and as they
are by default where not; both are told. One thread each. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "serving"))
from serving_process import Running, make_reward, serving

GENERATIONS = "/openai/v1/images/generations"
BARE = ["--set=serving.safety.profile=development", "--set=serving.safety.classifier=none"]
CALLERS, TURNS, PER_TURN = 16, 5, 64


@contextmanager
def server(kind: str, *arguments: str) -> Iterator[Running]:
    with tempfile.TemporaryDirectory() as folder, serving(kind, *arguments, log=Path(folder) / "log") as running:
        yield running


class Client:
    """Keeps its connections, as product back ends do."""

    def __init__(self, running: Running) -> None:
        self.http = httpx.Client(base_url=running.url, timeout=300, limits=httpx.Limits(max_connections=400))

    def draw(self, **order: Any) -> tuple[int, float]:
        """Status and seconds."""
        started = time.perf_counter()
        answer = self.http.post(GENERATIONS, json={"prompt": "red heart", **order})
        return answer.status_code, time.perf_counter() - started


def p(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def cold_start() -> dict[str, Any]:
    found = []
    for _ in range(3):
        began = time.perf_counter()
        with server("generator") as running:
            seconds = time.perf_counter() - began
            lines = running.get("/metrics")[1].decode().splitlines()
            parts = {
                line.split('part="')[1].split('"')[0]: round(float(line.split()[-1]), 2)
                for line in lines
                if line.startswith("vca_cold_start_seconds{")
            }
            found.append({"seconds": round(seconds, 2), **parts})
    return {"runs": found, "median": statistics.median(one["seconds"] for one in found)}


def health() -> dict[str, Any]:
    with server("generator") as running:
        client = Client(running)
        seconds: list[float] = []
        done = threading.Event()

        def work() -> None:
            end = time.perf_counter() + 20
            while time.perf_counter() < end:
                client.draw(steps=100, n=16)
            done.set()

        thread = threading.Thread(target=work)
        thread.start()
        probe = httpx.Client(base_url=running.url, timeout=30)
        while not done.is_set():
            began = time.perf_counter()
            assert probe.get("/v2/health/live").status_code == 200
            seconds.append(time.perf_counter() - began)
            time.sleep(0.02)
        thread.join()
    return {"probes": len(seconds), "p50_ms": 1e3 * p(seconds, 0.5), "p99_ms": 1e3 * p(seconds, 0.99)}


def crowd(call: Callable[[int], tuple[int, float]], number: int, callers: int) -> tuple[float, list[float]]:
    """Answers a second and their seconds."""
    began = time.perf_counter()
    with ThreadPoolExecutor(callers) as pool:
        answers = list(pool.map(call, range(number)))
    assert all(status == 200 for status, _ in answers)
    return number / (time.perf_counter() - began), [seconds for _, seconds in answers]


def batching(*, bare: bool) -> dict[str, Any]:
    extra = BARE if bare else []
    with ExitStack() as stack:
        sides = {
            name: Client(stack.enter_context(server("generator", f"--set=serving.batch={size}", *extra)))
            for name, size in (("on", 16), ("off", 1))
        }
        rates: dict[str, list[float]] = {"on": [], "off": []}
        times: dict[str, list[float]] = {"on": [], "off": []}
        for turn in range(TURNS):
            for name, client in sides.items():
                rate, seconds = crowd(lambda n, c=client: c.draw(seed=n), PER_TURN, CALLERS)  # type: ignore[misc]
                rates[name].append(rate)
                times[name] += seconds
            say(f"batching, turn {turn + 1}: {rates['on'][-1]:.1f} against {rates['off'][-1]:.1f} pictures a second")
    return {
        "filter": not bare,
        "pictures_per_second": {name: statistics.median(found) for name, found in rates.items()},
        "ratio": statistics.median(on / off for on, off in zip(rates["on"], rates["off"], strict=True)),
        "p99_s": {name: p(found, 0.99) for name, found in times.items()},
    }


def _bare(orders: Any, answers: Any) -> None:
    """The same pipeline called directly: the plain sampler, then a PNG in base64."""
    import torch

    from vca.diffusion.sampler import generate
    from vca.models.stable_diffusion import load_pipeline

    pipeline = load_pipeline("package:stable_diffusion")
    while (seed := orders.get()) is not None:
        began = time.perf_counter()
        generator = torch.Generator().manual_seed(seed)
        samples = generate(pipeline, prompts=["red heart"], steps=8, guidance=2.5, eta=0.0, generators=[generator])
        pixels = (samples.images_BCHW[0].permute(1, 2, 0) * 255).round().byte().numpy()
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, "PNG")
        base64.b64encode(out.getvalue())
        answers.put(time.perf_counter() - began)


def overhead() -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    orders, answers = context.Queue(), context.Queue()
    peer = context.Process(target=_bare, args=(orders, answers), daemon=True)
    peer.start()
    with ExitStack() as stack:
        sides = {
            "bare": Client(stack.enter_context(server("generator", *BARE))),
            "default": Client(stack.enter_context(server("generator"))),
        }
        found: dict[str, list[float]] = {"pipeline": [], "bare": [], "default": []}
        for seed in range(60):
            orders.put(seed)
            found["pipeline"].append(answers.get())
            for name, client in sides.items():
                found[name].append(client.draw(seed=seed)[1])
    orders.put(None)
    medians = {name: 1e3 * p(seconds[10:], 0.5) for name, seconds in found.items()}
    return {
        "p50_ms": medians,
        "added_ms": medians["bare"] - medians["pipeline"],
        "added_with_filter_and_provenance_ms": medians["default"] - medians["pipeline"],
    }


def pictures(number: int) -> list[bytes]:
    lot = np.random.default_rng(0)
    found = []
    for _ in range(number):
        out = io.BytesIO()
        Image.fromarray(lot.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(out, "PNG")
        found.append(out.getvalue())
    return found


def _plain(folder: str, orders: Any, answers: Any) -> None:
    """One picture at a time through transformers' own classes and processor, with the adapter merged by peft."""
    import torch

    from vca.reward.scorer import RewardScorer

    scorer = RewardScorer.load(Path(folder))
    model, reader = scorer.model, scorer.model.reader
    for block in reader.model.model.visual.blocks:
        del block.attn.forward  # the class's own
    from vca.models.qwen_vl import small_images

    processor = small_images()
    grid = torch.tensor([[1, reader.grid, reader.grid]])
    answers.put("ready")
    while (data := orders.get()) is not None:
        began = time.perf_counter()
        for one in data:
            image = Image.open(io.BytesIO(one)).convert("RGB")
            patches = processor(images=[image], return_tensors="pt")["pixel_values"]
            rows = reader.rows(prompts=["red heart"])
            with torch.no_grad():
                hidden_BLD = reader.model.model(
                    input_ids=rows.ids_BL,
                    attention_mask=rows.valid_BL.long(),
                    pixel_values=patches,
                    image_grid_thw=grid,
                    mm_token_type_ids=rows.image_BL.int(),
                ).last_hidden_state.float()
                after_BL1 = rows.after_BL.unsqueeze(-1)
                pooled_BD = (hidden_BLD * after_BL1).sum(1) / after_BL1.sum(1)
                logp_B = reader.log_likelihood(rows=rows, hidden_BLD=hidden_BLD)
                float((torch.cat([pooled_BD, logp_B[:, None]], 1) @ model.head_D)[0])
        answers.put(time.perf_counter() - began)


def scorer() -> dict[str, Any]:
    number = 256
    data = pictures(number)
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as name:
        folder = make_reward(Path(name))
        orders, answers = context.Queue(), context.Queue()
        peer = context.Process(target=_plain, args=(str(folder), orders, answers), daemon=True)
        peer.start()
        with server("scorer", f"--reward={folder}") as running:
            client = httpx.Client(base_url=running.url, timeout=300, limits=httpx.Limits(max_connections=64))

            def ask(at: int) -> tuple[int, float]:
                began = time.perf_counter()
                instance = {"prompt": "red heart", "image": {"b64": base64.b64encode(data[at]).decode()}}
                answer = client.post("/v1/models/vca-reward:predict", json={"instances": [instance]})
                return answer.status_code, time.perf_counter() - began

            answers.get()
            rates: dict[str, list[float]] = {"served": [], "plain": []}
            for turn in range(TURNS):
                rates["served"].append(crowd(ask, number, CALLERS)[0])
                orders.put(data)
                rates["plain"].append(number / answers.get())
                say(f"scorer, turn {turn + 1}: {rates['served'][-1]:.0f} against {rates['plain'][-1]:.0f} a second")
        orders.put(None)
    return {
        "pictures_per_second": {name: statistics.median(found) for name, found in rates.items()},
        "ratio": statistics.median(a / b for a, b in zip(rates["served"], rates["plain"], strict=True)),
    }


def overload(seconds: float) -> dict[str, Any]:
    """Closed-loop callers, ten times as many as the batch and the queue hold."""
    with server("generator", "--set=serving.queue=16") as running:
        client = Client(running)
        usual = [client.draw(seed=n)[1] for n in range(40)]
        crowd(lambda n: client.draw(seed=n), 64, 8)  # what full batches need stays allocated
        memory = running.rss()
        counts: dict[int, int] = {}
        lock, end = threading.Lock(), time.perf_counter() + seconds

        def press() -> None:
            while time.perf_counter() < end:
                status, _ = client.draw(seed=1)
                with lock:
                    counts[status] = counts.get(status, 0) + 1
                if status == 429:
                    time.sleep(0.02)  # ruder than Retry-After says

        threads = [threading.Thread(target=press) for _ in range(10 * 32)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        over, limit = time.perf_counter(), 1.5 * p(usual, 0.99)
        while client.draw(seed=1)[1] > limit and time.perf_counter() < over + 60:
            pass
        recovered = time.perf_counter() - over
        after = [client.draw(seed=n)[1] for n in range(40)]
        return {
            "answers": counts,
            "p99_before_s": p(usual, 0.99),
            "p99_after_s": p(after, 0.99),
            "recovered_after_s": recovered,
            "memory_mb": {"before": memory / 1e6, "after": running.rss() / 1e6},
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ("cold_start", "health", "batching", "overhead", "scorer", "overload")
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--seconds", type=float, default=60, help="of overload")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # here and in every process started from here
    parts: dict[str, Callable[[], Any]] = {
        "cold_start": cold_start,
        "health": health,
        "batching": lambda: [batching(bare=True), batching(bare=False)],
        "overhead": overhead,
        "scorer": scorer,
        "overload": lambda: overload(given.seconds),
    }
    found = {}
    for name in given.only:
        found[name] = parts[name]()
        say(f"{name}: {json.dumps(found[name])}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
