"""A plain multilayer perceptron on pixels: the encoder of latent-variable models on small pictures."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from notan.errors import NotanError
from notan.nets.pixels import Normalise


class MLP(nn.Module):
    """An `ImageEncoder`: flattened pixels, then Linear and ReLU for each hidden width. It has no map but a 1 x 1 one.

    hidden: widths of the layers; the last is `dim`.
    """

    def __init__(
        self, image_size: int, channels: int = 3, hidden: Sequence[int] = (400, 400),
        *, mean: Sequence[float] = (0.5,), std: Sequence[float] = (0.5,),
    ) -> None:
        super().__init__()
        if not hidden:
            raise NotanError("an MLP without hidden layers", "at least one width", "write mlp:hidden=[400,400]")
        self.config: dict[str, Any] = {
            "name": "mlp", "image_size": image_size, "channels": channels, "hidden": list(hidden),
            "mean": list(mean), "std": list(std),
        }
        self.image_size, self.channels, self.dim = image_size, channels, hidden[-1]
        self.normalise = Normalise(image_size, channels, mean, std)
        widths = [channels * image_size**2, *hidden]
        self.layers = nn.Sequential(*[part for i, o in pairwise(widths) for part in (nn.Linear(i, o), nn.ReLU())])

    def features(self, pixels: Tensor) -> Tensor:
        """(B, C, S, S) in [0, 1] to (B, D)."""
        return self.layers(self.normalise(pixels).flatten(1))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.features(pixels)

    def maps(self, pixels: Tensor) -> Tensor:
        """(B, D, 1, 1)."""
        return self.features(pixels)[:, :, None, None]
