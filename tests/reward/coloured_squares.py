"""A tiny random Qwen2.5-VL and preference pairs of coloured squares, all made here."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from vca.data.manifest import Manifest, digest_of
from vca.data.shards import ShardWriter
from vca.models import qwen_vl
from vca.records import Picture, PreferencePair

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "grey": (128, 128, 128)}


def png(colour: tuple[int, int, int], *, seed: int = 0) -> bytes:
    """A 64-pixel square of one colour, a little noisy so that no two are the same picture."""
    noise = np.random.default_rng(seed).integers(-20, 20, (64, 64, 3))
    out = io.BytesIO()
    Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(out, "PNG")
    return out.getvalue()


def pair(number: int, *, role: str = "reward", **changes: Any) -> PreferencePair:
    """ "red square" with a red picture preferred to a green one, and so on."""
    names = sorted(COLOURS)
    right, wrong = names[number % 4], names[(number + 1 + number // 4 % 3) % 4]
    fields: dict[str, Any] = {
        "pair_id": f"{role}-{number}",
        "prompt": f"{right} square",
        "positive": Picture(data=png(COLOURS[right], seed=number), uri=f"{number}+", key=f"{number}"),
        "negative": Picture(data=png(COLOURS[wrong], seed=number + 10_000), uri=f"{number}-", key=f"{number}"),
        "source": "squares" if number % 2 else "others",
        "kind": "colour" if number % 3 else "random",
        "negative_kind": "edited_prompt" if number % 3 else "mismatch",
        "split": "test" if role == "test" else "train",
        "role": role,
    }
    return PreferencePair(**{**fields, **changes})


def write(folder: Path, pairs: Iterable[PreferencePair]) -> Path:
    folder.mkdir(parents=True)
    writer = ShardWriter(folder, shard_bytes=2**30)
    for record in pairs:
        writer.write(record)
    shards = writer.close()
    manifest = Manifest(
        watermark="squares@1",
        digest=digest_of(shards),
        total=sum(shard.rows for shard in shards),
        shards=shards,
        sources={},
        settings={},
    )
    (folder / "manifest.json").write_text(manifest.model_dump_json())
    return folder


def make_base(folder: Path, *, seed: int) -> Path:
    from transformers import Qwen2_5_VLForConditionalGeneration

    texts = [f"{colour} square" for colour in COLOURS] * 3
    tokenizer = qwen_vl.small_tokenizer(texts=[*texts, "\nMatch?", "\nMatch?"], vocabulary=300)
    config = qwen_vl.small_config(tokenizer=tokenizer, width=64, layers=2, mlp=64, vision_width=32, vision_layers=1)
    config.initializer_range = config.text_config.initializer_range = config.vision_config.initializer_range = 0.1
    torch.manual_seed(seed)
    reader = qwen_vl.QwenVL(
        model=Qwen2_5_VLForConditionalGeneration(config),
        tokenizer=tokenizer,
        images=qwen_vl.small_images(),
        image_size=64,
        layout="image_first",
        instruction="Match?",
    )
    qwen_vl.save_base(reader=reader, images=qwen_vl.small_images(), folder=folder, dtype=torch.float32)
    return folder
