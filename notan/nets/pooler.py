"""One set of tokens reads another by one attention: the attentional pooler (Lee et al. 2019, arXiv 1810.00825; CoCa, 2022)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from notan.errors import NotanError
from notan.nets.vit import attention, init_linear

Pair = tuple[Tensor, Tensor]                                            # keys and values, each (B, heads, M, dim / heads)


class CrossAttention(nn.Module):
    """Multi-head attention of tokens of width dim to others, of width context_dim."""

    def __init__(self, dim: int, heads: int, context_dim: int) -> None:
        super().__init__()
        if dim % heads:
            raise NotanError(f"a width of {dim} with {heads} heads", "a width that heads divide", "change dim or heads")
        self.heads = heads
        self.q, self.kv, self.proj = nn.Linear(dim, dim), nn.Linear(context_dim, 2 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:            # (B or 1, L, D), (B, M, E) -> (B, L, D)
        return self.read(x, *self.keys(context))

    def keys(self, context: Tensor) -> Pair:
        """Keys and values of what is read: made once, where it is read more than once."""
        k, v = self.kv(context).unflatten(2, (2, self.heads, -1)).transpose(1, 3).unbind(2)
        return k, v

    def read(self, x: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q = self.q(x).unflatten(2, (self.heads, -1)).transpose(1, 2).expand(len(k), -1, -1, -1)
        return self.proj(attention(q, k, v).transpose(1, 2).flatten(2))


class Pooler(nn.Module):
    """n learned queries read a set of any size: (B, M, context_dim) to (B, n, dim), whatever the order of the M.

    One attention, with norms of the queries, of what is read and of what comes out; no residual sum and no MLP.
    """

    def __init__(self, n: int, dim: int, heads: int, context_dim: int) -> None:
        super().__init__()
        if n < 1:
            raise NotanError(f"{n} queries", "at least 1")
        self.query_tokens = nn.Parameter(torch.randn(1, n, dim))
        self.norm_q, self.norm_kv, self.norm = (nn.LayerNorm(width, eps=1e-6) for width in (dim, context_dim, dim))
        self.attn = CrossAttention(dim, heads, context_dim)
        self.apply(init_linear)

    def forward(self, context: Tensor) -> Tensor:
        return self.norm(self.attn(self.norm_q(self.query_tokens), self.norm_kv(context)))
