"""TRL's side of ppo_vs_trl: `DDPOTrainer` of trl 0.11.4, as it comes. Runs in an environment of its own."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import torch
from accelerate.state import AcceleratorState
from torch import Tensor
from trl import DDPOConfig, DDPOTrainer, DefaultDDPOStableDiffusionPipeline

from benchmarks._ppo_workload import (
    CLIP_RANGE,
    LEARNING_RATE,
    PROMPTS,
    SIBLINGS,
    Count,
    Iterate,
    Workload,
    fingerprint,
    reward,
    serve,
)


class Watched(DDPOTrainer):
    """Remembers the largest distance of an update's PPO ratios from 1."""

    largest = 0.0

    def loss(self, advantages: Tensor, clip_range: float, ratio: Tensor) -> Tensor:
        self.largest = max(self.largest, float((ratio.detach() - 1).abs().max()))
        return super().loss(advantages, clip_range, ratio)


def prepare(workload: Workload) -> tuple[Iterate, Count, list[float]]:
    pipeline = DefaultDDPOStableDiffusionPipeline(workload.folder, use_lora=True)
    pipeline.scheduler.register_to_config(timestep_spacing="leading")
    groups = itertools.cycle(PROMPTS)
    prompts = itertools.chain.from_iterable(itertools.repeat(prompt, SIBLINGS) for prompt in groups)

    def rewarded(images: Any, *_: Any) -> tuple[Tensor, dict[str, Any]]:
        return reward(images), {}

    AcceleratorState._reset_state(reset_partial_state=True)  # else the first workload's precision holds for all
    guided = workload.guidance > 1
    if not guided:
        # With diffusers 0.30 TRL hands the U-Net both halves of the embeddings even so, and stops at once.
        pipeline.sd_pipeline._encode_prompt = lambda *_, prompt_embeds, **__: prompt_embeds
    trainer = Watched(
        DDPOConfig(
            sample_num_steps=workload.steps,
            sample_guidance_scale=workload.guidance,
            train_cfg=guided,
            sample_batch_size=workload.images,
            sample_num_batches_per_epoch=1,
            train_batch_size=workload.images,
            train_gradient_accumulation_steps=1,
            train_timestep_fraction=workload.trained / workload.steps,
            train_learning_rate=LEARNING_RATE,
            train_clip_range=CLIP_RANGE,
            mixed_precision={"float32": "no", "bfloat16": "bf16"}[workload.precision],
            allow_tf32=False,
            save_freq=10**9,
            log_with=None,
            accelerator_kwargs={"cpu": True},
        ),
        rewarded,
        lambda: (next(prompts), {}),
        pipeline,
    )
    pipeline.set_progress_bar_config(disable=True)
    tokens = pipeline.tokenizer(PROMPTS[0], padding="max_length", return_tensors="pt").input_ids
    prints = fingerprint(unet=pipeline.unet, vae=pipeline.vae, states_1LD=pipeline.text_encoder(tokens)[0])

    def iterate() -> dict[str, float]:
        trainer.largest = 0.0
        trainer.step(0, 0)
        return {"largest_ratio_error": trainer.largest}

    return iterate, Count(unet=pipeline.unet, vae=pipeline.vae), prints


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    serve(prepare)
