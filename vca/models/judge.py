"""The judges of the local preset: content, drawing style, distance. Trained apart from the reward model.

* content, "CLIP-style": cosine of a picture (frozen ImageNet EfficientNet-Lite0, trained head) and a caption (trained
  word transformer, distilled from MiniLM and then trained against the pictures).
* style: log-probabilities of the drawing styles, a head of its own on the same frozen features.
* distance, "LPIPS-style": Zhang et al. 2018 (arXiv 1801.03924) with unit weights on EfficientNet-Lite0's own maps.

Shapes: B batch, C channels, H, W, L words, D width, E joint embedding, F pooled features, S styles.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from vca.errors import ArtifactError
from vca.models.efficientnet_lite import HEAD_CHANNELS, STAGES, EfficientNetLite0

SHIPPED = Path(__file__).parent / "base" / "judge"
WEIGHTS, CONFIG = "judge.safetensors", "config.json"
EMBEDDING = 256
WORD_WIDTH = 128
MAX_WORDS = 24
PADDING, UNKNOWN = 0, 1
FEATURES = sum(stage[3] for stage in STAGES[1:]) + HEAD_CHANNELS + 4 * (STAGES[2][3] + STAGES[4][3]) + 3 * 16


def words(text: str) -> list[str]:
    """Lower-case words; a hyphen stays inside a word ("medium-dark"), punctuation goes."""
    return re.findall(r"[^\W_]+(?:[-'’][^\W_]+)*", text.lower())


class ImageTower(nn.Module):
    """Frozen backbone, pooled at several depths, and the trained head."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = EfficientNetLite0().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.center_F = nn.Buffer(torch.zeros(FEATURES))
        self.spread_F = nn.Buffer(torch.ones(FEATURES))
        self.head = nn.Sequential(
            nn.Linear(FEATURES, 512), nn.GELU(), nn.Dropout(0.2), nn.LayerNorm(512), nn.Linear(512, EMBEDDING)
        )

    @torch.no_grad()
    def features(self, images_BCHW: Tensor) -> Tensor:
        """[B,3,H,W] in [0,1] → [B,F]: means of the maps, and quadrants of two of them and of the colours for place."""
        maps = self.backbone(images_BCHW.contiguous(memory_format=torch.channels_last))
        parts = [m.mean((2, 3)) for m in maps[1:]]
        parts += [F.adaptive_avg_pool2d(maps[at], 2).flatten(1) for at in (2, 4)]
        parts.append(F.adaptive_avg_pool2d(images_BCHW.float(), 4).flatten(1))
        return torch.cat(parts, 1)

    def standard(self, features_BF: Tensor) -> Tensor:
        """Features with mean 0 and deviation 1 over the training pictures."""
        return (features_BF - self.center_F) / self.spread_F

    def embed(self, features_BF: Tensor) -> Tensor:
        """[B,F] → unit vectors [B,E]."""
        return F.normalize(self.head(self.standard(features_BF)), dim=1)


class TextTower(nn.Module):
    """Two transformer layers over words, mean over the words that are there, one projection."""

    def __init__(self, vocabulary: list[str]) -> None:
        super().__init__()
        self.index = {word: at for at, word in enumerate(vocabulary)}
        self.embedding = nn.Embedding(len(vocabulary), WORD_WIDTH, padding_idx=PADDING)
        self.place = nn.Embedding(MAX_WORDS, WORD_WIDTH)
        layer = nn.TransformerEncoderLayer(
            WORD_WIDTH, 4, 2 * WORD_WIDTH, dropout=0.1, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Sequential(
            nn.LayerNorm(WORD_WIDTH), nn.Linear(WORD_WIDTH, 256), nn.GELU(), nn.Linear(256, EMBEDDING)
        )

    def tokenize(self, texts: list[str]) -> Tensor:
        """[B,L] word numbers, padded with 0; a text without any word is one unknown word."""
        rows = [[self.index.get(word, UNKNOWN) for word in words(text)[:MAX_WORDS]] or [UNKNOWN] for text in texts]
        longest = max(map(len, rows))
        return torch.tensor([row + [PADDING] * (longest - len(row)) for row in rows])

    def states(self, tokens_BL: Tensor) -> Tensor:
        """[B,L] → [B,D], the mean over the words."""
        there_BL = tokens_BL != PADDING
        x_BLD: Tensor = self.embedding(tokens_BL) + self.place.weight[: tokens_BL.shape[1]]
        x_BLD = self.layers(x_BLD, src_key_padding_mask=~there_BL)
        return (x_BLD * there_BL[..., None]).sum(1) / there_BL.sum(1, keepdim=True)

    def forward(self, tokens_BL: Tensor) -> Tensor:
        return F.normalize(self.head(self.states(tokens_BL)), dim=1)


class Judges(nn.Module):
    """The three networks in one state dict."""

    def __init__(self, *, vocabulary: list[str], styles: int) -> None:
        super().__init__()
        self.images = ImageTower()
        self.texts = TextTower(vocabulary)
        self.style = nn.Sequential(nn.Linear(FEATURES, 64), nn.GELU(), nn.Dropout(0.3), nn.Linear(64, styles))


@dataclass(frozen=True, kw_only=True)
class Judge:
    """What evaluation asks. All answers are float32 on the CPU, without gradients."""

    networks: Judges
    styles: tuple[str, ...]
    sha256: str

    @classmethod
    def load(cls, folder: Path = SHIPPED) -> Judge:
        """Read a judge folder; ArtifactError if a file is missing or not the one its config names."""
        try:
            config = json.loads((folder / CONFIG).read_text())
            digest = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
        except (OSError, ValueError) as error:
            raise ArtifactError(
                f"no evaluation judge in {folder} ({error}); restore it or run `make base-models`"
            ) from error
        if digest != config["sha256"]:
            raise ArtifactError(
                f"{folder / WEIGHTS} has sha256 {digest[:12]}…, its config names {config['sha256'][:12]}…: "
                "the file is damaged or mixed; restore it or run `make base-models`"
            )
        networks = Judges(vocabulary=config["vocabulary"], styles=len(config["styles"]))
        networks.load_state_dict({name: tensor.float() for name, tensor in load_file(folder / WEIGHTS).items()})
        return cls(networks=networks.eval(), styles=tuple(config["styles"]), sha256=digest)

    @torch.inference_mode()
    def features(self, *, images_BCHW: Tensor, batch: int = 128) -> Tensor:
        """[B,3,H,W] in [0,1] → [B,F], which content and style are both read from: the costly part."""
        return torch.cat([self.networks.images.features(part) for part in torch.split(images_BCHW, batch)])

    @torch.inference_mode()
    def embed_features(self, *, features_BF: Tensor) -> Tensor:
        """Unit vectors [B,E]."""
        return self.networks.images.embed(features_BF)

    def embed_images(self, *, images_BCHW: Tensor) -> Tensor:
        """[B,3,H,W] in [0,1] → unit vectors [B,E]."""
        return self.embed_features(features_BF=self.features(images_BCHW=images_BCHW))

    @torch.inference_mode()
    def embed_texts(self, *, texts: list[str]) -> Tensor:
        """Texts → unit vectors [B,E]; equal texts are embedded once."""
        once = sorted(set(texts))
        vectors: Tensor = self.networks.texts(self.networks.texts.tokenize(once))
        row = {text: at for at, text in enumerate(once)}
        return vectors[[row[text] for text in texts]]

    def content(self, *, prompts: list[str], images_BCHW: Tensor) -> Tensor:
        """Cosine of each picture and its own prompt, [B] in [-1,1]."""
        return (self.embed_images(images_BCHW=images_BCHW) * self.embed_texts(texts=prompts)).sum(1)

    @torch.inference_mode()
    def style_logp(self, *, features_BF: Tensor) -> Tensor:
        """Log-probabilities [B,S] in the order of `styles`."""
        logits_BS: Tensor = self.networks.style(self.networks.images.standard(features_BF))
        return logits_BS.log_softmax(1)

    @torch.inference_mode()
    def distance(self, *, left_BCHW: Tensor, right_BCHW: Tensor, batch: int = 64) -> Tensor:
        """LPIPS-style distance [B] ≥ 0: channel-normalised maps of stages 1–6, squared difference, mean over place."""
        out = []
        for left, right in zip(torch.split(left_BCHW, batch), torch.split(right_BCHW, batch), strict=True):
            both = self.networks.images.backbone(torch.cat([left, right]).contiguous(memory_format=torch.channels_last))
            units = [F.normalize(m, dim=1, eps=1e-6).chunk(2) for m in both[:6]]
            out.append(torch.stack([(a - b).square().sum(1).mean((1, 2)) for a, b in units]).mean(0))
        return torch.cat(out)
