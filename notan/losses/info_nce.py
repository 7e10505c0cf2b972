"""InfoNCE: tell the one right key from all others (van den Oord et al. 2018; SimCLR, Chen et al. 2020)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK = 1 << 22                                                         # logits held at once, 16 MB in float32


def info_nce(
    q: Tensor, k: Tensor, *, tau: float | Tensor, positive: Tensor, exclude: Tensor | None = None,
    chunk: int | None = None,
) -> Tensor:
    """-log softmax(cos(q_i, k) / tau)[positive_i], one value per row: (N,).

    q: queries (N, D); k: keys (M, D); both are brought to unit length here.
    positive: int64 (N,), the column of each row's right key.
    exclude: int64 (N,), one column of each row that takes no part (the row itself).
    chunk: rows whose logits are held at once; they are computed again in the backward pass. The default holds all
    up to four million logits and then as many rows as fit into that.
    """
    q, k = F.normalize(q, dim=1), F.normalize(k, dim=1)
    tau = torch.as_tensor(tau, dtype=q.dtype, device=q.device)
    chunk = max(1, CHUNK // max(1, k.shape[0])) if chunk is None else chunk
    if q.shape[0] <= chunk:
        return _rows(q, k, tau, positive, exclude)
    parts = range(0, q.shape[0], chunk)
    return torch.cat([
        checkpoint(_rows, q[i:i + chunk], k, tau, positive[i:i + chunk],
                   None if exclude is None else exclude[i:i + chunk], use_reentrant=False)
        for i in parts
    ])


def _rows(q: Tensor, k: Tensor, tau: Tensor, positive: Tensor, exclude: Tensor | None) -> Tensor:
    logits = q @ k.T / tau                                              # (N, M)
    if exclude is not None:
        logits = logits.scatter(1, exclude[:, None], float("-inf"))
    return F.cross_entropy(logits, positive, reduction="none")


def nt_xent(z1: Tensor, z2: Tensor, *, tau: float | Tensor, chunk: int | None = None) -> Tensor:
    """SimCLR's loss (algorithm 1): the mean over 2N rows, each against its other view and 2N - 2 negatives.

    z1, z2: the two views (N, D) of all rows, of every rank.
    """
    N = z1.shape[0]
    z = torch.cat([z1, z2])                                             # (2N, D)
    own = torch.arange(2 * N, device=z.device)
    return info_nce(z, z, tau=tau, positive=(own + N) % (2 * N), exclude=own, chunk=chunk).mean()


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
