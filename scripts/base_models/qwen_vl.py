"""Train the local preset's small Qwen2.5-VL on EmojiDialog: to see, then to caption, then, shortly, to judge a match.

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
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import affine_grid, binary_cross_entropy_with_logits, cross_entropy, grid_sample, softplus
from transformers import Qwen2_5_VLForConditionalGeneration

from vca.data.emoji.catalogue import EmojiItem, caption, load_catalogue
from vca.models import qwen_vl
from vca.records import Split

INSTRUCTION = "Match?"
VOCABULARY = 3072
BATCH = 32


class Pictures:
    """The pictures of one side outside the judge's fold, and how captions for them are drawn."""

    def __init__(self, *, split: Split, seed: int) -> None:
        self.items = [item for item in load_catalogue().side(split) if item.fold == "reward"]
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
        """Items and their images in [0, 1], each moved, scaled and turned a little, and grainy.

        Without this the tower learns the few thousand pictures by heart within minutes.
        """
        places = self.random.sample(range(len(self.items)), BATCH)
        images = self.images_NCHW[places].float() / 255
        angle, x, y = (torch.empty(BATCH).uniform_(-limit, limit) for limit in (0.1, 0.08, 0.08))
        zoom = torch.empty(BATCH).uniform_(0.9, 1.1)
        rows = [torch.stack([angle.cos(), -angle.sin(), x], 1), torch.stack([angle.sin(), angle.cos(), y], 1)]
        grid = affine_grid(torch.stack(rows, 1) * zoom.view(-1, 1, 1), list(images.shape), align_corners=False)
        images = 1 - grid_sample(1 - images, grid, align_corners=False)  # white, not black, moves in from outside
        images = images * torch.empty(BATCH, 1, 1, 1).uniform_(0.95, 1.05) + 0.02 * torch.randn_like(images)
        return [self.items[p] for p in places], images.clamp(0, 1)

    def caption(self, item: EmojiItem) -> str:
        """Half of the captions leave the drawing style open."""
        return caption(item, style=self.random.random() < 0.5)

    def parts(self, item: EmojiItem) -> str:
        """Some of what can be said of a picture, in any order: subject, attributes, style, up to two keywords.

        In a caption the name comes first and says nearly all; here the tower has to see each part by itself. Alone,
        captions teach names and leave the drawing style at chance.
        """
        known = [item.subject, *item.attributes, f"{item.style} style"]
        known += self.random.sample(item.keywords, min(2, len(item.keywords)))
        return ", ".join(self.random.sample(known, self.random.randint(1, len(known))))

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


def log_likelihood(reader: qwen_vl.QwenVL, rows: qwen_vl.Rows, hidden_BLD: Tensor) -> tuple[Tensor, Tensor]:
    """Log p of each row's prompt and the token after it, given the image, summed over them, and their number: [B]."""
    target_BL = rows.prompt_BL[:, 1:] | rows.prompt_BL[:, :-1]
    logits = hidden_BLD[:, :-1][target_BL] @ reader.model.lm_head.weight.T
    token_logp = -cross_entropy(logits.float(), rows.ids_BL[:, 1:][target_BL], reduction="none")
    logp_BL = torch.zeros(target_BL.shape).masked_scatter(target_BL, token_logp)
    return logp_BL.sum(1), target_BL.sum(1)


def match_logits(reader: qwen_vl.QwenVL, rows: qwen_vl.Rows, hidden_BLD: Tensor) -> Tensor:
    """Log-odds of Yes against No at the end of each row, [B]."""
    yes, no = reader.answer_ids
    weights = reader.model.lm_head.weight
    return hidden_BLD[torch.arange(len(hidden_BLD)), rows.last_B] @ (weights[yes] - weights[no])


class Seeing:
    """The tower alone, asked directly for everything that is recorded of a picture, by linear heads thrown away later.

    Captions teach names: they are most of what makes a caption likely. Without this phase the drawing style stays at
    chance after forty thousand pictures; asked directly, the tower tells it in nine of ten within a CPU minute.
    """

    FACTORS = ("style", "tone", "gender", "hair", "role", "color", "direction", "subgroup", "root")

    def __init__(self, reader: qwen_vl.QwenVL, pictures: Pictures) -> None:
        self.classes = {
            factor: {value: n for n, value in enumerate(sorted({str(getattr(i, factor)) for i in pictures.items}))}
            for factor in self.FACTORS
        }
        self.heads = torch.nn.ModuleDict({f: torch.nn.Linear(reader.width, len(c)) for f, c in self.classes.items()})

    def __call__(self, reader: qwen_vl.QwenVL, pictures: Pictures) -> dict[str, Tensor]:
        items, images = pictures.batch()
        state_BD = reader.image_tokens(images_BCHW=images).mean(1)
        losses = {}
        for factor, classes in self.classes.items():
            target_B = torch.tensor([classes[str(getattr(item, factor))] for item in items])
            losses[factor] = cross_entropy(self.heads[factor](state_BD).float(), target_B)
        return losses


def captioning(reader: qwen_vl.QwenVL, pictures: Pictures) -> dict[str, Tensor]:
    """The right caption is likely, and so are its parts and the picture's keywords in any order."""
    items, images = pictures.batch()
    rows = reader.rows(prompts=[pictures.caption(item) for item in items] + [pictures.parts(item) for item in items])
    tokens = reader.image_tokens(images_BCHW=images).repeat(2, 1, 1)
    logp_B, tokens_B = log_likelihood(reader, rows, reader.hidden(rows=rows, image_tokens_BID=tokens))
    caption_B, parts_B = (-logp_B / tokens_B.sum() * 2).chunk(2)
    return {"caption": caption_B.sum(), "parts": parts_B.sum()}


def matching(reader: qwen_vl.QwenVL, pictures: Pictures) -> dict[str, Tensor]:
    """Yes to the right caption and No to the wrong one, and the first more than the second.

    The pair is what makes this fast: alone, Yes and No stay near chance for as long again.
    """
    items, images = pictures.batch()
    prompts = [pictures.caption(item) for item in items] + [pictures.wrong_caption(item) for item in items]
    rows = reader.rows(prompts=prompts)
    hidden = reader.hidden(rows=rows, image_tokens_BID=reader.image_tokens(images_BCHW=images).repeat(2, 1, 1))
    logp_B, tokens_B = log_likelihood(reader, rows, hidden)
    logits = match_logits(reader, rows, hidden).float()
    better, worse = logits.chunk(2)
    right_B = (torch.arange(2 * BATCH) < BATCH).float()
    return {
        "caption": -logp_B[:BATCH].sum() / tokens_B[:BATCH].sum(),
        "match": binary_cross_entropy_with_logits(logits, right_B) + softplus(worse - better).mean(),
    }


@dataclass(frozen=True)
class Phase:
    """steps: optimizer steps. rate: highest learning rate. tower: share of it for the vision tower."""

    steps: int
    rate: float
    tower: float


PHASES = {
    "seeing": Phase(650, 1.5e-3, 1.0),
    "captioning": Phase(650, 1.5e-3, 0.4),
    "matching": Phase(80, 1e-3, 0.4),
}


def run_phase(name: str, *, reader: qwen_vl.QwenVL, pictures: Pictures) -> float:
    """Train on the sum of the phase's losses; the CPU seconds it took."""
    plan = PHASES[name]
    seeing = Seeing(reader, pictures)
    step_losses = {"seeing": seeing, "captioning": captioning, "matching": matching}[name]
    tower = list(reader.model.model.visual.parameters())
    rest = [*reader.model.model.language_model.parameters(), *seeing.heads.parameters()]  # lm_head is the embeddings
    groups = [{"params": tower, "lr": plan.rate * plan.tower}, {"params": rest, "lr": plan.rate}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min(1.0, (s + 1) / 25) * (0.5 + 0.5 * math.cos(math.pi * s / plan.steps)) + 1e-3
    )
    start, shown = time.process_time(), -10.0
    mean: dict[str, float] = {}
    for step in range(1, plan.steps + 1):
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            losses = step_losses(reader, pictures)
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_([*tower, *rest], 1.0)
        optimizer.step()
        schedule.step()
        for key, value in losses.items():
            now = float(value.detach())
            mean[key] = mean.get(key, now) * 0.97 + now * 0.03
        seconds = time.process_time() - start
        if seconds - shown >= 10 or step == plan.steps:
            shown = seconds
            figures = "  ".join(f"{key} {value:.3f}" for key, value in mean.items())
            print(f"{name}: {step}/{plan.steps} steps, {seconds:.0f} CPU s, loss {figures}", flush=True)
    return time.process_time() - start


@torch.no_grad()
def held_out(reader: qwen_vl.QwenVL, *, seed: int) -> dict[str, float]:
    """How often the right caption beats a wrong one on pictures never shown, by match score and by likelihood."""
    pictures = Pictures(split="test", seed=seed)
    wins, count = {"match": 0.0, "likelihood": 0.0}, 0
    for item, image in zip(pictures.items, pictures.images_NCHW, strict=True):
        rows = reader.rows(prompts=[pictures.caption(item), pictures.wrong_caption(item)])
        tokens = reader.image_tokens(images_BCHW=image[None].float() / 255).expand(2, -1, -1)
        hidden = reader.hidden(rows=rows, image_tokens_BID=tokens)
        right, wrong = match_logits(reader, rows, hidden).tolist()
        likely, unlikely = log_likelihood(reader, rows, hidden)[0].tolist()
        wins["match"] += right > wrong
        wins["likelihood"] += likely > unlikely
        count += 1
    return {name: won / count for name, won in wins.items()} | {"pictures": count}


CARD = """# Small Qwen2.5-VL for EmojiDialog

The reward model's base in VCA's `local` preset: `Qwen2_5_VLForConditionalGeneration` in a small size, so that all that
quantises, adapts and serves Qwen-VL runs on a laptop CPU. It reads one 64x64 emoji and a short English text.

| part | size |
|---|---|
| vision tower | 4 layers of 128, patches of 8 pixels, 16 image tokens |
| language model | 4 layers of 192, 3 heads, 1 key-value head, MLP of 384 |
| tokenizer | byte-level BPE, {tokens} entries, learned from the captions |
| parameters | {parameters:,}, embeddings tied, stored in bfloat16 |

**Trained by** `scripts/base_models/qwen_vl.py` (`make base-models`), {seconds:.0f} CPU seconds on one thread, seed
{seed}, {batch} pictures a step: {steps[0]} steps in which the tower alone tells style, skin, gender, hair, role,
colour, direction and kind; {steps[1]} steps to caption, and to name parts of captions and keywords in any order;
{steps[2]} steps to say Yes to the right caption and No to a wrong one after "{instruction}". The last phase is short on purpose:
reward training on people's preferences is to teach the rest, and to be seen doing it.

**From** the {seen} train-side pictures of EmojiDialog outside the judge's fold (catalogue sha256 `{sha256:.16}`), with
their names and factors as captions, half of them with the drawing style. No held-out concept or combination was shown.

**How good**: on {pictures} held-out pictures the right caption beats a wrong one (same concept, same kind of thing, or
anything) in {match:.1%} by its match score and in {likelihood:.1%} by the caption's likelihood. It knows
nothing but emoji, and is for this preset and for tests alone.

**Licence**: Apache-2.0; the pictures' licences stand in EmojiDialog's NOTICE.md.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of the model")
    parser.add_argument("--work", type=Path, help="folder that keeps what every phase made, to start again after it")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(given.seed)
    pictures = Pictures(split="train", seed=given.seed)
    texts = [caption(item, style=style) for item in pictures.items for style in (True, False)]
    reader = new_model([*texts, *(", ".join(item.keywords) for item in pictures.items)])
    size = sum(p.numel() for p in reader.model.parameters())
    print(f"{size:,} parameters, {len(reader.tokenizer)} tokens, {len(pictures.items)} pictures", flush=True)
    seconds = 0.0
    for number, name in enumerate(PHASES):
        kept = given.work and given.work / f"{name}-{given.seed}.safetensors"
        if kept and kept.exists():
            reader.model.load_state_dict(load_file(kept), strict=False)  # lm_head is the embeddings, and not kept
            seconds = float(safe_open(kept, "pt").metadata()["seconds"])
            continue
        pictures.random.seed(given.seed + number)
        torch.manual_seed(given.seed + number)
        seconds += run_phase(name, reader=reader, pictures=pictures)
        if kept:
            given.work.mkdir(parents=True, exist_ok=True)
            state = {key: value for key, value in reader.model.state_dict().items() if key != "lm_head.weight"}
            save_file(state, kept, metadata={"seconds": str(seconds)})
    reader.model.eval()
    facts = held_out(reader, seed=given.seed)
    print(f"held-out pictures: {facts}", flush=True)
    qwen_vl.save_base(reader=reader, images=qwen_vl.small_images(), folder=given.output)
    text = CARD.format(
        tokens=len(reader.tokenizer),
        parameters=size,
        seconds=seconds,
        seed=given.seed,
        steps=[phase.steps for phase in PHASES.values()],
        batch=BATCH,
        instruction=INSTRUCTION,
        seen=len(pictures.items),
        sha256=load_catalogue().sha256,
        **facts,
    )
    (given.output / "README.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
