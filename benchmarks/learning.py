"""Does the loop learn? The local preset over several training seeds, each beside a control that cannot learn.

    make bench NAME=learning

Data and reward model are made once (seed 0). Every training seed trains a policy, and a control on the same seed whose
rewards are shuffled inside each group of siblings: same rollouts, same updates, no signal. Both are evaluated on the
same held-out prompts and dialogues with the same noise. The control has the choice of the LoRA scale that was chosen
for the policy of its seed, or, by the rule for every policy, of not being served (scale 0: no change). Results are kept
in runs/.cache as those of `vca run` are: an interrupted benchmark goes on. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from vca import preflight, settings, stages
from vca.progress import Plain
from vca.settings import Settings
from vca.store import Result

STORE = Path("runs/.cache")
FIGURES = ("taste_share", "content_judge", "content_judge_equal_style", "preference_score", "rounds_to_satisfaction")


def stage(name: str, config: Settings, inputs: dict[str, Path], label: str) -> Result:
    """Run a stage, or find its result, in the store that `vca run` uses."""
    plan = preflight.check(config, place=STORE, names=[name])
    return stages.run(
        name,
        config=stages.config_of(config, name),
        code_version=plan.code_versions[name],
        watermark=plan.watermark,
        inputs=inputs,
        output=Path("runs/learning") / label / stages.STAGES[name].output,
        progress=Plain(sys.stderr, every=30),
        store_root=STORE,
    )


def evaluated(overrides: list[str], inputs: dict[str, Path], label: str) -> dict[str, Any]:
    """Train one policy and evaluate it: the figures of evaluation.json, and what it cost."""
    config = settings.load(preset="local", overrides=overrides)
    policy = stage("diffusion", config, inputs, label)
    result = stage("evaluation", config, {**inputs, "policy": policy.folder}, label)
    found = json.loads((result.folder / "evaluation.json").read_text())
    return {
        "scale": found["scale"]["chosen"],
        "seconds": round(policy.record["seconds"] + result.record["seconds"]),
        "policy": {name: found["policy"][name] for name in FIGURES},
    }


def one_seed(seed: int, inputs: dict[str, Path], overrides: list[str]) -> dict[str, Any]:
    """The policy of a training seed and its control."""
    # the other core is busy with another seed
    own = [*overrides, f"diffusion.seed={seed}", "diffusion.processes=1"]
    trained = evaluated(own, inputs, f"seed{seed}")
    scale = trained["scale"] or 1.0
    fixed = ["diffusion.permute_rewards=true", f"evaluation.scales=[{scale}]", "evaluation.content_tolerance=1.0"]
    control = evaluated([*own, *fixed], inputs, f"control{seed}")
    print(f"seed {seed}: {json.dumps({'trained': trained, 'control': control})}", file=sys.stderr, flush=True)
    return {"seed": seed, "trained": trained, "control": control}


def spread(runs: list[dict[str, Any]], which: str, figure: str) -> dict[str, Any]:
    """Mean, lowest and highest change over the training seeds, and the base's value."""
    parts = [run[which]["policy"][figure] for run in runs]
    deltas = [part["delta"]["value"] for part in parts]
    return {
        "base": statistics.mean(part["base"]["value"] for part in parts),
        "delta": statistics.mean(deltas),
        "lowest": min(deltas),
        "highest": max(deltas),
        "seeds": [part["delta"] for part in parts],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="training seeds, from 1")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1), help="seeds at once, a core each")
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="settings, as in `vca run`")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, here and in the workers
    started = time.monotonic()
    config = settings.load(preset="local", overrides=given.overrides)
    data = stage("data", config, {}, "shared")
    inputs = {"data": data.folder}
    inputs["reward"] = stage("reward", config, inputs, "shared").folder
    with ProcessPoolExecutor(given.workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(one_seed, seed, inputs, given.overrides) for seed in range(1, given.seeds + 1)]
        runs = [future.result() for future in futures]
    figures = {which: {name: spread(runs, which, name) for name in FIGURES} for which in ("trained", "control")}
    print(json.dumps({"seconds": round(time.monotonic() - started), **figures, "runs": runs}))


if __name__ == "__main__":
    main()
