"""`vca serve` and `vca studio`: a run's servers on this machine, a process each, as on the cluster."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vca.errors import ArtifactError, ResourceError, SettingsError
from vca.provenance.keys import create
from vca.settings import load


@dataclass(kw_only=True)
class Served:
    """A server's process, where it tells that it is ready, and what people are told then."""

    name: str
    process: subprocess.Popen[bytes]
    url: str
    probe: str
    address: str

    def ready(self) -> bool:
        try:
            with urllib.request.urlopen(self.url + self.probe, timeout=5) as answer:
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError):
            return False


def serve(
    *,
    run: Path,
    policy: Path | None,
    reward: Path | None,
    keys: Path,
    preset: str,
    sets: list[str],
    port: int,
    say: Callable[[str], None],
) -> None:
    """Start both servers and wait until SIGTERM or Ctrl-C, or until one ends by itself.

    run: a run's folder, whose adapters serve where none are named. keys: what pictures are signed and marked with; made
    for development where the folder is missing. port: the first of four. Raises SettingsError for settings that can't
    be, ArtifactError without adapters to serve, ResourceError where a server ends.
    """
    for option, folder in (("--policy", policy), ("--reward", reward)):
        if folder is not None and not _adapter(folder):
            raise ArtifactError(f"{option} {folder} holds no adapter.json; give the folder that training wrote")
    policy, reward = policy or _part(run, "evaluation/policy"), reward or _part(run, "reward")
    if policy is None and reward is None:
        raise ArtifactError(
            f"{run} holds no policy and no reward model; run `vca run` first, or give --policy and --reward"
        )
    sets = _with_keys(keys, [f"serving.keys={json.dumps(str(keys))}", *sets], preset=preset, say=say)
    common = [f"--preset={preset}", *(f"--set={one}" for one in sets), "--with_parent"]
    with _running(say) as servers:
        if reward is not None:
            servers.append(_model_server("scorer", [f"--reward={reward}", *common], port=port + 2))
            common = [*common, f"--set=serving.scorer_url={servers[0].url}"]
        if policy is not None:
            servers.append(_model_server("generator", [f"--policy={policy}", *common], port=port))
        _wait(servers, say, ready="docs/clients.md says how to talk to them; Ctrl-C stops them")


def studio(
    *,
    run: Path,
    policy: Path | None,
    generator: str | None,
    keys: Path,
    preset: str,
    sets: list[str],
    port: int,
    say: Callable[[str], None],
) -> None:
    """Start the studio at `port`, and a generator beside it unless `generator` is the address of one.

    Without a trained policy the base draws. Raises as `serve` does.
    """
    if policy is not None and not _adapter(policy):
        raise ArtifactError(f"--policy {policy} holds no adapter.json; give the folder that training wrote")
    with _running(say) as servers:
        if generator is None:
            policy = policy or _part(run, "evaluation/policy")
            say(f"the generator draws with {policy or f'the untrained base: {run} holds no policy yet'}")
            with_keys = _with_keys(keys, [f"serving.keys={json.dumps(str(keys))}", *sets], preset=preset, say=say)
            arguments = [f"--preset={preset}", *(f"--set={one}" for one in with_keys), "--with_parent"]
            arguments += [f"--policy={policy}"] if policy else []
            servers.append(_model_server("generator", arguments, port=port + 1))
            generator = servers[0].url
        command = [sys.executable, "-m", "serving.studio", f"--preset={preset}", *(f"--set={one}" for one in sets)]
        command += [f"--set=studio.generator_url={generator}", f"--port={port}", "--with_parent"]
        url = f"http://127.0.0.1:{port}"
        servers.append(Served(name="studio", process=_process(command), url=url, probe="/readyz", address=url))
        _wait(servers, say, ready=f"open {url} in a browser; Ctrl-C stops it, and nothing is lost")


@contextmanager
def _running(say: Callable[[str], None]) -> Iterator[list[Served]]:
    """The servers in the list are stopped at the end, however it comes."""
    servers: list[Served] = []
    try:
        yield servers
        say("stopping: what is under way is finished first")
    finally:
        for one in servers:
            one.process.terminate()
        for one in servers:
            one.process.wait()


def _wait(servers: Sequence[Served], say: Callable[[str], None], *, ready: str) -> None:
    """Until SIGTERM or Ctrl-C. Raises ResourceError where a server ends by itself."""
    told: list[int] = []
    before = {sig: signal.signal(sig, lambda number, _: told.append(number)) for sig in (signal.SIGTERM, signal.SIGINT)}
    try:
        say(f"starting {' and '.join(one.name for one in servers)}; this takes some seconds")
        waiting = list(servers)
        while not told:
            for one in servers:
                if (code := one.process.poll()) is not None:
                    raise ResourceError(f"{one.name} ended with exit code {code}; its last line above says why")
            for one in [one for one in waiting if one.ready()]:
                waiting.remove(one)
                say(f"{one.name} is ready: {one.address}")
                if not waiting:
                    say(ready)
            time.sleep(0.2)
    finally:
        for sig, handler in before.items():
            signal.signal(sig, handler)


def _with_keys(keys: Path, sets: list[str], *, preset: str, say: Callable[[str], None]) -> list[str]:
    """The settings of servers that sign and mark with `keys`, which are made for development where they are missing."""
    settings = load(preset=preset, overrides=sets).serving
    if settings.keys != keys:  # what a file or --set says would be lost without a word
        raise SettingsError(
            f"serving.keys: got {settings.keys}; `vca serve` takes the folder as --keys {settings.keys or 'FOLDER'}, "
            "and for pictures without keys serving.credentials=false and serving.watermark=false"
        )
    if not (settings.credentials or settings.watermark):
        return [*sets, "serving.keys=null"]
    if not keys.exists():
        if settings.safety.profile == "production":
            raise ArtifactError(f"--keys {keys} does not exist; production needs keys of your own: docs/provenance.md")
        say(f"making keys for development in {keys}; pictures are signed and marked with them (vca verify)")
        create(keys)
    return sets


def _part(run: Path, name: str) -> Path | None:
    return run / name if _adapter(run / name) else None


def _adapter(folder: Path) -> bool:
    return (folder / "adapter.json").is_file()


def _model_server(server: str, arguments: list[str], *, port: int) -> Served:
    command = [sys.executable, "-m", "serving", server, f"--http_port={port}", f"--grpc_port={port + 1}", *arguments]
    name = {"generator": "vca-generator", "scorer": "vca-reward"}[server]
    url = f"http://127.0.0.1:{port}"
    address = f"{url} (gRPC 127.0.0.1:{port + 1})"
    return Served(name=name, process=_process(command), url=url, probe=f"/v2/models/{name}/ready", address=address)


def _process(command: list[str]) -> subprocess.Popen[bytes]:
    # a group of its own: Ctrl-C is ours to pass on, so that what is under way is finished
    return subprocess.Popen(command, start_new_session=True)
