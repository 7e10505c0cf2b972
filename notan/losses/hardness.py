"""How hard the nearest negatives are pushed: the losses of Wang and Liu, "Understanding the Behaviour of Contrastive Loss",
CVPR 2021 (arXiv 2012.09740). The soft one is `info_nce`.

Each gives a value per row (N,), from cosines s of queries (N, D) and keys (M, D); positive: int64 (N,), the column of each
row's right key. exclude: int64 (N,), a column of each row that takes no part, or -1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from notan.errors import NotanError
from notan.losses.tiles import TILE, check_tau, full_precision, parts, unit


def simple(q: Tensor, k: Tensor, *, positive: Tensor, exclude: Tensor | None = None) -> Tensor:
    """-s_ii plus the mean of the negatives: every negative is pushed alike. No matrix is needed.

    The paper leaves the negatives' weight open; 1 / (number of negatives) is the limit of the soft loss for tau to infinity.
    """
    u, v = unit(q), unit(k)
    own, rest, n = (u * v[positive]).sum(1), v.sum(0) - v[positive], torch.full_like(positive, len(k) - 1)
    if exclude is not None:
        there = exclude >= 0
        rest, n = rest - there[:, None] * v[exclude.clamp(min=0)], n - there.long()
    if not len(k) > 1 + (exclude is not None):
        raise NotanError(f"{len(k)} keys", "a positive and a negative for every row", "a larger batch")
    return (u * rest).sum(1) / n - own


def hard(q: Tensor, k: Tensor, *, tau: float | Tensor, positive: Tensor, top: int, exclude: Tensor | None = None,
         tile: int = TILE) -> Tensor:
    """The soft loss over the positive and the row's `top` nearest negatives."""
    check_tau(tau)
    own, near = nearest(q, k, positive, top, exclude, tile)
    return F.softplus((near / tau).logsumexp(1) - own / tau)


def hard_simple(q: Tensor, k: Tensor, *, positive: Tensor, top: int, exclude: Tensor | None = None, tile: int = TILE) -> Tensor:
    """-s_ii plus the mean of the row's `top` nearest negatives."""
    own, near = nearest(q, k, positive, top, exclude, tile)
    return near.mean(1) - own


def hardest_triplet(q: Tensor, k: Tensor, *, positive: Tensor, margin: float = 0.0, exclude: Tensor | None = None,
                    tile: int = TILE) -> Tensor:
    """max(s_max - s_ii + margin, 0): at margin 0 the limit of tau times the soft loss for tau to 0."""
    own, near = nearest(q, k, positive, 1, exclude, tile)
    return (near[:, 0] - own + margin).clamp(min=0)


def nearest(q: Tensor, k: Tensor, positive: Tensor, top: int, exclude: Tensor | None = None,
            tile: int = TILE) -> tuple[Tensor, Tensor]:
    """Cosines of positives (N,) and of each row's `top` nearest negatives (N, top), the nearest first.

    The choice has no gradient. Held at once are `tile` cosines. Raises `NotanError` when a row has fewer negatives.
    """
    most = len(k) - 1 - (exclude is not None)
    if not 1 <= top <= most:
        raise NotanError(f"the {top} nearest of {most} negatives", f"1 to {max(most, 1)}", "another --top, or a larger batch")
    with full_precision(q):
        u, v = unit(q), unit(k)
        size = max(1, tile // len(k))
        near = [checkpoint(_nearest, u[i], v, positive[i], None if exclude is None else exclude[i], top, use_reentrant=False)
                for i in parts(len(u), size)]
        return (u * v[positive]).sum(1), torch.cat(near)


def _nearest(u: Tensor, v: Tensor, positive: Tensor, exclude: Tensor | None, top: int) -> Tensor:
    s = u @ v.T
    with torch.no_grad():
        ranked = s.scatter(1, positive[:, None], -torch.inf)
        if exclude is not None:
            there = exclude[:, None].clamp(min=0)
            ranked.scatter_(1, there, ranked.gather(1, there).masked_fill(exclude[:, None] >= 0, -torch.inf))
        chosen = ranked.topk(top, dim=1).indices
    return s.gather(1, chosen)
