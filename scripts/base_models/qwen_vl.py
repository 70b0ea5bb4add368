"""Train the local preset's small Qwen2.5-VL on EmojiDialog: first to caption, then, shortly, to judge a match.

    python scripts/base_models/qwen_vl.py --output vca/models/base/qwen_vl

Only train-side pictures outside the judge's fold are seen, so that held-out concepts and combinations stay held out
and the evaluation judge stays independent. The matching phase is short on purpose: reward training is to learn the
rest from people's preferences.
"""

from __future__ import annotations

import argparse
import io
import math
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from random import Random

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from transformers import Qwen2_5_VLForConditionalGeneration

from vca.data.emoji.catalogue import EmojiItem, caption, load_catalogue
from vca.models import qwen_vl

INSTRUCTION = "Match?"
VOCABULARY = 2048
BATCH = 64
CAPTION_STEPS, MATCH_STEPS = 900, 150
CAPTION_RATE, MATCH_RATE = 2e-3, 1e-3


class Pictures:
    """The pictures that may be seen, and how captions for them are drawn."""

    def __init__(self, *, seed: int) -> None:
        items = load_catalogue().items
        self.items = [item for item in items if item.split == "train" and item.fold == "reward"]
        decoded = [np.asarray(Image.open(io.BytesIO(item.png)).convert("RGB")) for item in self.items]
        self.images_NCHW = torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2).contiguous()
        self.random = Random(seed)
        self.nearby: list[dict[str, list[EmojiItem]]] = []
        for key in (lambda i: i.root, lambda i: i.subgroup, lambda i: "all"):
            group: dict[str, list[EmojiItem]] = defaultdict(list)
            for item in self.items:
                group[key(item)].append(item)
            self.nearby.append({item.item_id: group[key(item)] for item in self.items})

    def batch(self) -> tuple[list[EmojiItem], Tensor]:
        """Items and their images in [0, 1], shifted by up to two pixels."""
        places = self.random.sample(range(len(self.items)), BATCH)
        images = torch.stack([self.images_NCHW[p] for p in places]).float() / 255
        dy, dx = self.random.randint(0, 4), self.random.randint(0, 4)
        padded = torch.nn.functional.pad(images, (2, 2, 2, 2), value=1.0)
        return [self.items[p] for p in places], padded[:, :, dy : dy + 64, dx : dx + 64]

    def caption(self, item: EmojiItem) -> str:
        """Half of the captions leave the drawing style open."""
        return caption(item, style=self.random.random() < 0.5)

    def wrong_caption(self, item: EmojiItem) -> str:
        """The caption of a picture of the same concept, of the same kind of thing, or of anything."""
        right = {caption(item, style=True), caption(item, style=False)}
        while True:
            wrong = self.caption(self.random.choice(self.random.choice(self.nearby)[item.item_id]))
            if wrong not in right:
                return wrong


def new_model(captions: Sequence[str]) -> qwen_vl.QwenVL:
    tokenizer = qwen_vl.small_tokenizer(texts=[*captions, *[f"\n{INSTRUCTION}"] * 1000], vocabulary=VOCABULARY)
    config = qwen_vl.small_config(tokenizer=tokenizer, width=192, layers=4, mlp=384, vision_width=128, vision_layers=4)
    return qwen_vl.QwenVL(
        model=Qwen2_5_VLForConditionalGeneration(config).train(),
        tokenizer=tokenizer,
        images=qwen_vl.small_images(),
        image_size=64,
        layout="image_first",
        instruction=INSTRUCTION,
    )


def caption_loss(reader: qwen_vl.QwenVL, rows: qwen_vl.Rows, hidden_BLD: Tensor, which_B: Tensor) -> Tensor:
    """Mean -log p of the prompt's tokens and the one after them, given the image, over the rows `which_B`."""
    target_BL = rows.prompt_BL[:, 1:] | rows.prompt_BL[:, :-1]
    target_BL = target_BL & which_B[:, None]
    logits = hidden_BLD[:, :-1][target_BL] @ reader.model.lm_head.weight.T
    return cross_entropy(logits.float(), rows.ids_BL[:, 1:][target_BL])


def match_logits(reader: qwen_vl.QwenVL, rows: qwen_vl.Rows, hidden_BLD: Tensor) -> Tensor:
    """Log-odds of Yes against No at the end of each row, [B]."""
    yes, no = reader.answer_ids
    weights = reader.model.lm_head.weight
    return hidden_BLD[torch.arange(len(hidden_BLD)), rows.last_B] @ (weights[yes] - weights[no])


def phase(name: str, reader: qwen_vl.QwenVL, pictures: Pictures, *, steps: int, rate: float, matching: bool) -> None:
    """`steps` steps of captioning, or of matching (half of the captions wrong) with captioning kept up."""
    optimizer = torch.optim.AdamW(reader.model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min(1.0, (s + 1) / 50) * (0.5 + 0.5 * math.cos(math.pi * s / steps)) + 1e-3
    )
    start, shown, mean = time.process_time(), -10.0, {"caption": 0.0, "match": 0.0}
    for step in range(1, steps + 1):
        items, images = pictures.batch()
        right_B = torch.tensor([not matching or pictures.random.random() < 0.5 for _ in items])
        prompts = [
            pictures.caption(i) if right else pictures.wrong_caption(i)
            for i, right in zip(items, right_B.tolist(), strict=True)
        ]
        rows = reader.rows(prompts=prompts)
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            hidden = reader.hidden(rows=rows, image_tokens_BID=reader.image_tokens(images_BCHW=images))
            losses = {"caption": caption_loss(reader, rows, hidden, right_B)}
            if matching:
                logits = match_logits(reader, rows, hidden).float()
                losses["match"] = binary_cross_entropy_with_logits(logits, right_B.float())
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(reader.model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        for key, value in losses.items():
            mean[key] += (float(value.detach()) - mean[key]) * max(0.03, 1 / step)
        seconds = time.process_time() - start
        if seconds - shown >= 10 or step == steps:
            shown = seconds
            figures = "  ".join(f"{key} {mean[key]:.3f}" for key in losses)
            print(f"{name}: {step}/{steps} steps, {seconds:.0f} CPU s, loss {figures}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of the model")
    parser.add_argument("--caption-steps", type=int, default=CAPTION_STEPS)
    parser.add_argument("--match-steps", type=int, default=MATCH_STEPS)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(given.seed)
    pictures = Pictures(seed=given.seed)
    reader = new_model([caption(item, style=style) for item in pictures.items for style in (True, False)])
    size = sum(p.numel() for p in reader.model.parameters())
    print(f"{size:,} parameters, {len(reader.tokenizer)} tokens, {len(pictures.items)} pictures", flush=True)
    phase("captioning", reader, pictures, steps=given.caption_steps, rate=CAPTION_RATE, matching=False)
    phase("matching", reader, pictures, steps=given.match_steps, rate=MATCH_RATE, matching=True)
    reader.model.eval()
    qwen_vl.save_base(reader=reader, images=qwen_vl.small_images(), folder=given.output)


if __name__ == "__main__":
    main()
