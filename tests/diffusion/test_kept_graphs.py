"""keep_graphs: the gradient of a rollout's own forward passes is that of forward passes made again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import log, lora_vector, settings, trainer
from torch import Tensor

from vca.models.stable_diffusion import load_pipeline
from vca.progress import Quiet

WITH_KL = {"kl_weight": 0.5, "kl_space": "pred"}


@pytest.mark.parametrize(
    "changes",
    [
        {"rounds": 1, "batch": 8, "micro_batch": 8},
        # every dialogue draws its own steps, later rounds start late, passes hold half of a round
        {"rounds": 2, "batch": 16, "micro_batch": 4, "steps_per_sample": 1, **WITH_KL},
        {"rounds": 1, "batch": 8, "micro_batch": 8, "guidance": 3, "guidance_gradient": "cond"},
    ],
)
def test_same_training_with_fewer_forward_passes(tiny_folder: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    def trained(*, keep_graphs: bool) -> tuple[Tensor, list[dict[str, float]], int]:
        pipeline = load_pipeline(str(tiny_folder))
        rows = 0

        def count(module: torch.nn.Module, args: tuple[Tensor, ...]) -> None:
            nonlocal rows
            rows += len(args[0])

        pipeline.unet.register_forward_pre_hook(count)
        output = tmp_path / str(keep_graphs)
        trainer(pipeline, output, keep_graphs=keep_graphs, **changes).train(progress=Quiet())
        return lora_vector(pipeline), log(output), rows

    again, log_again, rows_again = trained(keep_graphs=False)
    kept, log_kept, rows_kept = trained(keep_graphs=True)
    # Adam turns a gradient of rounding errors into a full step, so a few elements may differ
    assert (kept - again).norm() < 0.01 * again.norm()
    for name in ("gradient_norm", "reward_mi_mean", "approx_kl", "kl_base", "ratio_mean", "lora_norm"):
        for one, other in zip(log_kept, log_again, strict=True):
            assert one.get(name, 0.0) == pytest.approx(other.get(name, 0.0), rel=1e-3, abs=1e-6), name
    assert log_kept[0]["gradient_norm"] > 0
    assert log_kept[-1]["log_ratio_max"] <= 1e-6
    trained_steps = changes["batch"] * changes.get("steps_per_sample", 2) * len(log_kept)
    assert rows_again - rows_kept == trained_steps * (2 if changes.get("guidance") else 1)


def test_refused_where_the_kept_passes_would_be_out_of_date() -> None:
    with pytest.raises(ValueError, match="keep_graphs"):
        settings(keep_graphs=True, updates_per_rollout=2)
