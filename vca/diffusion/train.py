"""Diffusion training: from dialogues and a reward adapter to a policy adapter.

Runs in one process, or in several: under torchrun, or started here with `processes`.
"""

from __future__ import annotations

import hashlib
import json
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vca.data.manifest import Manifest
from vca.data.shards import read_dialogues, read_manifest
from vca.diffusion import launch
from vca.diffusion.card import card
from vca.diffusion.dialogues import read_corpus
from vca.diffusion.distributed import World, join, leave
from vca.diffusion.rewards import RewardFunction
from vca.diffusion.settings import DiffusionSettings
from vca.diffusion.trainer import METRICS_FILE, Trainer
from vca.errors import SettingsError
from vca.models.stable_diffusion import load_pipeline, save_adapter
from vca.progress import Progress, Quiet
from vca.records import StageResult

_SMOOTH = 10  # rollouts whose mean stands for the start and the end of training


def run(config: DiffusionSettings, *, inputs: dict[str, Path], output: Path, progress: Progress) -> StageResult:
    """Train on `inputs["data"]` with the scorer in `inputs["reward"]`; adapter, card and log go to `output`.

    An `output` with checkpoints of the same run is gone on with. Raises Interrupted (exit 143) after a checkpoint on
    SIGTERM; ArtifactError for data, reward, base or checkpoints that are damaged or don't fit; DataError without
    dialogues; SettingsError where the batch can't be shared by the processes.
    """
    if config.processes > 1 and not launch.under_torchrun():
        launch.start(config, inputs=inputs, output=output)
        return StageResult(output=output, metrics=json.loads((output / "metrics.json").read_text()))
    world = join(group_needed=config.engine == "deepspeed")
    try:
        with stop_on_sigterm() as stopping:
            metrics = _train(config, inputs, output, progress if world.rank == 0 else Quiet(), world, stopping)
    finally:
        leave()
    return StageResult(output=output, metrics=metrics)


def reward_function(folder: Path, *, device: torch.device, url: str | None = None) -> RewardFunction:
    """The calibrated score of the reward model in `folder`, computed here or by the scorer at `url` that serves it."""
    from vca.reward import adapter
    from vca.reward.remote import RemoteScorer
    from vca.reward.scorer import RewardScorer

    scorer: RewardScorer | RemoteScorer
    if url is None:
        scorer = RewardScorer.load(folder, device=str(device))
    else:
        scorer = RemoteScorer(url)
        scorer.check(adapter_digest=adapter.verify(folder)["files"]["adapter_model.safetensors"])

    def calibrated(*, prompts: Sequence[str], images_BCHW: Tensor) -> Tensor:
        return scorer.score(prompts=list(prompts), images_BCHW=images_BCHW).calibrated_B

    return calibrated


def _train(
    config: DiffusionSettings,
    inputs: dict[str, Path],
    output: Path,
    progress: Progress,
    world: World,
    stopping: Callable[[], bool],
) -> dict[str, Any]:
    started = time.perf_counter()
    try:
        progress.say(f"diffusion training: {config.arithmetic(world=world.size)}")
    except ValueError as error:
        raise SettingsError(f"diffusion.{error}") from error
    manifest = read_manifest(inputs["data"])
    reward_digest = hashlib.sha256((inputs["reward"] / "adapter.json").read_bytes()).hexdigest()
    dtype = torch.bfloat16 if config.compute_dtype == "bfloat16" else torch.float32
    trainer = Trainer(
        pipeline=load_pipeline(config.base, device=world.device, dtype=dtype),
        config=config,
        corpus=read_corpus(
            read_dialogues(inputs["data"], role="diffusion"),
            rounds=config.rounds,
            pool=config.noise_pool,
            seed=config.seed,
        ),
        reward=reward_function(inputs["reward"], device=world.device, url=config.reward_url),
        world=world,
        output=output,
        facts={"data_digest": manifest.digest, "reward_digest": reward_digest},
    )
    trainer.train(progress=progress, stopping=stopping)
    if world.rank == 0:
        _finish(trainer, manifest, reward_digest, seconds=time.perf_counter() - started)
    world.barrier()
    metrics: dict[str, Any] = json.loads((output / "metrics.json").read_text())
    return metrics


def _finish(trainer: Trainer, manifest: Manifest, reward_digest: str, *, seconds: float) -> None:
    """Metrics, card and, last, the adapter."""
    config, output = trainer.session.config, trainer.output
    metrics = summary(output, seconds=seconds)
    _write(output / "metrics.json", json.dumps(metrics, indent=1))
    _write(output / "README.md", card(config=config, metrics=metrics, watermark=manifest.watermark))
    save_adapter(
        trainer.session.pipeline,
        output,
        weights=trainer.served(),
        facts={
            "base": config.base,
            "reward_digest": reward_digest,
            "data_digest": manifest.digest,
            "watermark": manifest.watermark,
            "settings": config.model_dump(mode="json"),
        },
    )


def summary(output: Path, *, seconds: float) -> dict[str, Any]:
    """Start and end of training in the log's figures, and what it cost."""
    lines = [json.loads(line) for line in (output / METRICS_FILE).read_text().splitlines()]

    def mean(name: str, part: Sequence[dict[str, float]]) -> float:
        return sum(line[name] for line in part) / len(part)

    names = [name for name in lines[-1] if name.startswith(("reward_", "contrast", "saturation")) and name in lines[0]]
    return {
        "rollouts": len(lines),
        "first": {name: mean(name, lines[:_SMOOTH]) for name in names},
        "last": {name: mean(name, lines[-_SMOOTH:]) for name in names},
        "seconds": round(seconds, 1),
        "seconds_per_rollout": round(mean("seconds", lines), 3),
        "cpu_seconds_per_rollout": round(mean("cpu_seconds", lines), 3),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }


@contextmanager
def stop_on_sigterm() -> Iterator[Callable[[], bool]]:
    """Whether SIGTERM has come. Signals reach the main thread only; elsewhere nobody can ask us to stop."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGTERM, before)


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(text)
    temporary.replace(path)
