"""Contrast of rows whose labels are numbers, with pairs mixed from the batch itself: SupReMix (Wu et al. 2023, arXiv 2309.16633).

A mixture's cosine with an anchor is the mixture of two cosines, f_i . (l f_j + (1 - l) f_k) = l f_i . f_j + (1 - l) f_i . f_k,
so no mixture is ever made. Anchors are taken in blocks, and the triples of a block in parts, none of them held: the backward
pass makes them again.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from notan.errors import NotanError
from notan.losses.tiles import Pairs, check_tau, full_precision, part, parts, unit

TILE = 1 << 18                                                          # cosines or triples held at once
Weight = Literal["linear", "squared", "none"]


class Mixing(NamedTuple):
    """How pairs are weighted and mixed.

    window: gaps of labels that a mixed positive may bridge, on either side; 0 for no mixed positives. weight: how much more a
    pair counts the further apart its labels are. detach: mixtures are constants, and the gradient is the anchor's alone.
    """

    window: float = 0.0
    weight: Weight = "linear"
    detach: bool = True


class Batch(NamedTuple):
    """Directions v (M, D) of all rows and their labels, and the rows' places in the order of labels."""

    v: Tensor
    labels: Tensor                                                      # (M,)
    ranked: Tensor                                                      # labels, ascending (M,)
    order: Tensor                                                       # which row has each of them (M,)


def mixed_pairs(q: Tensor, k: Tensor, labels: Tensor, key_labels: Tensor, *, tau: float | Tensor, exclude: Tensor,
                share: Pairs | None, how: Mixing, tile: int = TILE) -> tuple[Tensor, Tensor, Tensor]:
    """Each anchor's loss (N,), how many real positives it has (N,), and how many mixed ones (N,), int64.

    Of anchor i, with directions f, numbers t as labels and w = 1 + |t_i - label| (weight "linear"; "squared": 1 + its square):

        real      positives f_j with t_j = t_i, negatives all others
        mixed     negatives l f_i + (1 - l) f_k, labelled likewise, for every k with t_k != t_i; l = share_ik
                  positives l f_j + (1 - l) f_k with l = (t_k - t_i) / (t_k - t_j), for t_j < t_i < t_k within the window
        L_i = -1/|P_i| sum over p in P_i of log( exp(s_ip) / sum over all a of w_ia exp(s_ia) ),   s = cosine / tau

    One softmax, positives in it (their w is 1); mixtures are not brought to unit length. Without mixing and weight this is
    `sup_con`. An anchor without any positive gives 0 without a gradient: average with `world.mean`.

    q (N, D), k (M, D), at least two keys, labels (N,) and key_labels (M,) floats. exclude: int64 (N,), the column of the anchor
    itself. share: (N, M), or what gives a part of it; None for no mixed negatives. tile: cosines, or triples, held at once.
    """
    check_tau(tau)
    if len(k) < 2 or len(labels) != len(q) or len(key_labels) != len(k):
        raise NotanError(f"{len(q)} anchors with {len(labels)} labels, {len(k)} keys with {len(key_labels)}",
                         "a label for each, and two keys at least", "a larger batch")
    with full_precision(q):
        u, v = unit(q), unit(k)
        t, every = labels.to(u.dtype), key_labels.to(u.dtype)
        if not (torch.isfinite(t).all() and torch.isfinite(every).all()):
            raise NotanError("labels that are NaN or infinite", "a finite number for every row", "fill or remove these rows")
        batch = Batch(v, every, *every.sort())
        found = []
        for rows in parts(len(u), max(1, tile // len(v))):
            found.append(checkpoint(_block, u[rows], t[rows], exclude[rows], share, rows, batch, tau, how, tile,
                                    use_reentrant=False, preserve_rng_state=False))
        loss, real, mixed = (torch.cat(x) for x in zip(*found))
    return loss, real, mixed


def _block(u: Tensor, t: Tensor, own: Tensor, share: Pairs | None, rows: slice, batch: Batch, tau: float | Tensor, how: Mixing,
           tile: int) -> tuple[Tensor, Tensor, Tensor]:
    """`mixed_pairs` of the anchors `rows`, with directions u (n, D)."""
    s = u @ batch.v.T / tau                                             # (n, M)
    fixed = u @ (batch.v.detach() if how.detach else batch.v).T / tau   # (n, M): with the parts of mixtures
    gap = (t[:, None] - batch.labels).abs()
    there = torch.ones_like(gap, dtype=torch.bool).scatter_(1, own[:, None], False)
    same = (gap == 0) & there
    logits = (s + _log_weight(gap, how.weight)).masked_fill(~there, -torch.inf)
    if share is not None:
        lam = part(share, rows, slice(0, len(batch.v))).to(u.dtype)
        own_part = (u * (u.detach() if how.detach else u)).sum(1, keepdim=True) / tau           # (n, 1): 1 / tau
        negative = lam * own_part + (1 - lam) * fixed + _log_weight((1 - lam) * gap, how.weight)
        logits = torch.cat([logits, negative.masked_fill(gap == 0, -torch.inf)], 1)             # (n, 2M)
    lse, pull = logits.logsumexp(1), (s * same).sum(1)
    low, high, below, above = _windows(t, batch.ranked, how.window)
    mixed = below * above                                               # (n,): every row below with every row above
    lists = low, high, above, mixed.cumsum(0) - mixed
    for piece in parts(int(mixed.sum()), tile):
        lse, pull = checkpoint(_absorb, lse, pull, fixed, t, batch, lists, piece, use_reentrant=False, preserve_rng_state=False)
    real = same.sum(1)
    count = real + mixed
    return torch.where(count > 0, lse - pull / count.clamp(min=1), 0), real, mixed


def _absorb(lse: Tensor, pull: Tensor, fixed: Tensor, t: Tensor, batch: Batch, lists: tuple[Tensor, ...],
            piece: slice) -> tuple[Tensor, Tensor]:
    """Log-sums (n,) and sums (n,) with the mixed positives of the triples numbered `piece`."""
    i, j, k = triples(batch.order, lists, piece)
    tj, tk = batch.labels[j], batch.labels[k]
    lam = (tk - t[i]) / (tk - tj)
    x = lam * fixed[i, j] + (1 - lam) * fixed[i, k]                     # (T,)
    top = lse.detach().scatter_reduce(0, i, x.detach(), "amax")
    total = (lse - top).exp().index_add(0, i, (x - top[i]).exp())
    return top + total.log(), pull.index_add(0, i, x)


def triples(order: Tensor, lists: tuple[Tensor, ...], piece: slice) -> tuple[Tensor, Tensor, Tensor]:
    """Triples number `piece`: the anchors' rows i, and rows j below and k above them in label, int64 (T,) each.

    lists: of each anchor where its window begins in `order`, below and above, how many rows are above, and how many triples
    come before its own.
    """
    low, high, above, start = lists
    number = torch.arange(piece.start, piece.stop, device=order.device)
    i = torch.searchsorted(start, number, right=True) - 1               # of anchors without a triple none is the last
    number = number - start[i]
    return i, order[low[i] + number // above[i]], order[high[i] + number % above[i]]


def _windows(t: Tensor, ranked: Tensor, window: float) -> tuple[Tensor, ...]:
    """Where rows within the window begin, below and above each label, and how many there are: four int64 (n,)."""
    low, high = torch.searchsorted(ranked, t - window, right=True), torch.searchsorted(ranked, t, right=True)
    below = (torch.searchsorted(ranked, t) - low).clamp(min=0)
    above = (torch.searchsorted(ranked, t + window) - high).clamp(min=0)
    return low, high, below, above


def _log_weight(gap: Tensor, weight: Weight) -> Tensor | float:
    match weight:
        case "linear":
            return gap.log1p()
        case "squared":
            return gap.square().log1p()
        case _:
            return 0.0
