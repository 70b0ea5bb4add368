"""The model card that goes with a policy adapter."""

from __future__ import annotations

from typing import Any

from vca.diffusion.settings import DiffusionSettings


def card(*, config: DiffusionSettings, metrics: dict[str, Any], watermark: str) -> str:
    """Markdown: what it is, how it was trained, what training did, what it is not for."""
    rows = "\n".join(
        f"| {name} | {metrics['first'][name]:.3f} | {metrics['last'][name]:.3f} |" for name in metrics["first"]
    )
    control = "\nA control: the rewards were shuffled among siblings, so it learned nothing on purpose.\n"
    return f"""# Policy adapter

LoRA (rank {config.lora_rank}, alpha {config.lora_alpha:g}) on the attention of `{config.base}`, trained by
{config.trainer} to draw what people preferred, over dialogues of up to {config.rounds} rounds.
{control if config.permute_rewards else ""}
* {metrics["rollouts"]} rollouts; {config.arithmetic(world=1)}.
* {config.steps} sampler steps, trained where {config.window[0]} to {config.window[1]} steps remain, guidance
  {config.guidance:g}, learning rate {config.learning_rate:g}, divergence from the base weighted {config.kl_weight:g}.
* Data: `{watermark}`.
* {metrics["seconds"]:g} s, {metrics["seconds_per_rollout"]:g} s a rollout.

## What training did

Means over the pictures of the first and the last rollouts, drawn by the model in training.

| figure | first | last |
|---|---|---|
{rows}

## Use

`vca.models.stable_diffusion.load_adapter` attaches it at the `scale` in adapter.json. It moves pictures towards one
group's taste; a rising reward is no proof of better pictures, held-out judges are (see the evaluation report).
"""
