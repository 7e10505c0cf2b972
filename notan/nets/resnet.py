"""Residual networks: version 1 with torchvision's parameter names (He et al. 2016a), and pre-activation (2016b)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from notan.errors import NotanError
from notan.nets.norm import GlobalBatchNorm2d
from notan.nets.pixels import Normalise

DEPTHS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}


class BasicBlock(nn.Module):
    """relu(x + norm(conv3(relu(norm(conv3(x)))))); the shortcut is a 1x1 convolution where shapes differ."""

    expansion = 1

    def __init__(self, d_in: int, width: int, stride: int, dilation: int, norm: str) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv3(d_in, width, stride, dilation), make_norm(norm, width)
        self.conv2, self.bn2 = _conv3(width, width, 1, dilation), make_norm(norm, width)
        self.downsample = _shortcut(d_in, width, stride, norm)
        nn.init.zeros_(self.bn2.weight)                                 # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)), inplace=True)


class Bottleneck(nn.Module):
    """1x1, 3x3 (which strides) and 1x1 convolutions to four times the width."""

    expansion = 4

    def __init__(self, d_in: int, width: int, stride: int, dilation: int, norm: str) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(d_in, width, 1, bias=False), make_norm(norm, width)
        self.conv2, self.bn2 = _conv3(width, width, stride, dilation), make_norm(norm, width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), make_norm(norm, 4 * width)
        self.downsample = _shortcut(d_in, 4 * width, stride, norm)
        nn.init.zeros_(self.bn3.weight)                                 # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)), inplace=True)


class PreBasicBlock(nn.Module):
    """x + conv3(relu(norm(conv3(relu(norm(x)))))); a shortcut convolution reads the normalised input."""

    expansion = 1

    def __init__(self, d_in: int, width: int, stride: int, dilation: int, norm: str) -> None:
        super().__init__()
        self.bn1, self.conv1 = make_norm(norm, d_in), _conv3(d_in, width, stride, dilation)
        self.bn2, self.conv2 = make_norm(norm, width), _conv3(width, width, 1, dilation)
        self.downsample = _shortcut(d_in, width, stride, None)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(x), inplace=True)
        shortcut = x if self.downsample is None else self.downsample(y)
        return shortcut + self.conv2(F.relu(self.bn2(self.conv1(y)), inplace=True))


class PreBottleneck(nn.Module):
    """The bottleneck with norm and ReLU before each convolution."""

    expansion = 4

    def __init__(self, d_in: int, width: int, stride: int, dilation: int, norm: str) -> None:
        super().__init__()
        self.bn1, self.conv1 = make_norm(norm, d_in), nn.Conv2d(d_in, width, 1, bias=False)
        self.bn2, self.conv2 = make_norm(norm, width), _conv3(width, width, stride, dilation)
        self.bn3, self.conv3 = make_norm(norm, width), nn.Conv2d(width, 4 * width, 1, bias=False)
        self.downsample = _shortcut(d_in, 4 * width, stride, None)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(x), inplace=True)
        shortcut = x if self.downsample is None else self.downsample(y)
        y = self.conv2(F.relu(self.bn2(self.conv1(y)), inplace=True))
        return shortcut + self.conv3(F.relu(self.bn3(y), inplace=True))


class ResNet(nn.Module):
    """A `ConvEncoder` without classifier: a stem and four groups of blocks, `layer1` to `layer4`.

    depth: 10, 18, 34 (basic blocks) or 50 (bottlenecks).
    width: channels of the first group; the published networks have 64.
    stem: "imagenet" (7x7 stride 2 and max pooling) or "cifar" (3x3, stride 1, no pooling).
    norm: "batch" (of the global batch) or "group".
    stride: the total stride at most; groups that would go beyond it dilate instead. None: 32, or 8 with the cifar stem.
    preact: norm and ReLU before the convolutions (version 2), with one last norm `bn_last` after the fourth group.
    last_group: 1 to 4; the network ends after this group, and starts with the same weights as the whole one would.
    The last norm of each version-1 block starts at zero, so that every block starts as the identity.

    `widths` are the channels after each group, `groups` the groups, and `trunk(pixels, 3)` the first three of them
    on images of any size.
    """

    def __init__(
        self, image_size: int, channels: int = 3, *, depth: int = 18, width: int = 64, stem: str = "cifar",
        norm: str = "batch", stride: int | None = None, preact: bool = False, last_group: int = 4,
        mean: Sequence[float] = (0.5,), std: Sequence[float] = (0.5,),
    ) -> None:
        super().__init__()
        if depth not in DEPTHS:
            raise NotanError(f"a ResNet of depth {depth}", f"one of {', '.join(map(str, DEPTHS))}")
        if stem not in ("cifar", "imagenet"):
            raise NotanError(f"stem={stem!r}", "stem is one of cifar, imagenet")
        first = 4 if stem == "imagenet" else 1
        limit = 8 * first if stride is None else stride
        if limit not in [first * 2**i for i in range(4)]:
            raise NotanError(f"a total stride of {stride} with the {stem} stem",
                             f"one of {', '.join(str(first * 2**i) for i in range(4))}")
        if last_group not in (1, 2, 3, 4):
            raise NotanError(f"last_group={last_group}", "1 to 4")
        self.config: dict[str, Any] = {
            "name": f"resnet{depth}", "image_size": image_size, "channels": channels, "width": width, "stem": stem,
            "norm": norm, "stride": stride, "preact": preact, "last_group": last_group,
            "mean": list(mean), "std": list(std),
        }
        self.image_size, self.channels, self.preact = image_size, channels, preact
        self.stride = min(limit, first * 2 ** (last_group - 1))
        block = _block(depth, preact)
        self.widths = tuple(width * 2**i * block.expansion for i in range(last_group))
        self.dim = self.widths[-1]
        self.normalise = Normalise(image_size, channels, mean, std)
        side, step, pad = (7, 2, 3) if stem == "imagenet" else (3, 1, 1)
        self.conv1 = nn.Conv2d(channels, width, side, step, pad, bias=False)
        self.bn1 = nn.Identity() if preact else make_norm(norm, width)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if stem == "imagenet" else nn.Identity()
        self.layer1, self.layer2, self.layer3, self.layer4 = _groups(block, depth, width, first, limit, norm)
        self.bn_last = make_norm(norm, self.dim) if preact and last_group == 4 else nn.Identity()
        self.apply(_init_conv)
        for i in range(last_group, 4):
            setattr(self, f"layer{i + 1}", nn.Identity())

    @property
    def groups(self) -> tuple[nn.Sequential, ...]:
        return (self.layer1, self.layer2, self.layer3, self.layer4)[: len(self.widths)]

    def stem(self, pixels: Tensor) -> Tensor:
        """Normalised pixels to the input of the first group, (B, width, ., .)."""
        if pixels.device.type == "cpu" and self.config["norm"] == "batch":
            pixels = pixels.contiguous(memory_format=torch.channels_last)       # a fifth faster; group norm is slower
        x = self.conv1(pixels)
        return self.maxpool(x if self.preact else F.relu(self.bn1(x), inplace=True))

    def trunk(self, pixels: Tensor, groups: int | None = None) -> Tensor:
        """Pixels in [0, 1] of any size through the stem and the first `groups` groups: (B, widths[groups - 1], ., .).

        None: through the whole network, as `forward` does at its own size.
        """
        return self._run(self.normalise.per_channel(pixels), groups)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (B, C, S, S) in [0, 1] to the last map (B, D, S / stride, S / stride)."""
        return self._run(self.normalise(pixels), None)

    def _run(self, x: Tensor, groups: int | None) -> Tensor:
        x = self.stem(x)
        for group in self.groups[:groups]:
            x = group(x)
        ends = self.preact and groups is None and len(self.widths) == 4
        return F.relu(self.bn_last(x)) if ends else x

    def maps(self, pixels: Tensor) -> Tensor:                           # (B, D, h, w)
        return self(pixels)

    def features(self, pixels: Tensor) -> Tensor:                       # (B, D)
        return self(pixels).mean((2, 3))


def make_norm(norm: str, channels: int) -> nn.Module:
    """Batch norm of the global batch, or group norm with at most 32 groups."""
    if norm == "batch":
        return GlobalBatchNorm2d(channels)
    if norm == "group":
        return nn.GroupNorm(math.gcd(32, channels), channels)
    raise NotanError(f"norm={norm!r}", "norm is one of batch, group")


def _block(depth: int, preact: bool) -> Any:
    if depth == 50:
        return PreBottleneck if preact else Bottleneck
    return PreBasicBlock if preact else BasicBlock


def _groups(block: Any, depth: int, width: int, stride: int, limit: int, norm: str) -> list[nn.Sequential]:
    """Four groups; once the total stride has reached `limit`, a group dilates where it would have strided."""
    groups, d_in, dilation = [], width, 1
    for i, blocks in enumerate(DEPTHS[depth]):
        step = 1 if i == 0 else 2
        before = dilation
        if stride * step > limit:
            step, dilation = 1, dilation * 2
        stride *= step
        w = width * 2**i
        parts = [block(d_in, w, step, before, norm)]
        d_in = w * block.expansion
        parts += [block(d_in, w, 1, dilation, norm) for _ in range(blocks - 1)]
        groups.append(nn.Sequential(*parts))
    return groups


def _conv3(d_in: int, d_out: int, stride: int, dilation: int) -> nn.Conv2d:
    return nn.Conv2d(d_in, d_out, 3, stride, dilation, dilation, bias=False)


def _shortcut(d_in: int, d_out: int, stride: int, norm: str | None) -> nn.Module | None:
    if d_in == d_out and stride == 1:
        return None
    conv = nn.Conv2d(d_in, d_out, 1, stride, bias=False)
    return conv if norm is None else nn.Sequential(conv, make_norm(norm, d_out))


def _init_conv(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
