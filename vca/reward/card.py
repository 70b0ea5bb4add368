"""The model card that goes with a reward adapter."""

from __future__ import annotations

from typing import Any

from vca.reward.settings import RewardSettings


def card(*, settings: RewardSettings, metrics: dict[str, Any], watermark: str) -> str:
    """Markdown: what it is, what it learned from, how good it is, what it is not for."""
    trained, base = metrics["accuracy"], metrics["accuracy_base"]
    lines = [
        f"| {kind} | {_figure(base[kind])} | {_figure(trained[kind])} | {int(trained[kind]['n'])} |" for kind in trained
    ]
    table = "\n".join(lines)
    pairs = metrics["pairs"]
    return f"""# Reward adapter

Scores how well a picture answers a prompt, as people judged pairs of pictures. LoRA (rank {settings.lora_rank}, alpha
{settings.lora_alpha:g}) on attention and MLP of the language model of `{settings.base}` in NF4, head `{settings.head}`,
pooling `{settings.pooling}`, loss `{settings.loss}`.

* Trained on {pairs["reward"]} preference pairs, {metrics["batch"]}, {settings.epochs} epoch(s).
* Calibrated on {pairs["validation"]} validation pairs: R = clamp((r - {metrics["calibration"]["mu"]:.4g}) /
  {metrics["calibration"]["s"]:.4g}, -4, 4).
* Data: `{watermark}`.

## Accuracy

Share of {pairs["test"]} test pairs, unseen in training, in which it prefers the picture that people preferred, with
95 % intervals. Base: the same model's log-odds of Yes against No at the same place, before training.

| pairs | base | trained | n |
|---|---|---|---|
{table}

## Use

Load with `vca.reward.scorer.RewardScorer.load(folder)`. It judges prompts and pictures like those it was trained on; it
is no measure of quality elsewhere, and training a generator against it without other checks will exploit it. It refuses
to load on a base model other than its own.
"""


def _figure(interval: dict[str, float]) -> str:
    return f"{interval['value']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]"
