"""A CUDA device at Stable Diffusion 2.1's size: rollout, PPO update and scoring, and their share of the device's peak.

    make bench NAME=gpu [ARGS='--images 8 --micro-batch 8']

Weights are random: SD 2.1-base's U-Net (866 M), autoencoder and OpenCLIP-H text encoder in bfloat16, and a reward model
of Qwen2-VL-2B's size with its language model in NF4. They are written to a folder once and loaded by the code that
loads the real ones; what is timed is the trainer's own rollout, update and scorer. The work is counted by running each
once under PyTorch's FLOP counter (multiply and add are two); the share of the peak is that work / seconds / the
device's bfloat16 peak. Without CUDA it says so and stops. `--device cpu --tiny` walks the same path in small models.

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vca.diffusion.algorithms import ppo
from vca.diffusion.dialogues import Corpus, Script, batch
from vca.diffusion.distributed import World
from vca.diffusion.rollout import play
from vca.diffusion.session import Session
from vca.diffusion.settings import DiffusionSettings
from vca.diffusion.trainer import Trainer
from vca.models import qwen_vl
from vca.models.stable_diffusion import load_pipeline
from vca.reward.adapter import Calibration
from vca.reward.model import RewardModel
from vca.reward.scorer import RewardScorer
from vca.reward.settings import RewardSettings

# Dense bfloat16 with float32 accumulation, TFLOP/s, by what the device's name contains; the first that fits holds.
# NVIDIA's data sheets (half of their figure "with sparsity"): B200, H200, H100 PCIe and SXM, L40S, L4, A100.
PEAK = {
    "B200": 2250.0,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "L40S": 362.0,
    "L4": 121.0,
    "A100": 312.0,
}
# 77 tokens, the text encoder's limit
PROMPTS = tuple("a picture of one more thing to count " * 9 + str(n) for n in range(2))

SD21_UNET: dict[str, Any] = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "attention_head_dim": (5, 10, 20, 20),
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
}
SD21_VAE: dict[str, Any] = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "sample_size": 512}
SD21_TEXT: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "max_position_embeddings": 77,
    "hidden_act": "gelu",
}
QWEN2_VL_2B: dict[str, Any] = {
    "text_config": {
        "vocab_size": 151936,
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32768,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    },
    "vision_config": {
        "depth": 32,
        "embed_dim": 1280,
        "hidden_size": 1536,
        "num_heads": 16,
        "mlp_ratio": 4,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    },
}
TINY_UNET = SD21_UNET | {
    "sample_size": 8,
    "block_out_channels": (32, 32, 64, 64),
    "attention_head_dim": (2, 2, 4, 4),
    "cross_attention_dim": 64,
}
TINY_VAE = SD21_VAE | {"block_out_channels": (32, 32, 32, 32), "sample_size": 64}
TINY_TEXT = SD21_TEXT | {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
TINY_QWEN: dict[str, Any] = {
    "text_config": QWEN2_VL_2B["text_config"]
    | {
        "vocab_size": 1024,
        "hidden_size": 128,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]},
    },
    "vision_config": QWEN2_VL_2B["vision_config"]
    | {"depth": 2, "embed_dim": 64, "hidden_size": 128, "num_heads": 2, "mlp_ratio": 2},
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="small models, to see that it runs")
    parser.add_argument("--images", type=int, default=32, help="pictures per rollout, a multiple of 8")
    parser.add_argument("--micro-batch", type=int, default=16, help="pictures per forward pass")
    parser.add_argument("--steps", type=int, default=20, help="sampler steps")
    parser.add_argument("--trained", type=int, default=2, help="trained steps per picture, the noisiest ones")
    parser.add_argument("--guidance", type=float, default=5.0, help="1: off")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs, after one that warms up")
    parser.add_argument("--contiguous", action="store_true", help="leave convolutions in NCHW, not channels-last")
    arguments = parser.parse_args(argv)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        reason = "no CUDA device here: nothing measured (--device cpu --tiny walks the path in small models)"
        print(reason, file=sys.stderr)
        return print(json.dumps({"skipped": reason}))
    device = torch.device(arguments.device)
    result: dict[str, Any] = {"device": name_of(device), "torch": torch.__version__, "tiny": arguments.tiny}
    result["peak_tflops"] = peak_of(result["device"])
    result["settings"] = {
        name: getattr(arguments, name) for name in ("images", "micro_batch", "steps", "trained", "guidance")
    } | {"memory_format": "contiguous" if arguments.contiguous else "channels_last"}
    with tempfile.TemporaryDirectory() as root:
        result |= measure_policy(Path(root), arguments, device, peak=result["peak_tflops"])
        result |= measure_scoring(Path(root), arguments, device, peak=result["peak_tflops"])
    print(json.dumps(result))


def name_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def peak_of(name: str) -> float | None:
    """TFLOP/s, or None for a device that is not in the table."""
    return next((peak for part, peak in PEAK.items() if part in name), None)


def measure_policy(root: Path, arguments: argparse.Namespace, device: torch.device, *, peak: float | None) -> Any:
    """Rollout and update of the PPO trainer."""
    say(f"writing random weights{' (tiny)' if arguments.tiny else ' of SD 2.1-base, 2.6 GB'}")
    folder = write_stable_diffusion(root / "stable_diffusion", tiny=arguments.tiny, device=device)
    session, corpus = session_of(folder, arguments, device, output=root / "output")
    config, turns = session.config, batch(corpus, iteration=0, dialogues=arguments.images // 8, seed=0)

    def iterate() -> dict[str, float]:
        return ppo(session, turns)

    rollout = flops(lambda: play(session.pipeline, config, turns, reward=session.reward))
    update = flops(iterate) - rollout
    say(f"counted {rollout / 1e12:.3g} TFLOP a rollout, {update / 1e12:.3g} an update; timing")
    reset_memory(device)
    figures = [iterate() for _ in range(arguments.repeats + 1)][1:]
    memory = memory_of(device)
    # Both end in figures read back from the device, so that the trainer's own clocks hold.
    return {
        phase: share(work, [f[f"seconds_{phase}"] for f in figures], images=arguments.images, peak=peak)
        | {"peak_memory_gib": memory}
        for phase, work in (("rollout", rollout), ("update", update))
    }


def measure_scoring(root: Path, arguments: argparse.Namespace, device: torch.device, *, peak: float | None) -> Any:
    """Scores of the reward model."""
    say(f"writing random weights{' (tiny)' if arguments.tiny else ' of Qwen2-VL-2B, 4.4 GB'}")
    folder = write_qwen(root / "qwen", tiny=arguments.tiny, device=device)
    settings = RewardSettings(base=str(folder), image_size=56 if arguments.tiny else 448, head="linear", pooling="last")
    scorer = RewardScorer(
        model=RewardModel(settings=settings, device=str(device)), calibration=Calibration(mu=0.0, s=1.0, n=0)
    )
    size = 64 if arguments.tiny else 512
    images_BCHW = torch.rand(arguments.micro_batch, 3, size, size, device=device)
    prompts = [PROMPTS[n % len(PROMPTS)] for n in range(arguments.micro_batch)]

    def score() -> float:
        return float(scorer.score(prompts=prompts, images_BCHW=images_BCHW).raw_B.sum())

    work = flops(score)
    say(f"counted {work / 1e12:.3g} TFLOP to score {arguments.micro_batch}; timing")
    reset_memory(device)
    seconds = [timed(score, device) for _ in range(arguments.repeats + 1)][1:]
    figures = share(work, seconds, images=arguments.micro_batch, peak=peak)
    return {"scoring": figures | {"peak_memory_gib": memory_of(device)}}


def flops(work: Callable[[], object]) -> float:
    """Multiplications and additions of one run, as PyTorch counts them."""
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds, of the device's own clock where it has one."""
    if device.type != "cuda":
        started = time.perf_counter()
        work()
        return time.perf_counter() - started
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    work()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1000


def share(work: float, seconds: Sequence[float], *, images: int, peak: float | None) -> dict[str, Any]:
    """Figures of one phase; share_of_peak only where the device's peak is known."""
    median = statistics.median(seconds)
    tflops = work / median / 1e12
    return {
        "images_per_s": round(images / median, 3),
        "tflop_per_image": float(f"{work / images / 1e12:.4g}"),
        "tflops": float(f"{tflops:.4g}"),
        "share_of_peak": None if peak is None else round(tflops / peak, 4),
        "seconds": [round(s, 4) for s in seconds],
    }


def reset_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def memory_of(device: torch.device) -> float | None:
    return round(torch.cuda.max_memory_allocated(device) / 2**30, 2) if device.type == "cuda" else None


def session_of(
    folder: Path, arguments: argparse.Namespace, device: torch.device, *, output: Path
) -> tuple[Session, Corpus]:
    """A trainer's session on the random pipeline, as the trainer builds it."""
    config = DiffusionSettings(
        base=str(folder),
        compute_dtype="bfloat16",
        engine="torch",
        dialogues=arguments.images // 8,
        siblings=8,
        rounds=1,
        batch=arguments.images,
        micro_batch=arguments.micro_batch,
        steps=arguments.steps,
        window=(arguments.steps - arguments.trained + 1, arguments.steps),
        steps_per_sample=arguments.trained,
        guidance=arguments.guidance,
        noise_weight=0,
    )
    pipeline = load_pipeline(str(folder), device=device, dtype=torch.bfloat16)
    if not arguments.contiguous:
        for part in (pipeline.unet, pipeline.vae):
            part.to(memory_format=torch.channels_last)
    scripts = tuple(Script(dialogue_id=p, intent=p, prompts=(p,), targets=(None,)) for p in PROMPTS)
    corpus = Corpus(scripts=scripts, targets=())
    world = World(rank=0, size=1, device=device)
    return (
        Trainer(
            pipeline=pipeline, config=config, corpus=corpus, reward=noise, world=world, output=output, facts={}
        ).session,
        corpus,
    )


def noise(*, prompts: Sequence[str], images_BCHW: Tensor) -> Tensor:
    """A reward that costs nothing and spreads; scoring is measured apart. [B]"""
    return torch.rand(len(prompts), device=images_BCHW.device)


def new_unet(*, tiny: bool) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(**(TINY_UNET if tiny else SD21_UNET))


def new_vae(*, tiny: bool) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        **(TINY_VAE if tiny else SD21_VAE),
    )


def write_stable_diffusion(folder: Path, *, tiny: bool, device: torch.device) -> Path:
    """A StableDiffusionPipeline with random weights in bfloat16 and a tokenizer of single letters."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    with torch.device(device):
        text_encoder = CLIPTextModel(CLIPTextConfig(**(TINY_TEXT if tiny else SD21_TEXT)))
        unet, vae = new_unet(tiny=tiny), new_vae(tiny=tiny)
    StableDiffusionPipeline(
        unet=unet.bfloat16(),
        vae=vae.bfloat16(),
        text_encoder=text_encoder.bfloat16(),
        tokenizer=CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=77),
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def write_qwen(folder: Path, *, tiny: bool, device: torch.device) -> Path:
    """A Qwen2-VL with random weights in bfloat16, its tokenizer learnt from the prompts alone."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    tokenizer = qwen_vl.small_tokenizer(texts=list(PROMPTS), vocabulary=1000)

    def token(text: str) -> int:
        return int(tokenizer.convert_tokens_to_ids(text))

    config = Qwen2VLConfig(
        **(TINY_QWEN if tiny else QWEN2_VL_2B),
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    with torch.device(device):
        model = Qwen2VLForConditionalGeneration(config)
    model.bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Qwen2VLImageProcessorPil(patch_size=14, merge_size=2, temporal_patch_size=2).save_pretrained(folder)
    return folder


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
