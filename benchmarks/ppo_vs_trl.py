"""PPO on a small Stable Diffusion: images per CPU second of this trainer and of TRL 0.11.4's DDPOTrainer.

    make bench NAME=ppo_vs_trl [ARGS='--quick']

Both sides load the same weights from one folder, sample the same number of pictures in the same DDIM steps (leading
spacing, eta 1), train the same number of steps of each, score with the same function, and make one optimizer step on a
LoRA of rank 4, on one thread. They are two processes that take turns, one iteration each; the figure is pictures per
second of process CPU time, median of the turns. Counted on both sides, and compared: rows through the U-Net with a
graph, pictures decoded, optimizer steps, the weights' fingerprint; reported: the ratio's largest distance from 1 in
the first update, where it should be exactly 1.

PEER_PYTHON names the Python of TRL's environment; `make bench` sets it. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks._ppo_workload import (
    CLIP_RANGE,
    LEARNING_RATE,
    LORA_RANK,
    PROMPTS,
    SIBLINGS,
    Count,
    Iterate,
    Workload,
    fingerprint,
    reward,
    serve,
)

_ALL = {"steps": 8, "trained": 8, "precision": "float32", "keep_graphs": True}
_LOCAL = {"steps": 5, "trained": 2, "guidance": 1.0, "precision": "float32", "keep_graphs": True}
CASES: dict[str, dict[str, Any]] = {
    # TRL's defaults: guidance, and every sampled step trained
    "guided": _ALL | {"guidance": 5.0},
    "unguided": _ALL | {"guidance": 1.0},
    "unguided_passes_repeated": _ALL | {"guidance": 1.0, "keep_graphs": False},
    # the local preset: few steps, no guidance, two trained (here the noisiest, by TRL any two)
    "local": _LOCAL,
    # TRL rounds latents to the networks' precision, so its ratios in bfloat16 start wrong; ours start at 1
    "guided_bfloat16": _ALL | {"guidance": 5.0, "precision": "bfloat16"},
    "unguided_bfloat16": _ALL | {"guidance": 1.0, "precision": "bfloat16"},
    "local_bfloat16": _LOCAL | {"precision": "bfloat16"},
}
# What must be the same on both sides; forwards without a graph may be fewer.
SAME = ("unet_rows_with_graph", "decoded", "optimizer_steps")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="package:stable_diffusion", help="the pipeline that both sides load")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--turns", type=int, default=7, help="measured iterations of each side")
    parser.add_argument("--images", type=int, default=32, help=f"pictures per iteration, a multiple of {SIBLINGS}")
    parser.add_argument("--quick", action="store_true", help="one turn of a small batch, to see that it runs")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.worker:
        return serve(prepare)
    peer = os.environ.get("PEER_PYTHON")
    if not peer:
        sys.exit("PEER_PYTHON names no Python with TRL in it: run make bench NAME=ppo_vs_trl")
    images, turns = (SIBLINGS, 1) if arguments.quick else (arguments.images, arguments.turns)
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root, "pipeline")
        export(arguments.base, folder)
        ours = Worker([sys.executable, "-m", "benchmarks.ppo_vs_trl", "--worker"])
        trl = Worker([peer, "-m", "benchmarks._ppo_trl_worker"])
        try:
            cases = {
                name: compare(
                    ours, trl, Workload(folder=str(folder), images=images, **CASES[name]), name=name, turns=turns
                )
                for name in arguments.cases
            }
        finally:
            ours.close()
            trl.close()
    print(json.dumps({"base": arguments.base, "images": images, "turns": turns, "cases": cases}))


class Worker:
    """A process that takes turns with another; see `serve`."""

    def __init__(self, command: list[str]) -> None:
        threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | threads
        )

    def ask(self, request: dict[str, Any] | None) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{' '.join(map(str, self.process.args))} stopped; its output above says why")  # type: ignore[arg-type]
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def compare(ours: Worker, trl: Worker, workload: Workload, *, name: str, turns: int) -> dict[str, Any]:
    """Both sides' figures for one workload. Exits where they turn out not to do the same work."""
    result: dict[str, dict[str, Any]] = {}
    for side, worker in (("vca", ours), ("trl", trl)):
        print(f"{name}: {side} loads and warms up", file=sys.stderr)
        result[side] = worker.ask(asdict(workload)) | {"cpu_s": []}
    tolerance = 1e-3 if workload.precision == "float32" else 5e-2
    prints = zip(result["vca"]["fingerprint"], result["trl"]["fingerprint"], strict=True)
    if not all(math.isclose(a, b, rel_tol=tolerance) for a, b in prints):
        sys.exit(f"{name}: the weights differ: {result}")
    for turn in range(turns):
        for side, worker in (("vca", ours), ("trl", trl)):
            answer = worker.ask(None)
            result[side]["cpu_s"].append(round(answer["cpu_s"], 4))
            result[side]["counts"] = answer["counts"]
        print(f"{name}: turn {turn + 1}/{turns}", *(result[side]["cpu_s"][-1] for side in result), file=sys.stderr)
    if any(result["vca"]["counts"][what] != result["trl"]["counts"][what] for what in SAME):
        sys.exit(f"{name}: the sides did different work: {result}")
    for side in result.values():
        side["images_per_cpu_s"] = round(workload.images / statistics.median(side["cpu_s"]), 3)
    ratio = result["vca"]["images_per_cpu_s"] / result["trl"]["images_per_cpu_s"]
    pairs = sorted(b / a for a, b in zip(result["vca"]["cpu_s"], result["trl"]["cpu_s"], strict=True))
    return {
        "steps": workload.steps,
        "trained": workload.trained,
        "guidance": workload.guidance,
        "precision": workload.precision,
        "keep_graphs": workload.keep_graphs,
        "ratio": round(ratio, 3),
        "ratio_of_turns": [round(pairs[0], 3), round(pairs[-1], 3)],
        **result,
    }


def export(base: str, folder: Path) -> None:
    """Copy the pipeline at `base` with the file names that libraries of 2024 look for."""
    from safetensors.torch import load_file, save_file

    from vca.models.location import resolve

    shutil.copytree(resolve(base), folder)
    tokenizer = folder / "tokenizer" / "tokenizer.json"
    if tokenizer.is_file():
        model = json.loads(tokenizer.read_text())["model"]
        merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
        tokenizer.with_name("vocab.json").write_text(json.dumps(model["vocab"]))
        tokenizer.with_name("merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
        tokenizer.unlink()
    weights = folder / "text_encoder" / "model.safetensors"
    prefixed = {f"text_model.{name.removeprefix('text_model.')}": t for name, t in load_file(weights).items()}
    save_file(prefixed, weights, metadata={"format": "pt"})


def prepare(workload: Workload) -> tuple[Iterate, Count, list[float]]:
    """This trainer's side."""
    import torch
    from torch import Tensor

    from vca.diffusion.algorithms import ppo
    from vca.diffusion.dialogues import Corpus, Script, batch
    from vca.diffusion.distributed import World
    from vca.diffusion.settings import DiffusionSettings
    from vca.diffusion.trainer import Trainer
    from vca.models.stable_diffusion import load_pipeline

    steps = workload.steps
    config = DiffusionSettings(
        base=workload.folder,
        lora_rank=LORA_RANK,
        lora_alpha=LORA_RANK,
        engine="torch",
        dialogues=workload.images // SIBLINGS,
        siblings=SIBLINGS,
        rounds=1,
        batch=workload.images,
        micro_batch=workload.images,
        steps=steps,
        spacing="leading",
        window=(steps - workload.trained + 1, steps),
        steps_per_sample=workload.trained,
        keep_graphs=workload.keep_graphs,
        guidance=workload.guidance,
        feature="latent",
        learning_rate=LEARNING_RATE,
        warmup=0,
        clip_range=CLIP_RANGE,
        noise_weight=0,
    )
    scripts = (Script(dialogue_id=prompt, intent=prompt, prompts=(prompt,), targets=(None,)) for prompt in PROMPTS)
    corpus = Corpus(scripts=tuple(scripts), targets=())
    pipeline = load_pipeline(workload.folder, dtype=getattr(torch, workload.precision))
    prints = fingerprint(unet=pipeline.unet, vae=pipeline.vae, states_1LD=pipeline.encode_prompts(PROMPTS[:1]))

    def rewarded(*, prompts: Sequence[str], images_BCHW: Tensor) -> Tensor:
        return reward(images_BCHW)

    with tempfile.TemporaryDirectory() as output:
        session = Trainer(
            pipeline=pipeline,
            config=config,
            corpus=corpus,
            reward=rewarded,
            world=World(rank=0, size=1, device=torch.device("cpu")),
            output=Path(output),
            facts={},
        ).session

    def iterate() -> dict[str, float]:
        turns = batch(corpus, iteration=session.iteration, dialogues=config.dialogues, seed=config.seed)
        figures = ppo(session, turns)
        session.iteration += 1
        return {"largest_ratio_error": math.expm1(figures["log_ratio_max"])}

    return iterate, Count(unet=pipeline.unet, vae=pipeline.vae), prints


if __name__ == "__main__":
    main()
