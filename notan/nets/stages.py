"""Encoders that learned one after another, side by side as one (multistage contrastive learning)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from notan.nets.pixels import Normalise
from notan.nets.protocols import ImageEncoder


class Stages(nn.Module):
    """An `ImageEncoder` whose features are those of its first `learned` parts, one after another: (B, D_0 + D_1 + ...).

    parts: image encoders for the same pixels. learned: how many of them count; one at first. It is kept with the weights.
    """

    learned: Tensor

    def __init__(self, parts: Sequence[ImageEncoder]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)                               # type: ignore[arg-type]
        self.register_buffer("learned", torch.ones((), dtype=torch.int64))
        self.count = 1                                                  # the same as a number, which exports can follow
        first = parts[0]
        self.image_size, self.channels = first.image_size, first.channels
        self.config: dict[str, Any] = {"name": "stages", "parts": [part.config for part in parts]}

    def learn(self, number: int) -> None:
        """From here on the first `number` parts count."""
        self.learned.fill_(number)
        self.count = number

    def _load_from_state_dict(self, *args: Any, **named: Any) -> None:
        super()._load_from_state_dict(*args, **named)
        self.count = int(self.learned)

    @property
    def dim(self) -> int:
        return sum(part.dim for part in self.there)

    @property
    def there(self) -> list[Any]:
        """The parts that count."""
        return list(self.parts[: self.count])

    @property
    def normalise(self) -> Normalise:
        return self.there[0].normalise

    def features(self, pixels: Tensor) -> Tensor:                       # (B, C, S, S) in [0, 1] -> (B, sum of D)
        return torch.cat([part.features(pixels) for part in self.there], 1)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.features(pixels)

    def maps(self, pixels: Tensor) -> Tensor:                           # (B, sum of D, h, w)
        return torch.cat([part.maps(pixels) for part in self.there], 1)
