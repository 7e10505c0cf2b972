"""An encoder with one linear layer on top, saved and loaded as one: for methods whose features are that layer."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from notan.nets.protocols import ImageEncoder


class Headed(nn.Module):
    """An `ImageEncoder` whose features are `linear(base.features(pixels))`: (B, dim).

    base: any image encoder. dim: width of the linear layer.
    """

    def __init__(self, base: ImageEncoder, dim: int) -> None:
        super().__init__()
        self.base, self.linear = base, nn.Linear(base.dim, dim)
        self.image_size, self.channels, self.dim = base.image_size, base.channels, dim
        self.config: dict[str, Any] = {"name": "headed", "base": base.config, "dim": dim}

    def normalise(self, pixels: Tensor) -> Tensor:
        return self.base.normalise(pixels)

    def features(self, pixels: Tensor) -> Tensor:                       # (B, C, S, S) in [0, 1] -> (B, dim)
        return self.linear(self.base.features(pixels))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.features(pixels)

    def maps(self, pixels: Tensor) -> Tensor:
        """The linear layer at each place of the base's map: (B, dim, h, w)."""
        return self.linear(self.base.maps(pixels).movedim(1, -1)).movedim(-1, 1)
