"""Projectors and predictors: what stands between an encoder and a loss, and is thrown away after training."""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from notan.errors import NotanError
from notan.nets.norm import GlobalBatchNorm1d, GlobalBatchNorm2d


def mlp(*dims: int, norm: str = "batch") -> nn.Sequential:
    """Linear, norm, ReLU for each hidden width and a last linear: (B, dims[0]) to (B, dims[-1]).

    norm: "batch" (of the global batch), "layer" or "none".
    """
    layers: list[nn.Module] = []
    for i, (d_in, d_out) in enumerate(pairwise(dims)):
        layers.append(nn.Linear(d_in, d_out))
        if i < len(dims) - 2:
            layers += [*_norm(norm, d_out), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def conv_mlp(*dims: int) -> nn.Sequential:
    """`mlp` at each place of a map, as 1x1 convolutions with batch norm: (B, dims[0], h, w) to (B, dims[-1], ., .)."""
    layers: list[nn.Module] = []
    for i, (d_in, d_out) in enumerate(pairwise(dims)):
        layers.append(nn.Conv2d(d_in, d_out, 1))
        if i < len(dims) - 2:
            layers += [GlobalBatchNorm2d(d_out), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def _norm(norm: str, dim: int) -> list[nn.Module]:
    if norm == "batch":
        return [GlobalBatchNorm1d(dim)]
    if norm == "layer":
        return [nn.LayerNorm(dim)]
    if norm == "none":
        return []
    raise NotanError(f"norm={norm!r}", "norm is one of batch, layer, none")
