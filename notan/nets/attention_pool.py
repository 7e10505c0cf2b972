"""Attention pooling: a learned first token reads a set of vectors through transformer layers (Selfie, 2019)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from notan.errors import NotanError
from notan.nets.vit import attention


class TransformerLayer(nn.Module):
    """Attention and a two-layer network around residual sums, with dropout on attention and on both branches.

    dim: width of the tokens. heads: number of heads, each head_dim wide (default dim // heads, at least 1), so that
    heads need not divide dim. feedforward: hidden width, free of dim.
    norm: "pre" (x + f(norm(x))) or "post" (norm(x + f(x)), Vaswani et al. 2017).
    """

    def __init__(self, dim: int, heads: int, feedforward: int, *, norm: str = "pre", dropout: float = 0.1,
                 head_dim: int | None = None) -> None:
        super().__init__()
        if norm not in ("pre", "post"):
            raise NotanError(f"norm={norm!r}", "norm is one of pre, post")
        self.heads, self.pre, self.dropout = heads, norm == "pre", dropout
        width = heads * (head_dim or max(1, dim // heads))
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.qkv, self.proj = nn.Linear(dim, 3 * width), nn.Linear(width, dim)
        self.fc1, self.fc2 = nn.Linear(dim, feedforward), nn.Linear(feedforward, dim)

    def attend(self, x: Tensor) -> Tensor:
        B, L, _ = x.shape
        q, k, v = (t.transpose(1, 2) for t in self.qkv(x).view(B, L, 3, self.heads, -1).unbind(2))  # (B, heads, L, .)
        y = attention(q, k, v, self.dropout if self.training else 0.0)
        return self._drop(self.proj(y.transpose(1, 2).reshape(B, L, -1)))

    def mix(self, x: Tensor) -> Tensor:
        return self._drop(self.fc2(F.gelu(self.fc1(x))))

    def forward(self, x: Tensor) -> Tensor:                             # (B, L, D) -> (B, L, D)
        if self.pre:
            x = x + self.attend(self.norm1(x))
            return x + self.mix(self.norm2(x))
        x = self.norm1(x + self.attend(x))
        return self.norm2(x + self.mix(x))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


class AttentionPool(nn.Module):
    """A learned vector u0, N(0, 0.02), before n given tokens, through `depth` layers and a last norm.

    `forward(x)` takes (B, n, D) and gives (B, 1 + n, D): `[:, 0]` is the summary u, the rest are the tokens' outputs.
    Without positions in x the summary does not know the order of the tokens.
    """

    def __init__(self, dim: int, depth: int, heads: int, feedforward: int, *, norm: str = "pre", dropout: float = 0.1,
                 head_dim: int | None = None) -> None:
        super().__init__()
        self.u0 = nn.Parameter(torch.empty(1, 1, dim).normal_(std=0.02))
        self.layers = nn.Sequential(*[
            TransformerLayer(dim, heads, feedforward, norm=norm, dropout=dropout, head_dim=head_dim)
            for _ in range(depth)
        ])
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        u0 = self.u0.to(x.dtype).expand(x.shape[0], -1, -1)
        return self.norm(self.layers(torch.cat([u0, x], dim=1)))
