"""EfficientNet-Lite0 without its classifier, batch norms folded into the convolutions: feature maps for the judges.

Tan & Le 2019 (arXiv 1905.11946); Lite: no squeeze-and-excitation, ReLU6 for swish. Shapes: B batch, C channels, H, W.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

# (kernel, stride, expansion, output channels, repeats), as in the official lite0 table
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
HEAD_CHANNELS = 1280
INPUT_SIZE = 96


class Conv(nn.Conv2d):
    """Convolution with TensorFlow's SAME padding: at stride 2 on an even input the extra pixel goes right and below."""

    def __init__(self, inside: int, outside: int, kernel: int, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inside, outside, kernel, stride=stride, groups=groups)
        before = (kernel - stride) // 2
        self.around = (before, kernel - stride - before) * 2

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return super().forward(F.pad(x_BCHW, self.around) if any(self.around) else x_BCHW)


class Block(nn.Module):
    """Inverted bottleneck: expand, depthwise, project; a skip where the shape stays."""

    def __init__(self, inside: int, outside: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inside * expansion
        layers: list[nn.Module] = [] if expansion == 1 else [Conv(inside, wide, 1), nn.ReLU6()]
        layers += [Conv(wide, wide, kernel, stride=stride, groups=wide), nn.ReLU6(), Conv(wide, outside, 1)]
        self.layers = nn.Sequential(*layers)
        self.skip = stride == 1 and inside == outside

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW: Tensor = self.layers(x_BCHW)
        return x_BCHW + y_BCHW if self.skip else y_BCHW


class EfficientNetLite0(nn.Module):
    """3.4 M parameters. `forward` returns the map after every stage and the 1280-channel head map, eight in all."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Conv(3, 32, 3, stride=2)
        stages, inside = [], 32
        for kernel, stride, expansion, outside, repeats in STAGES:
            blocks = [Block(inside, outside, kernel, stride, expansion)]
            blocks += [Block(outside, outside, kernel, 1, expansion) for _ in range(repeats - 1)]
            stages.append(nn.Sequential(*blocks))
            inside = outside
        self.stages = nn.ModuleList(stages)
        self.head = Conv(inside, HEAD_CHANNELS, 1)

    def forward(self, images_BCHW: Tensor) -> list[Tensor]:
        """images_BCHW: [B,3,H,W] in [0,1], any size: resized to 96×96, centred as the weights expect (127, 128)."""
        x = images_BCHW.float()
        if x.shape[-2:] != (INPUT_SIZE, INPUT_SIZE):
            x = F.interpolate(x, size=(INPUT_SIZE, INPUT_SIZE), mode="bilinear", antialias=x.shape[-1] > INPUT_SIZE)
        x = F.relu6(self.stem((x * 255 - 127) / 128))
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        maps.append(F.relu6(self.head(x)))
        return maps
