"""The loop: iterations, the log, checkpoints, and going on after a crash as if it had not happened."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vca import checkpoint
from vca.diffusion import dialogues as d
from vca.diffusion.algorithms import ALGORITHMS
from vca.diffusion.anchor import Anchor
from vca.diffusion.dialogues import Corpus
from vca.diffusion.distributed import World
from vca.diffusion.engine import make_engine
from vca.diffusion.rewards import RewardFunction
from vca.diffusion.sampler import schedule_of
from vca.diffusion.session import Average, Session
from vca.diffusion.settings import DiffusionSettings
from vca.errors import Interrupted
from vca.models.stable_diffusion import StableDiffusion
from vca.progress import Progress

METRICS_FILE = "metrics.jsonl"
# What may change between a checkpoint and the run that goes on from it.
_FREE = {"iterations", "checkpoint_every", "processes", "reward_url"}


class Trainer:
    """Trains a LoRA of `pipeline` and keeps checkpoints and metrics.jsonl in `output`.

    facts: what a checkpoint belongs to besides settings and base (digests of data and reward); JSON values.
    Raises ArtifactError where `output` holds a checkpoint that is damaged or belongs to something else.
    """

    def __init__(
        self,
        *,
        pipeline: StableDiffusion,
        config: DiffusionSettings,
        corpus: Corpus,
        reward: RewardFunction,
        world: World,
        output: Path,
        facts: Mapping[str, Any],
    ) -> None:
        pipeline.attach_lora(rank=config.lora_rank, alpha=config.lora_alpha, seed=config.seed)
        lora = pipeline.lora()
        anchored = corpus.targets and (config.noise_weight or config.multi_round_weight)
        self.session = Session(
            pipeline=pipeline,
            config=config,
            schedule=schedule_of(pipeline, steps=config.steps, spacing=config.spacing),
            reward=reward,
            engine=make_engine(lora, config, world),
            world=world,
            anchor=Anchor(pipeline=pipeline, config=config, targets=corpus.targets, world=world) if anchored else None,
            average=Average(lora, decay=config.ema) if config.ema else None,
        )
        self.corpus, self.world, self.output = corpus, world, output
        self.facts = {
            **{key: value for key, value in config.model_dump(mode="json").items() if key not in _FREE},
            "processes": world.size,
            "base_digest": pipeline.base_digest,
            **facts,
        }
        self._resume()

    def train(self, *, progress: Progress, stopping: Callable[[], bool] = lambda: False) -> None:
        """Run the remaining iterations. Raises Interrupted, after a checkpoint, once `stopping` says so anywhere."""
        s = self.session
        iterate = ALGORITHMS[s.config.trainer].iterate
        with progress.task("diffusion training", s.config.iterations, "rollouts") as task:
            task.advance(s.iteration)
            while s.iteration < s.config.iterations:
                started, cpu = time.perf_counter(), time.process_time()
                turns = d.batch(self.corpus, iteration=s.iteration, dialogues=s.config.dialogues, seed=s.config.seed)
                figures = iterate(s, turns[self.world.rank :: self.world.size])
                s.iteration += 1
                figures |= {
                    "lora_norm": float(torch.stack([p.detach().norm() for p in s.pipeline.lora().values()]).norm()),
                    "seconds": time.perf_counter() - started,
                    "cpu_seconds": time.process_time() - cpu,
                }
                self._log(figures)
                task.advance(1, score=figures["reward_mi_mean"])
                stop = bool(self.world.largest(torch.tensor(float(stopping()), device=self.world.device)))
                if stop or s.iteration % s.config.checkpoint_every == 0 or s.iteration == s.config.iterations:
                    self.save()
                if stop and s.iteration < s.config.iterations:
                    raise Interrupted(
                        f"stopped after {s.iteration} of {s.config.iterations} rollouts, checkpoint in "
                        f"{self.output / 'checkpoints'}; run the same command to go on"
                    )

    def served(self) -> dict[str, Tensor]:
        """The LoRA to serve: the average where one is kept."""
        average = self.session.average
        if average is not None:
            return average.tensors
        return {name: p.detach() for name, p in self.session.pipeline.lora().items()}

    def save(self) -> None:
        """Publish a checkpoint. No random state is in it: every draw is keyed by seed, iteration and sample."""
        root = self.output / "checkpoints"
        if self.world.rank == 0:
            checkpoint.stage(root, step=self.session.iteration)
        self.world.barrier()
        staged = root / f".step-{self.session.iteration:08d}"
        if self.world.rank == 0:
            torch.save(self.session.state_dict(), staged / "session.pt")
        self.session.engine.save(staged)
        self.world.barrier()
        if self.world.rank == 0:
            checkpoint.publish(staged, facts=self.facts)
        self.world.barrier()

    def _resume(self) -> None:
        found = checkpoint.latest(self.output / "checkpoints", facts=self.facts)
        if found is not None:
            state = torch.load(found.folder / "session.pt", weights_only=True, map_location=self.world.device)
            self.session.load_state_dict(state)
            self.session.engine.load(found.folder)
        self.world.barrier()
        if self.world.rank == 0:
            self._cut_log()

    def _cut_log(self) -> None:
        """Drop what was logged after the checkpoint, and a line that a crash left unfinished."""
        log = self.output / METRICS_FILE
        self.output.mkdir(parents=True, exist_ok=True)
        lines = log.read_text().splitlines()[: self.session.iteration] if log.is_file() else []
        temporary = log.with_name(f".{METRICS_FILE}")
        temporary.write_text("".join(f"{line}\n" for line in lines))
        os.replace(temporary, log)

    def _log(self, figures: Mapping[str, float]) -> None:
        if self.world.rank == 0:
            rounded = {name: float(f"{value:.6g}") for name, value in figures.items()}
            with (self.output / METRICS_FILE).open("a") as log:
                log.write(json.dumps({"update": self.session.iteration, **rounded}) + "\n")
