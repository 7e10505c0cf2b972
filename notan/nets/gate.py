"""A gate for every pair of classes (Hydra, Wu et al. 2024)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from notan.nets.norm import GlobalBatchNorm1d


class PairGate(nn.Module):
    """g(a, b) in (0, 1)^dim of two classes, the same for (b, a): sigmoid of an MLP on the mean of their embeddings.

    In eval mode the statistics of training stand in for those of a batch of pairs.
    """

    def __init__(self, classes: int, dim: int, *, embed: int = 512, hidden: int = 1024) -> None:
        super().__init__()
        self.embed = nn.Embedding(classes, embed)
        self.mlp = nn.Sequential(nn.ReLU(), GlobalBatchNorm1d(embed), nn.Linear(embed, hidden), nn.ReLU(),
                                 GlobalBatchNorm1d(hidden), nn.Linear(hidden, dim))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Class numbers int64 (B,) and (B,) to (B, dim)."""
        return torch.sigmoid(self.mlp((self.embed(a) + self.embed(b)) / 2))
