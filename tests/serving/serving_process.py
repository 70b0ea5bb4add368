"""Real servers in processes of their own, as the cluster runs them, on 127.0.0.1."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
START_SECONDS = 180  # far more than it takes; a loaded machine imports slowly


def free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


@dataclass
class Running:
    """A server's process and where it listens."""

    process: subprocess.Popen[bytes]
    http: int
    grpc: int
    model: str
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http}"

    def get(self, path: str) -> tuple[int, bytes]:
        return self.call(path)

    def call(self, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
        """Status and body of a GET, or of a POST of `body`."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(self.url + path, data=body, headers=given)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def post(self, path: str, document: Any, **headers: str) -> tuple[int, Any]:
        status, content = self.call(path, json.dumps(document).encode(), content_type="application/json", **headers)
        return status, json.loads(content)

    def wait(self) -> None:
        """Until it is ready."""
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            try:
                if self.get(f"/v2/models/{self.model}/ready")[0] == 200:
                    return
            except OSError:
                pass
            time.sleep(0.2)
        raise AssertionError(f"not ready after {START_SECONDS} s: {self.log.read_text()[-3000:]}")

    def rss(self) -> int:
        """Resident memory, bytes."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGESIZE")

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def start(server: str, *arguments: str, log: Path) -> Running:
    http, grpc = free_ports(2)
    command = [sys.executable, "-m", "serving", server, f"--http_port={http}", f"--grpc_port={grpc}", *arguments]
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=out, stderr=out, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
    model = {"generator": "vca-generator", "scorer": "vca-reward"}[server]
    return Running(process=process, http=http, grpc=grpc, model=model, log=log)


@contextmanager
def serving(server: str, *arguments: str, log: Path) -> Iterator[Running]:
    """A ready server for as long as the context lasts."""
    running = start(server, *arguments, log=log)
    try:
        running.wait()
        yield running
    finally:
        running.process.kill()
        running.process.wait()


def make_policy(folder: Path, *, seed: int) -> Path:
    """A policy adapter of the shipped base that changes pictures a little, otherwise for each seed."""
    from vca.models.stable_diffusion import load_pipeline, save_adapter

    pipeline = load_pipeline("package:stable_diffusion")
    pipeline.attach_lora(rank=2, alpha=2, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    weights = {
        name: torch.randn(tensor.shape, generator=generator) * 0.05 if ".lora_B." in name else tensor.detach()
        for name, tensor in pipeline.lora().items()
    }
    save_adapter(pipeline, folder, weights=weights, facts={"base": "package:stable_diffusion", "watermark": "t0"})
    return folder


def make_reward(folder: Path, *, seed: int = 0, broken: bool = False) -> Path:
    """A reward adapter of the shipped base with adapters and a head that are drawn, not trained; or one that is NaN."""
    from vca.reward import adapter
    from vca.reward.model import RewardModel
    from vca.settings import load

    model = RewardModel(settings=load(preset="local").reward)
    generator = torch.Generator().manual_seed(seed)
    model.head_D.data = torch.randn(model.head_D.shape, generator=generator)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.data = 0.02 * torch.randn(parameter.shape, generator=generator)
    if broken:
        model.head_D.data[0] = float("nan")
    calibration = adapter.Calibration(mu=0.5, s=20.0, n=10)
    adapter.save(folder=folder, model=model, calibration=calibration, metrics={}, card="# test", watermark="t0")
    return folder
