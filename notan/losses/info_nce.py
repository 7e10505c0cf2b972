"""InfoNCE: tell the one right key from all others (van den Oord et al. 2018; SimCLR, Chen et al. 2020; CLIP, Radford et al.
2021; MoCo, He et al. 2020). Any number of rows in fixed memory: see `tiles`.

Vectors are brought to unit length here; a zero vector counts as a direction of zero, without a gradient. Values are at least
float32. NaN or inf in a vector makes NaN of every row that meets it, never of none.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from notan.errors import NotanError
from notan.losses.both_ways import SIDE, both_ways, own_log_sum_exp
from notan.losses.tiles import TILE, Edit, Pairs, check_tau, cosines, log_sum_exp, part


def info_nce(q: Tensor, k: Tensor, *, tau: float | Tensor, positive: Tensor, exclude: Tensor | None = None,
             log_weight: Pairs | None = None, tile: int = TILE) -> Tensor:
    """-log softmax(cos(q_i, k) / tau)[positive_i], one value per row: (N,).

    q: queries (N, D); k: keys (M, D), at least two: the batch's, and whatever else there is to tell from (`torch.cat`).
    positive: int64 (N,), the column of each row's right key.
    exclude: int64 (N,), one column of each row that takes no part (the row itself).
    log_weight: (N, M) or a function that gives a part of it (see `tiles.Pairs`), added to the logits without a gradient:
    log w counts a pair w times, -inf leaves it out. The positive's should be 0.
    tile: logits held at once.

    Raises `NotanError` for a temperature that is not above 0, and for fewer than two keys.
    """
    check_tau(tau)
    if len(k) < 2:
        raise NotanError(f"{len(k)} key", "at least two: a positive and something to tell it from", "a larger batch")
    edit = None if exclude is None and log_weight is None else _edit(exclude, log_weight)
    return log_sum_exp(q, k, tau, positive=positive, edit=edit, tile=tile)


def info_nce_bank(q: Tensor, k: Tensor, bank: Tensor, *, tau: float | Tensor, exclude: Tensor | None = None,
                  tile: int = TILE) -> Tensor:
    """Each query against its own key and what is in a queue or a bank (MoCo, equation 1): (N,).

    q, k: (N, D), row i of k is the key of row i of q and of no other row's. bank: negatives (M, D), M at least 1.
    exclude: int64 (N,), a column of the bank that takes no part in a row (the row itself), or -1.
    """
    check_tau(tau)
    if not len(bank):
        raise NotanError("an empty bank", "at least one negative", "fill the queue before the loss")
    others = log_sum_exp(q, bank, tau, edit=None if exclude is None else hidden(exclude), tile=tile)
    return F.softplus(others - cosines(q, k) / tau)                     # -log e^s / (e^s + sum of e^others)


def symmetric_info_nce(q: Tensor, k: Tensor, *, tau: float | Tensor, side: int = SIDE) -> Tensor:
    """The mean of both directions, q_i against all k and k_i against all q (CLIP, figure 3): (N, D) twice to (N,)."""
    check_tau(tau)
    if len(q) != len(k) or len(q) < 2:
        raise NotanError(f"{len(q)} and {len(k)} rows", "as many of each, at least two", "a larger batch")
    rows, columns = both_ways(q, k, tau, side=side)
    return (rows + columns) / 2


def nt_xent(z1: Tensor, z2: Tensor, *, tau: float | Tensor, side: int = SIDE) -> Tensor:
    """SimCLR's loss (algorithm 1): the mean over 2N rows, each against its other view and 2N - 2 negatives.

    z1, z2: the two views (N, D) of all rows, of every rank. Raises `NotanError` for one row: it has no negatives.
    """
    check_tau(tau)
    if len(z1) != len(z2) or len(z1) < 2:
        raise NotanError(f"{len(z1)} and {len(z2)} rows", "as many of each, at least two", "a larger batch")
    z = torch.cat([z1, z2])                                             # (2N, D)
    return own_log_sum_exp(z, tau, edit=_no_self, side=side).mean() - (cosines(z1, z2) / tau).mean()


def hidden(column: Tensor) -> Edit:
    """Leaves out one column of each row, int64 (N,); none where it is -1."""
    def edit(s: Tensor, rows: slice, columns: slice) -> None:
        at = column[rows, None] - columns.start
        inside = (at >= 0) & (at < s.shape[1])
        at = at.clamp(0, s.shape[1] - 1)
        s.scatter_(1, at, s.gather(1, at).masked_fill(inside, -torch.inf))
    return edit


def _edit(exclude: Tensor | None, log_weight: Pairs | None) -> Edit:
    def edit(s: Tensor, rows: slice, columns: slice) -> None:
        if log_weight is not None:
            s.add_(part(log_weight, rows, columns))
        if exclude is not None:
            hidden(exclude)(s, rows, columns)
    return edit


def _no_self(s: Tensor, rows: slice, columns: slice) -> None:
    if rows == columns:
        s.fill_diagonal_(-torch.inf)


def pixel_info_nce(q: Tensor, k: Tensor, positive: Tensor, *, tau: float) -> tuple[Tensor, Tensor]:
    """PixContrast (Xie et al. 2021, eq. 2): each cell of one view against all cells of the other view of its image.

    q, k: cells (B, P, D) of the two views, brought to unit length here. positive: bool (B, P, P), which pairs show the
    same place. A cell's loss is -log of its positives' share of the softmax over all P keys.
    Returns the mean over the cells that have a positive, per image (B,), and which images have one, bool (B,); an image
    without any gives 0 with zero gradient.
    """
    logits = F.normalize(q, dim=2) @ F.normalize(k, dim=2).mT / tau     # (B, P, P)
    valid = positive.any(2)                                             # (B, P)
    shown = logits.masked_fill(~(positive | ~valid[..., None]), float("-inf"))
    cells = (logits.logsumexp(2) - shown.logsumexp(2)) * valid
    return cells.sum(1) / valid.sum(1).clamp(min=1), valid.any(1)
