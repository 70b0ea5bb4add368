"""The benchmarks' own arithmetic, and that their paths run."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # benchmarks/ is run from the repository and never installed

from benchmarks import gpu, ppo_vs_trl, safety
from benchmarks._ppo_workload import SIBLINGS, Workload
from vca.models.stable_diffusion import LORA_TARGETS, load_pipeline


def last_line(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_work_of_stable_diffusion_2_1_is_what_the_table_says() -> None:
    """TFLOP per picture at 512 px: U-Net 0.804, with a LoRA forward and backward 1.715, decoder 2.515."""
    from peft import LoraConfig

    with torch.device("meta"):
        unet, vae = gpu.new_unet(tiny=False).requires_grad_(False), gpu.new_vae(tiny=False).requires_grad_(False)
        latents, timesteps, states = torch.empty(1, 4, 64, 64), torch.empty(1), torch.empty(1, 77, 1024)
        assert sum(p.numel() for p in unet.parameters()) == pytest.approx(865.9e6, rel=1e-3)

        def denoise() -> torch.Tensor:
            output: torch.Tensor = unet(latents, timesteps, encoder_hidden_states=states).sample
            return output

        assert gpu.flops(denoise) == pytest.approx(0.804e12, rel=0.02)
        assert gpu.flops(lambda: vae.decode(latents)) == pytest.approx(2.515e12, rel=0.02)
        unet.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=list(LORA_TARGETS)))
        assert gpu.flops(lambda: denoise().sum().backward()) == pytest.approx(1.715e12, rel=0.02)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("Tesla T4", None),
    ],
)
def test_peak_of_a_device(name: str, peak: float | None) -> None:
    assert gpu.peak_of(name) == peak


def test_share_of_the_peak() -> None:
    figures = gpu.share(400e12, [2.0, 4.0, 3.0], images=6, peak=312.0)
    assert figures["images_per_s"] == 2
    assert figures["tflops"] == 133.3
    assert figures["share_of_peak"] == pytest.approx(400 / 3 / 312, abs=1e-4)
    assert gpu.share(1e12, [1.0], images=1, peak=None)["share_of_peak"] is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_without_cuda_nothing_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    gpu.main([])
    assert "no CUDA device" in last_line(capsys)["skipped"]


@pytest.mark.slow
def test_the_gpu_path_runs_in_small(capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--images", "8", "--micro-batch", "4", "--steps", "3", "--repeats", "1"]
    gpu.main(["--device", "cpu", "--tiny", *small])
    result = last_line(capsys)
    for phase in ("rollout", "update", "scoring"):
        assert result[phase]["images_per_s"] > 0
        assert result[phase]["tflop_per_image"] > 0


@pytest.fixture
def exported(tiny_folder: Path, tmp_path: Path) -> Path:
    ppo_vs_trl.export(str(tiny_folder), tmp_path / "exported")
    return tmp_path / "exported"


def test_export_has_the_old_file_names_and_the_same_weights(tiny_folder: Path, exported: Path) -> None:
    assert (exported / "tokenizer" / "vocab.json").is_file()
    assert (exported / "tokenizer" / "merges.txt").read_text().startswith("#version")
    before, after = (load_pipeline(str(folder)).encode_prompts(["a red heart"]) for folder in (tiny_folder, exported))
    assert torch.equal(before, after)


def test_our_side_does_the_work_that_is_compared(exported: Path) -> None:
    seen = {}
    for keep_graphs in (False, True):
        workload = Workload(
            folder=str(exported),
            images=SIBLINGS,
            steps=3,
            trained=2,
            guidance=1.0,
            precision="float32",
            keep_graphs=keep_graphs,
        )
        iterate, count, prints = ppo_vs_trl.prepare(workload)
        assert iterate() == {"largest_ratio_error": 0.0}
        seen[keep_graphs] = count.take()
        count.remove()
        assert all(math.isfinite(size) and size > 0 for size in prints)
    same = {"decoded": SIBLINGS, "optimizer_steps": 1, "unet_rows_with_graph": 2 * SIBLINGS}
    assert seen[False] == same | {"unet_rows_without_graph": 3 * SIBLINGS}
    assert seen[True] == same | {"unet_rows_without_graph": 1 * SIBLINGS}


@pytest.mark.slow
def test_the_safety_filter_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    safety.main(["--pictures", "16"])
    result = last_line(capsys)
    assert result["prompts"]["hidden"] == 0
    assert result["drawn by the base model"]["number"] == 16
    assert result["costs"]["one_ms"] > 0
