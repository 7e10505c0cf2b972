"""What a contrast remembers of earlier steps: a queue of keys (He et al. 2020), a bank with a place for each row (Wu et al.
2018). Both hold unit vectors without a gradient, and change in `after_step` alone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Queue(nn.Module):
    """The last `size` keys, first in, first out: `keys` (size, D). It begins with random directions."""

    keys: Tensor
    place: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("keys", F.normalize(torch.randn(size, dim), dim=1))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def push(self, keys: Tensor) -> None:
        """Keys (N, D) take the place of the oldest. Of more than there is room for, the last stay."""
        size = len(self.keys)
        at = (self.place + torch.arange(len(keys), device=keys.device)) % size
        self.keys[at[-size:]] = F.normalize(keys[-size:].to(self.keys.dtype), dim=1)
        self.place.copy_((self.place + len(keys)) % size)


class Bank(nn.Module):
    """A place for each of `rows` rows: `keys` (rows, D). It begins with random directions."""

    keys: Tensor

    def __init__(self, rows: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("keys", F.normalize(torch.rand(rows, dim) * 2 - 1, dim=1))

    @torch.no_grad()
    def update(self, row: Tensor, keys: Tensor, momentum: float) -> None:
        """Rows int64 (N,) follow keys (N, D): V <- m V + (1 - m) key, at unit length. Other rows stay."""
        old = self.keys[row]
        self.keys[row] = F.normalize(momentum * old + (1 - momentum) * F.normalize(keys.to(old.dtype), dim=1), dim=1)
