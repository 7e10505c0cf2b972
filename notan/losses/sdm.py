"""Similarity distribution matching: a softmax over the batch should be the spread of what belongs together.

IRRA (Jiang and Ye 2023, arXiv 2303.12501, equations 6 to 8); GA-DMS uses it. Any number of rows in fixed memory.

It is the divergence KL(p | q) of what is said, p, from what is true, q: the opposite way round to a cross-entropy. A row is
dear where it is sure of what does not belong to it, at most -ln 1e-8 = 18.42 of it, and cheap where it names one of several
right ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from notan.errors import NotanError
from notan.losses.tiles import TILE, Pairs, check_tau, full_precision, part, parts, unit

EPSILON = 1e-8                                                          # what takes the place of a true share of 0


def sdm(q: Tensor, k: Tensor, same: Pairs, *, tau: float | Tensor, tile: int = TILE) -> Tensor:
    """sum_j p_ij (ln p_ij - ln(q_ij + 1e-8)), p = softmax(cos(q_i, k) / tau), one value per row: (N,), at least float32.

    q (N, D), k (M, D). same: bool (N, M) or a function that gives a part of it (`tiles.Pairs`), which keys belong to a row; q_ij
    is 1 over their number for each of them. tile: logits held at once; rows that do not fit are made again for the gradient.
    Raises `NotanError` for a temperature that is not above 0, and a row to which nothing belongs.
    """
    check_tau(tau)
    with full_precision(q):
        u, v = unit(q), unit(k)
        steps = list(parts(len(u), max(1, tile // max(1, len(v)))))
        run: Callable[..., Tensor] = _rows if len(steps) < 2 else _again
        return torch.cat([u.new_empty(0), *(run(u[i], v, part(same, i, slice(0, len(v))), tau) for i in steps)])


def _again(*given: Tensor | float) -> Tensor:
    """`_rows`, of which nothing but its input is kept."""
    return checkpoint(_rows, *given, use_reentrant=False, preserve_rng_state=False)


def _rows(u: Tensor, v: Tensor, same: Tensor, tau: float | Tensor) -> Tensor:
    count = same.sum(1)
    if not bool((count > 0).all()):
        raise NotanError(f"{int((count == 0).sum())} of {len(u)} rows have no key that belongs to them", "at least one for each",
                         "count the row's own pair")
    log_p = (u @ v.T / tau).log_softmax(1)                              # (n, M)
    right = (1 / count.to(log_p.dtype) + EPSILON).log()[:, None]
    return (log_p.exp() * (log_p - torch.where(same, right, math.log(EPSILON)))).sum(1)
