"""Train the local preset's small Qwen2.5-VL on EmojiDialog: to see, then to caption, then, shortly, to judge a match.

    python -m scripts.base_models.qwen_vl --output vca/models/base/qwen_vl

Comes after the Stable Diffusion base, whose autoencoder it needs. Only train-side pictures outside the judge's fold are
seen, so that held-out concepts and combinations stay held out and the evaluation judge stays independent. The matching
phase is short on purpose: reward training is to learn the rest from people's preferences.
"""

from __future__ import annotations

import argparse
import io
import math
import time
from collections.abc import Callable, Sequence
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

from scripts.base_models.autoencoder import redrawn
from vca.data.emoji.catalogue import EmojiItem, caption, load_catalogue
from vca.data.emoji.graph import EditGraph
from vca.data.emoji.pairs import EDIT_KINDS
from vca.diffusion.sampler import generate
from vca.models import qwen_vl
from vca.models.stable_diffusion import StableDiffusion, load_pipeline
from vca.records import Split

INSTRUCTION = "Match?"
VOCABULARY = 3072
BATCH = 32
REDRAWING_NOISE = 0.15  # deviations on the autoencoder's latents


def drawn_again(images: Tensor, items: Sequence[EmojiItem], base: StableDiffusion) -> Tensor:
    """The pictures as the generator draws them again from their captions, starting at three or four fifths of noise.

    In as few steps as in the local preset's training, so that they have the look of what is to be rewarded.
    """
    again = []
    for start in range(0, len(items), 64):
        rows = range(start, min(start + 64, len(items)))
        samples = generate(
            base,
            prompts=[caption(items[row], style=True) for row in rows],
            previous_latents=base.encode_images(images[start : rows.stop])[0],
            strength=(0.6, 0.8)[start // 64 % 2],
            steps=5,
            guidance=1.0,
            eta=1.0,
            generators=[torch.Generator().manual_seed(row) for row in rows],
        )
        again.append(samples.images_BCHW)
    return torch.cat(again)


class Pictures:
    """The pictures of one side outside the judge's fold, and how captions for them are drawn."""

    def __init__(self, *, split: Split, seed: int, base: StableDiffusion | None = None) -> None:
        self.items = [item for item in load_catalogue().side(split) if item.fold == "reward"]
        decoded = [np.asarray(Image.open(io.BytesIO(item.png)).convert("RGB")) for item in self.items]
        self.images_NCHW = torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2).contiguous()
        self.shown = {"as they are": self.images_NCHW}
        if base:
            torch.manual_seed(seed)
            images = self.images_NCHW.float() / 255
            self.shown["through the autoencoder"] = (redrawn(images, base, REDRAWING_NOISE) * 255).round().byte()
            self.shown["drawn again"] = (drawn_again(images, self.items, base) * 255).round().byte()
        self.random = Random(seed)
        self.place = {item.item_id: n for n, item in enumerate(self.items)}
        self.graph = EditGraph(self.items)
        self.sources = {kind: self.graph.sources(kind) for kind in EDIT_KINDS} | {"random": self.items}

    def batch(self, *, half: str) -> tuple[list[EmojiItem], Tensor]:
        """Items and what is shown of them."""
        items = self.random.sample(self.items, BATCH)
        return items, self.views(items, half=half)

    def views(self, items: Sequence[EmojiItem], *, half: str) -> Tensor:
        """Images in [0, 1], each moved, scaled and turned a little, and grainy; people also mirrored.

        Without this the tower learns the few thousand pictures by heart within minutes. One half of them is shown as
        `half` says, since the reward model is to judge what the generator draws.
        """
        count, places = len(items), [self.place[item.item_id] for item in items]
        changed = torch.tensor([self.random.random() < 0.5 for _ in places]).view(-1, 1, 1, 1)
        images = torch.where(changed, self.shown[half][places], self.images_NCHW[places]) / 255
        mirrored = torch.tensor([item.group == "people-body" and self.random.random() < 0.5 for item in items])
        images[mirrored] = images[mirrored].flip(3)
        angle, x, y = (torch.empty(count).uniform_(-limit, limit) for limit in (0.15, 0.12, 0.12))
        zoom = torch.empty(count).uniform_(0.85, 1.15)
        rows = [torch.stack([angle.cos(), -angle.sin(), x], 1), torch.stack([angle.sin(), angle.cos(), y], 1)]
        grid = affine_grid(torch.stack(rows, 1) * zoom.view(-1, 1, 1), list(images.shape), align_corners=False)
        images = 1 - grid_sample(1 - images, grid, align_corners=False)  # white, not black, moves in from outside
        images = images * torch.empty(count, 1, 1, 1).uniform_(0.95, 1.05) + 0.02 * torch.randn_like(images)
        return images.clamp(0, 1)

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

    def contrast(self, item: EmojiItem, kind: str) -> tuple[EmojiItem, str, str]:
        """Another picture, one edit of that kind away or any other; and captions that tell the two apart."""
        while True:
            other = self.random.choice(self.items if kind == "random" else self.graph.neighbours(item, kind))
            style = kind == "style" or self.random.random() < 0.5
            captions = caption(item, style=style), caption(other, style=style)
            if captions[0] != captions[1]:
                return other, *captions

    def kinds(self, item: EmojiItem) -> list[str]:
        """The kinds of contrast that there are for a picture."""
        return [*(kind for kind in EDIT_KINDS if self.graph.neighbours(item, kind)), "random"]


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


def likelihood_loss(reader: qwen_vl.QwenVL, rows: qwen_vl.Rows, hidden_BLD: Tensor) -> Tensor:
    """Every row's part of the mean of -log p over the tokens of a half of the batch, [B]."""
    tokens = (rows.prompt_BL.sum() + len(rows.prompt_BL)) / 2
    return -reader.log_likelihood(rows=rows, hidden_BLD=hidden_BLD) / tokens


def yes_logits(reader: qwen_vl.QwenVL, hidden_BLD: Tensor) -> Tensor:
    """Log-odds of Yes against No after every token, [B, L]."""
    yes, no = reader.answer_ids
    weights = reader.model.lm_head.weight
    return hidden_BLD @ (weights[yes] - weights[no])


class Seeing:
    """The tower alone, asked directly for everything that is recorded of a picture, by linear heads thrown away later.

    Captions teach names: they are most of what makes a caption likely. Without this phase the drawing style stays at
    chance after forty thousand pictures; asked directly, the tower tells it in nine of ten within a CPU minute. While
    captioning the same questions go on, so that the tower does not give up what names don't need.
    """

    FACTORS = ("style", "tone", "gender", "hair", "role", "color", "direction", "subgroup", "root")

    def __init__(self, reader: qwen_vl.QwenVL, pictures: Pictures) -> None:
        self.classes = {
            factor: {value: n for n, value in enumerate(sorted({str(getattr(i, factor)) for i in pictures.items}))}
            for factor in self.FACTORS
        }
        self.heads = torch.nn.ModuleDict({f: torch.nn.Linear(reader.width, len(c)) for f, c in self.classes.items()})

    def losses(self, items: list[EmojiItem], tokens_BID: Tensor) -> dict[str, Tensor]:
        """Cross-entropy of every factor, from the mean of what the tower says."""
        state_BD = tokens_BID.mean(1)
        losses = {}
        for factor, classes in self.classes.items():
            target_B = torch.tensor([classes[str(getattr(item, factor))] for item in items])
            losses[factor] = cross_entropy(self.heads[factor](state_BD).float(), target_B)
        return losses


def seeing(reader: qwen_vl.QwenVL, questions: Seeing, pictures: Pictures, half: str) -> dict[str, Tensor]:
    """The tower tells every factor."""
    items, images = pictures.batch(half=half)
    return questions.losses(items, reader.image_tokens(images_BCHW=images))


def captioning(reader: qwen_vl.QwenVL, questions: Seeing, pictures: Pictures, half: str) -> dict[str, Tensor]:
    """The right caption is likely, and so are its parts and the picture's keywords in any order."""
    items, images = pictures.batch(half=half)
    rows = reader.rows(prompts=[pictures.caption(item) for item in items] + [pictures.parts(item) for item in items])
    tokens_BID = reader.image_tokens(images_BCHW=images)
    hidden = reader.hidden(rows=rows, image_tokens_BID=tokens_BID.repeat(2, 1, 1))
    caption_B, parts_B = likelihood_loss(reader, rows, hidden).chunk(2)
    seen = torch.stack(list(questions.losses(items, tokens_BID).values())).mean()
    return {"caption": caption_B.sum(), "parts": parts_B.sum(), "seeing": seen}


def matching(reader: qwen_vl.QwenVL, questions: Seeing, pictures: Pictures, half: str) -> dict[str, Tensor]:
    """Yes to the right captions of two pictures and No to each other's, and the first more than the second.

    The pictures are one edit apart, or any two. Comparing two captions of a picture, and two pictures of a caption,
    leaves no room for an opinion of either alone. Yes and No are asked for after every word, for what was read so far:
    asked at the end alone, the model finds out for one attribute after the other, and for some not at all.
    """
    kinds = [pictures.random.choice(list(pictures.sources)) for _ in range(BATCH // 2)]
    items = [pictures.random.choice(pictures.sources[kind]) for kind in kinds]
    others, own, theirs = zip(*map(pictures.contrast, items, kinds), strict=True)
    images = pictures.views([*items, *others], half=half)
    rows = reader.rows(prompts=[*own, *theirs, *theirs, *own])
    hidden = reader.hidden(rows=rows, image_tokens_BID=reader.image_tokens(images_BCHW=images).repeat(2, 1, 1))
    logits_BL = yes_logits(reader, hidden)
    read_BL = rows.after_BL & rows.valid_BL
    differs_BL = rows.ids_BL != rows.ids_BL[:BATCH].repeat(2, 1)  # from the right caption of the same picture
    fits_BL = (differs_BL.cumsum(1) == 0).float()
    right, wrong = logits_BL[torch.arange(2 * BATCH), rows.last_B].chunk(2)
    return {
        "caption": likelihood_loss(reader, rows, hidden)[:BATCH].sum(),
        "words": binary_cross_entropy_with_logits(logits_BL[read_BL], fits_BL[read_BL]),
        "captions": softplus(wrong - right).mean(),
        "pictures": softplus(wrong.roll(BATCH // 2) - right).mean(),
    }


@dataclass(frozen=True)
class Phase:
    """losses: what is learned. steps: optimizer steps. rate: highest learning rate. tower: share of it for the tower.

    half: how one half of the pictures is shown.
    """

    losses: Callable[..., dict[str, Tensor]]
    steps: int
    rate: float
    tower: float
    half: str


PHASES = {
    "seeing": Phase(seeing, steps=2400, rate=1.5e-3, tower=1.0, half="as they are"),
    "captioning": Phase(captioning, steps=2600, rate=1.5e-3, tower=0.4, half="as they are"),
    "redrawn": Phase(captioning, steps=1200, rate=1e-3, tower=1.0, half="through the autoencoder"),
    "refining": Phase(captioning, steps=1200, rate=1e-3, tower=0.6, half="through the autoencoder"),
    "generated": Phase(captioning, steps=1000, rate=8e-4, tower=0.8, half="drawn again"),
    "matching": Phase(matching, steps=60, rate=1e-3, tower=0.4, half="drawn again"),
}


def run_phase(name: str, *, reader: qwen_vl.QwenVL, questions: Seeing, pictures: Pictures) -> float:
    """Train on the sum of the phase's losses; the CPU seconds it took."""
    plan = PHASES[name]
    tower = list(reader.model.model.visual.parameters())
    rest = [*reader.model.model.language_model.parameters(), *questions.heads.parameters()]  # lm_head: the embeddings
    groups = [{"params": tower, "lr": plan.rate * plan.tower}, {"params": rest, "lr": plan.rate}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min(1.0, (s + 1) / 25) * (0.5 + 0.5 * math.cos(math.pi * s / plan.steps)) + 1e-3
    )
    start, shown = time.process_time(), -10.0
    mean: dict[str, float] = {}
    for step in range(1, plan.steps + 1):
        with sdpa_kernel(SDPBackend.MATH):
            losses = plan.losses(reader, questions, pictures, plan.half)
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
    """How often the right caption beats one of an edited picture, on pictures never shown, by match and likelihood."""
    pictures = Pictures(split="test", seed=seed)
    wins, count = {"match": 0.0, "likelihood": 0.0}, 0
    for item, image in zip(pictures.items, pictures.images_NCHW, strict=True):
        rows = reader.rows(prompts=pictures.contrast(item, pictures.random.choice(pictures.kinds(item)))[1:])
        tokens = reader.image_tokens(images_BCHW=image[None].float() / 255).expand(2, -1, -1)
        hidden = reader.hidden(rows=rows, image_tokens_BID=tokens)
        right, wrong = yes_logits(reader, hidden)[torch.arange(2), rows.last_B].tolist()
        likely, unlikely = reader.log_likelihood(rows=rows, hidden_BLD=hidden).tolist()
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
{steps[2]} and {steps[3]} more on pictures of which half went through the generator's autoencoder, {steps[4]} on
pictures of which half were drawn again by the generator; {steps[5]} steps to say Yes to the right caption and No to a
wrong one, in the end after "{instruction}". The last phase is short on purpose: reward training on people's
preferences is to teach the rest, and to be seen doing it.

**From** the {seen} train-side pictures of EmojiDialog outside the judge's fold (catalogue sha256 `{sha256:.16}`), with
their names and factors as captions, half of them with the drawing style. No held-out concept or combination was shown.

**How good**: on {pictures} held-out pictures the right caption beats that of a picture one edit away, or of any, in
{match:.1%} by its match score and in {likelihood:.1%} by the caption's likelihood. It knows nothing but emoji, and is
for this preset and for tests alone.

**Licence**: Apache-2.0; the pictures' licences stand in EmojiDialog's NOTICE.md.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of the model")
    parser.add_argument("--work", type=Path, help="folder that keeps what every phase made, to start again after it")
    parser.add_argument("--base", default="package:stable_diffusion", help="the generator's base, for its autoencoder")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(given.seed)
    pictures = Pictures(split="train", seed=given.seed, base=load_pipeline(given.base))
    texts = [caption(item, style=style) for item in pictures.items for style in (True, False)]
    reader = new_model([*texts, *(", ".join(item.keywords) for item in pictures.items)])
    questions = Seeing(reader, pictures)
    for layer in [*reader.model.model.visual.blocks, *reader.language_model.layers]:
        layer.compile()  # fuses what lies between the products: a fifth less time
    size = sum(p.numel() for p in reader.model.parameters())
    print(f"{size:,} parameters, {len(reader.tokenizer)} tokens, {len(pictures.items)} pictures", flush=True)
    seconds = 0.0
    for number, name in enumerate(PHASES):
        kept = given.work and given.work / f"{name}-{given.seed}.safetensors"
        if kept and kept.exists():
            torch.nn.ModuleDict({"model": reader.model, "heads": questions.heads}).load_state_dict(
                load_file(kept), strict=False
            )  # lm_head is the embeddings, and not kept
            seconds = float(safe_open(kept, "pt").metadata()["seconds"])
            continue
        pictures.random.seed(given.seed + number)
        torch.manual_seed(given.seed + number)
        seconds += run_phase(name, reader=reader, questions=questions, pictures=pictures)
        if kept:
            given.work.mkdir(parents=True, exist_ok=True)
            state = torch.nn.ModuleDict({"model": reader.model, "heads": questions.heads}).state_dict()
            state.pop("model.lm_head.weight")
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
