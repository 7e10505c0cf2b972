"""Fixed positions of tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from notan.errors import NotanError


def sincos_1d(positions: Tensor, dim: int) -> Tensor:
    """Vaswani et al. 2017, section 3.5, first all sines and then all cosines: (N,) float64 to (N, dim)."""
    omega = 10000.0 ** (-torch.arange(dim // 2, dtype=torch.float64) / (dim / 2))
    angle = positions[:, None] * omega                                  # (N, dim / 2)
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def sincos_2d(grid: tuple[int, int], dim: int) -> Tensor:
    """Positions (h * w, dim) of a grid in raster order: half the channels say the column, half the row (as in MAE)."""
    if dim % 4:
        raise NotanError(f"sin-cos positions of width {dim}", "a multiple of 4", "change dim, or positions=learned")
    row, column = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    return torch.cat([sincos_1d(column.flatten(), dim // 2), sincos_1d(row.flatten(), dim // 2)], dim=1).float()
