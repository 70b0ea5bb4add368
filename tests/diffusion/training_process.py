"""A small training run in a process of its own, which a test can kill.

The processes are forked from a server that has the heavy libraries loaded already, so that each costs what it trains.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch
from tiny_training import corpus, lora_vector, redness, settings

from vca.diffusion.distributed import join, leave
from vca.diffusion.train import stop_on_sigterm
from vca.diffusion.trainer import Trainer
from vca.errors import Interrupted
from vca.models.stable_diffusion import load_pipeline
from vca.progress import Quiet

FINAL = "final.pt"


def train(
    base: Path, output: Path, changes: dict[str, Any], stop_at: int, environment: dict[str, str], scorings: Connection
) -> None:
    """Tell `scorings` whenever pictures are scored; at the `stop_at`-th send itself a SIGTERM (0: never)."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    config = settings(**changes)
    world = join(group_needed=config.engine == "deepspeed")
    count = 0

    def reward(*, prompts, images_BCHW):  # type: ignore[no-untyped-def]
        nonlocal count
        count += 1
        if count == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        scorings.send(count)
        return redness(prompts=prompts, images_BCHW=images_BCHW)

    trainer = Trainer(
        pipeline=load_pipeline(str(base)),
        config=config,
        corpus=corpus(targets=True),
        reward=reward,
        world=world,
        output=output,
        facts={},
    )
    with stop_on_sigterm() as stopping:
        try:
            trainer.train(progress=Quiet(), stopping=stopping)
        except Interrupted as stopped:
            raise SystemExit(stopped.exit_code) from stopped
    if world.rank == 0:
        torch.save({"lora": lora_vector(trainer.session.pipeline), "served": trainer.served()}, output / FINAL)
    leave()


@contextmanager
def training(
    base: Path, output: Path, *, stop_at: int = 0, processes: int = 1, **changes: Any
) -> Iterator[tuple[list[ForkServerProcess], list[Connection]]]:
    """The processes, running, and where each tells that it scores; none outlives the context."""
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)  # for the server, which starts with the first process
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    environment = {}
    if processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        environment = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started: list[ForkServerProcess] = []
    ends = []
    try:
        for rank in range(processes):
            ours, theirs = context.Pipe(duplex=False)
            own = environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            process = context.Process(target=train, args=(base, output, changes, stop_at, own, theirs))
            process.start()
            theirs.close()
            started.append(process)
            ends.append(ours)
        yield started, ends
    finally:
        for process in started:
            process.kill()
            process.join()


def finish(base: Path, output: Path, **options: Any) -> dict[str, Any]:
    """Train to the end; the final LoRA and what is served."""
    with training(base, output, **options) as (processes, _):
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0] * len(processes)
    final: dict[str, Any] = torch.load(output / FINAL, weights_only=True)
    return final
