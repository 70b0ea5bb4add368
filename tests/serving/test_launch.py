"""`vca serve`, as a person starts and stops it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest
from serving_process import ROOT, START_SECONDS

from serving.launch import serve
from vca.errors import ArtifactError, SettingsError, VcaError
from vca.provenance.keys import Keys


def four_free_ports() -> int:
    while True:
        with socket.socket() as first:
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
        try:
            for number in range(port, port + 4):
                with socket.socket() as one:
                    one.bind(("127.0.0.1", number))
        except (OSError, OverflowError):
            continue
        return port


def vca(*arguments: str, log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", "from vca.cli import main; main()", "serve", *arguments]
    with log.open("wb") as out:
        return subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out, env={**os.environ, "PYTHONUNBUFFERED": "1"})


@pytest.fixture
def run(tmp_path: Path, policy_folder: Path, reward_folder: Path) -> Path:
    """A run's folder with adapters where a run leaves them."""
    (tmp_path / "run" / "evaluation").mkdir(parents=True)
    (tmp_path / "run" / "evaluation" / "policy").symlink_to(policy_folder)
    (tmp_path / "run" / "reward").symlink_to(reward_folder)
    return tmp_path / "run"


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_both_servers_start_listen_here_only_and_end_with_it(run: Path, tmp_path: Path, how: signal.Signals) -> None:
    port, log = four_free_ports(), tmp_path / "log"
    process = vca(f"--run={run}", f"--port={port}", f"--keys={tmp_path / 'keys'}", log=log)
    try:
        end = time.monotonic() + START_SECONDS
        while "Ctrl-C stops them" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end
            time.sleep(0.2)
        assert len(re.findall(r"is ready: http://127\.0\.0\.1:\d+ \(gRPC 127\.0\.0\.1:\d+\)", log.read_text())) == 2
        first = [line.split()[0] for line in log.read_text().splitlines()]  # ours, and nobody else's
        assert sorted(first) == ["docs/clients.md", "making", "starting", "vca-generator", "vca-reward"]
        assert Keys.load(tmp_path / "keys").private_key
        servers = psutil.Process(process.pid).children(recursive=True)
        listening = {c.laddr for s in servers for c in s.connections() if c.status == psutil.CONN_LISTEN}
        ips = {address.ip.removeprefix("::ffff:") for address in listening}  # gRPC binds it as IPv6 spells it
        assert ips == {"127.0.0.1"}
        assert {address.port for address in listening} == set(range(port, port + 4))
        body = b'{"prompt": "red heart", "n": 1, "best_of": 2, "steps": 1}'
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/openai/v1/images/generations", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:  # the generator knows the scorer
            assert answer.status == 200
        process.send_signal(how)
        assert process.wait(60) == (0 if how == signal.SIGTERM else -signal.SIGKILL)
        psutil.wait_procs(servers, timeout=30)
        assert not [server for server in servers if server.is_running()]
    finally:
        process.kill()


def test_without_a_run_it_says_what_to_do_and_leaves_nothing_behind(tmp_path: Path) -> None:
    process = vca(f"--run={tmp_path / 'run'}", f"--keys={tmp_path / 'keys'}", log=tmp_path / "log")
    assert process.wait(60) == 4
    assert "run `vca run` first" in (tmp_path / "log").read_text()
    assert not (tmp_path / "keys").exists()


def refused(error: type[VcaError], run: Path, *sets: str, match: str, **folders: Path) -> None:
    """Nothing has started, and no keys were made."""
    keys = run.parent / "keys"
    given: dict[str, Any] = {"policy": None, "reward": None, **folders}
    with pytest.raises(error, match=match):
        serve(run=run, keys=keys, preset="local", sets=list(sets), port=four_free_ports(), say=print, **given)
    assert not keys.exists()


@pytest.mark.parametrize("name", ["policy", "reward"])
def test_a_folder_without_an_adapter_is_refused_before_anything_starts(run: Path, tmp_path: Path, name: str) -> None:
    refused(ArtifactError, run, match=f"--{name} {tmp_path} holds no adapter.json", **{name: tmp_path})


def test_production_is_given_its_keys(run: Path) -> None:
    refused(ArtifactError, run, "serving.safety.profile=production", match="keys does not exist; production needs")


def test_keys_among_the_settings_are_not_lost_without_a_word(run: Path) -> None:
    refused(SettingsError, run, "serving.keys=/mine", match=r"serving\.keys: got /mine; .* --keys /mine")


def test_a_server_that_ends_takes_the_other_with_it(run: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        port = four_free_ports()
        taken.bind(("127.0.0.1", port + 2))
        taken.listen()
        process = vca(f"--run={run}", f"--port={port}", f"--keys={tmp_path / 'keys'}", log=tmp_path / "log")
        assert process.wait(120) == 5
    assert "vca-reward ended with exit code" in (tmp_path / "log").read_text().splitlines()[-1]
