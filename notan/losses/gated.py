"""Contrast of pairs of classes in a subspace of their own: the gated similarities and the loss of Hydra (Wu et al. 2024, arXiv
2410.18200). A gate g in (0, 1)^D belongs to a query; no (N, M, D) is ever made.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from notan.errors import NotanError
from notan.losses.tiles import TILE, check_tau, full_precision, parts, unit, wide

Similarity = Callable[[Tensor, Tensor, Tensor], Tensor]                 # q (N, D), k (M, D), g (N, D) -> (N, M)


def renormed(q: Tensor, k: Tensor, g: Tensor) -> Tensor:
    """s_bn = cos(g_b * q_b, g_b * k_n): the gate of the query on both, brought to length one again. A scale of g changes nothing.

    (q g^2) k^T over |g q_b| and the root of (g^2) (k^2)^T. A zero vector is at 0 from all.
    """
    g2 = g.square()
    lengths = (q.square() * g2).sum(1)[:, None] * (g2 @ k.square().T)
    nothing = lengths == 0                                              # and not NaN, which is to stay
    return ((q * g2) @ k.T).masked_fill(nothing, 0) / lengths.masked_fill(nothing, 1).sqrt()


def flat(q: Tensor, k: Tensor, g: Tensor) -> Tensor:
    """s_bn = sum over d of g_bd^2 u_bd v_nd of directions u and v: at most the largest g_bd^2."""
    return (unit(q) * g.square()) @ unit(k).T


def paired(q: Tensor, k: Tensor, g: Tensor, own: Tensor, other: Tensor, key_labels: Tensor, *, tau: float | Tensor,
           similarity: Similarity = renormed, tile: int = TILE) -> tuple[Tensor, Tensor]:
    """For each row the sum over its positives n of log(e^{l_bn} + sum over negatives e^{l_bm}) - l_bn with l = s / tau, and how
    many positives it has: (N,) and (N,).

    q, k, g: (N, D), (M, D), (N, D). own, other: the classes of a query and of the one it is paired with, int64 (N,); key_labels
    (M,). Positives are keys of class `other`; negatives those of neither; keys of a row's own class are left alone. Without
    negatives a row is 0 without a gradient. Average as `world.mean(sums.sum(), counts.sum())`.
    """
    check_tau(tau)
    if not len(own) == len(other) == len(q) or len(key_labels) != len(k):
        raise NotanError(f"{len(own)}, {len(other)} and {len(key_labels)} labels for {len(q)} rows and {len(k)} keys",
                         "one for each")
    with full_precision(q):
        q, k, g = (x.to(wide(q)) for x in (q, k, g))
        size = max(1, tile // max(1, len(k)))
        found = [checkpoint(_rows, q[i], k, g[i], own[i], other[i], key_labels, tau, similarity, use_reentrant=False)
                 for i in parts(len(q), size)]
    sums, counts = zip(*found)
    return torch.cat(sums), torch.cat(counts)


def _rows(q: Tensor, k: Tensor, g: Tensor, own: Tensor, other: Tensor, key_labels: Tensor, tau: float | Tensor,
          similarity: Similarity) -> tuple[Tensor, Tensor]:
    logits = similarity(q, k, g) / tau
    positive = other[:, None] == key_labels
    negative = (own[:, None] != key_labels) & ~positive
    # far below any logit instead of -inf, whose log-sum-exp over nothing has no gradient
    lse = logits.masked_fill(~negative, torch.finfo(logits.dtype).min / 4).logsumexp(1, keepdim=True)
    return (F.softplus(lse - logits) * positive).sum(1), positive.sum(1)
