"""A small training run in a process of its own: `run_training.py BASE OUTPUT STOP_AFTER CHANGES`.

It says so on standard output whenever it scores pictures, so that a test can kill it in the middle of a rollout, and
writes the final LoRA. At scoring STOP_AFTER it sends itself a SIGTERM (0: never). torchrun may start several of it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch
from tiny_training import corpus, lora_vector, redness, settings

from vca.diffusion.distributed import join, leave
from vca.diffusion.train import _stop_on_sigterm
from vca.diffusion.trainer import Trainer
from vca.errors import Interrupted
from vca.models.stable_diffusion import load_pipeline
from vca.progress import Quiet


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> int:
    base, output, stop_after, changes = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4])
    config = settings(**changes)
    world = join(group_needed=config.engine == "deepspeed")
    calls = 0

    def reward(*, prompts, images_BCHW):  # type: ignore[no-untyped-def]
        nonlocal calls
        calls += 1
        if calls == stop_after:
            os.kill(os.getpid(), signal.SIGTERM)
        say("scoring")
        return redness(prompts=prompts, images_BCHW=images_BCHW)

    trainer = Trainer(
        pipeline=load_pipeline(base),
        config=config,
        corpus=corpus(targets=True),
        reward=reward,
        world=world,
        output=output,
        facts={},
    )
    with _stop_on_sigterm() as stopping:
        try:
            trainer.train(progress=Quiet(), stopping=stopping)
        except Interrupted as stopped:
            say(str(stopped))
            return stopped.exit_code
    if world.rank == 0:
        torch.save({"lora": lora_vector(trainer.session.pipeline), "served": trainer.served()}, output / "final.pt")
    leave()
    return 0


if __name__ == "__main__":
    sys.exit(main())
