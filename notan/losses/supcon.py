"""Several right keys for a query: SupCon (Khosla et al. 2020, arXiv 2004.11362), in fixed memory. See `info_nce`.

Each loss gives a value per row (N,) and which rows have a positive, bool (N,). A row without one gives 0 without a gradient:
average with `world.mean(values.sum(), valid.sum())`, not over all rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from notan.errors import NotanError
from notan.losses.info_nce import hidden
from notan.losses.tiles import TILE, Edit, Pairs, check_tau, log_sum_exp, part, pooled, unit, wide


def sup_con(q: Tensor, k: Tensor, labels: Tensor, key_labels: Tensor, *, tau: float | Tensor, exclude: Tensor | None = None,
            tile: int = TILE) -> tuple[Tensor, Tensor]:
    """L_out (equation 2): the mean over the keys p of a row's class of -log softmax(cos(q_i, k) / tau)[p].

    q (N, D), k (M, D), labels int64 (N,), key_labels int64 (M,): a negative one is unknown, and nobody's class.
    exclude: int64 (N,), the column of the row itself. Where all are of one class the loss spreads the class evenly.
    The products of this are as many as for one positive: those of a class are summed before they are compared.
    """
    check_tau(tau)
    if len(labels) != len(q) or len(key_labels) != len(k):
        raise NotanError(f"{len(labels)} and {len(key_labels)} labels for {len(q)} rows and {len(k)} keys", "one for each")
    classes, place = torch.unique(key_labels, return_inverse=True)
    at = torch.searchsorted(classes, labels).clamp(max=len(classes) - 1)
    known = (labels >= 0) & (classes[at] == labels)
    u, v = unit(q), unit(k)
    sums = torch.zeros(len(classes), v.shape[1], dtype=v.dtype, device=v.device).index_add(0, place, v)     # (C, D)
    count = torch.bincount(place, minlength=len(classes))[at]
    pull = (u * sums[at]).sum(1)
    if exclude is not None:
        own = key_labels[exclude] == labels
        count, pull = count - own.long(), pull - own * (u * v[exclude]).sum(1)
    valid = known & (count > 0)
    lse = log_sum_exp(q, k, tau, edit=None if exclude is None else hidden(exclude), tile=tile)
    return _where(valid, lse - pull / (tau * count.clamp(min=1).to(pull.dtype))), valid


def multi_positive(q: Tensor, k: Tensor, positive: Pairs, *, tau: float | Tensor, counted: Pairs | None = None,
                   tile: int = TILE) -> tuple[Tensor, Tensor]:
    """The same where `positive`, bool (N, M) or a function that gives a part of it, says which pairs belong together.

    counted: which pairs are in the softmax, positives among them; all by default.
    """
    check_tau(tau)
    count = _count(positive, q, k)
    pull = (unit(q) * pooled(unit(k), positive, len(q))).sum(1)
    lse = log_sum_exp(q, k, tau, edit=None if counted is None else only(counted), tile=tile)
    return _where(count > 0, lse - pull / (tau * count.clamp(min=1))), count > 0


def multi_positive_in(q: Tensor, k: Tensor, positive: Pairs, *, tau: float | Tensor, counted: Pairs | None = None,
                      tile: int = TILE) -> tuple[Tensor, Tensor]:
    """L_in (equation 3): -log of the mean over positives of their share of the softmax. Never above `multi_positive`."""
    check_tau(tau)
    count = _count(positive, q, k)
    lse = log_sum_exp(q, k, tau, edit=None if counted is None else only(counted), tile=tile)
    right = log_sum_exp(q, k, tau, edit=only(positive), tile=tile)
    return _where(count > 0, lse - right + count.clamp(min=1).log()), count > 0


def only(pairs: Pairs) -> Edit:
    """Leaves out the pairs that are not True in `pairs`."""
    return lambda s, rows, columns: s.masked_fill_(~part(pairs, rows, columns), -torch.inf)


def _count(pairs: Pairs, q: Tensor, k: Tensor) -> Tensor:
    """How many keys each row has in `pairs`: (N,)."""
    return pooled(torch.ones(len(k), 1, dtype=wide(q), device=q.device), pairs, len(q))[:, 0]


def _where(valid: Tensor, rows: Tensor) -> Tensor:
    """Rows that count; the others are 0 without a gradient, also where they are inf or NaN."""
    return torch.where(valid, rows, 0)
