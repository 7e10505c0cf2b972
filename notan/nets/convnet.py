"""A plain stack of convolutions, for small pictures and short runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from notan.errors import NotanError
from notan.nets.norm import GlobalBatchNorm2d
from notan.nets.pixels import Normalise


class ConvNet(nn.Module):
    """A `ConvEncoder`: for each width a 3x3 convolution, batch norm of the global batch and ReLU, `layer1` to `layerN`.

    Features are the mean over places. Meant for runs of a few hundred steps on small pictures, where blocks that start as
    the identity have hardly begun to learn; a long run wants `resnet18`.

    widths: channels after each layer. strides: of each layer.
    """

    def __init__(
        self, image_size: int, channels: int = 3, *, widths: Sequence[int] = (32, 64, 128, 256),
        strides: Sequence[int] = (2, 2, 2, 1), mean: Sequence[float] = (0.5,), std: Sequence[float] = (0.5,),
    ) -> None:
        super().__init__()
        lists = all(isinstance(x, (list, tuple)) and x for x in (widths, strides))
        if not lists or len(widths) != len(strides) or min(*widths, *strides) < 1:
            raise NotanError(f"widths {widths} with strides {strides}", "as many strides as widths, from 1 up",
                             "convnet:widths=(32,64,128,256),strides=(2,2,2,1)")
        self.config: dict[str, Any] = {
            "name": "convnet", "image_size": image_size, "channels": channels, "widths": list(widths),
            "strides": list(strides), "mean": list(mean), "std": list(std),
        }
        self.image_size, self.channels, self.dim = image_size, channels, widths[-1]
        self.stride = 1
        self.normalise = Normalise(image_size, channels, mean, std)
        for i, (d_in, width, stride) in enumerate(zip((channels, *widths), widths, strides), start=1):
            conv = nn.Conv2d(d_in, width, 3, stride, 1, bias=False)
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            setattr(self, f"layer{i}", nn.Sequential(conv, GlobalBatchNorm2d(width), nn.ReLU(inplace=True)))
            self.stride *= stride
        self.depth = len(widths)

    def trunk(self, pixels: Tensor) -> Tensor:
        """Pixels in [0, 1] of any size to the last map (B, D, h, w)."""
        return self._run(self.normalise.per_channel(pixels))

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (B, C, S, S) in [0, 1] to the last map (B, D, h, w)."""
        return self._run(self.normalise(pixels))

    def _run(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu":
            x = x.contiguous(memory_format=torch.channels_last)         # as in ResNet
        for i in range(1, self.depth + 1):
            x = getattr(self, f"layer{i}")(x)
        return x

    def maps(self, pixels: Tensor) -> Tensor:                           # (B, D, h, w)
        return self(pixels)

    def features(self, pixels: Tensor) -> Tensor:                       # (B, D)
        return self(pixels).mean((2, 3))
