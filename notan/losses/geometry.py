"""How vectors lie: alignment and uniformity (Wang and Isola, ICML 2020, arXiv 2005.10242), tolerance (Wang and Liu, CVPR 2021,
arXiv 2012.09740), entropies by Gaussian kernels, and ranks.

Vectors are taken as they come, at unit length or not. Distances are squared sums, never roots, so that equal vectors have a
gradient of zero. What compares all with all holds one tile and recomputes it for the gradient.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from notan.errors import NotanError
from notan.losses.tiles import TILE, full_precision, parts, unit, wide


def alignment(x: Tensor, y: Tensor) -> Tensor:
    """|x_i - y_i|^2 of pairs (N, D): (N,). Its mean over pairs of unit vectors is Wang and Isola's, with alpha = 2."""
    return (x.to(wide(x)) - y).square().sum(1)


def uniformity(x: Tensor, *, t: float = 2.0, tile: int = TILE) -> Tensor:
    """log of the mean over pairs i != j of exp(-t |x_i - x_j|^2), (N, D) to (): 0 where all are equal, lower the more evenly they
    lie. Unit vectors of D dimensions at random give about -2t + 2 t^2 / D. Raises `NotanError` for fewer than two rows.
    """
    return uniformity_of_others(x, x, t=t, tile=tile)


def uniformity_of_others(x: Tensor, y: Tensor, *, t: float = 2.0, tile: int = TILE) -> Tensor:
    """The same over the pairs i != j of x_i and y_j, (N, D) twice to (): matched pairs are left out."""
    n = len(x)
    if n < 2:
        raise NotanError(f"uniformity of {n} rows", "at least two", "a larger batch")
    rows = kernel_log_sums(x, y, t=t, exclude=torch.arange(n, device=x.device), tile=tile)
    return rows.logsumexp(0) - math.log(n * (n - 1))


def uniformity_between(x: Tensor, y: Tensor, *, t: float = 2.0, tile: int = TILE) -> Tensor:
    """The same over all pairs of one set (N, D) and another (M, D)."""
    return kernel_log_sums(x, y, t=t, tile=tile).logsumexp(0) - math.log(len(x) * len(y))


def kernel_log_sums(x: Tensor, y: Tensor, *, t: float, exclude: Tensor | None = None, tile: int = TILE) -> Tensor:
    """log sum over j of exp(-t |x_i - y_j|^2) for each row i: (N, D), (M, D) to (N,), at least float32, computed in
    float64.

    exclude: int64 (N,), a column of each row that takes no part (the row itself).
    """
    made = wide(x)
    with full_precision(x):
        x, y = x.double(), y.double()                                   # small distances of what lies far out are differences
        size = max(1, tile // max(1, len(y)))
        rows = torch.cat([checkpoint(_log_sums, x[i], y, t, None if exclude is None else exclude[i], use_reentrant=False)
                          for i in parts(len(x), size)])
    return rows.to(made)


def _log_sums(x: Tensor, y: Tensor, t: float, exclude: Tensor | None) -> Tensor:
    far = (x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T).clamp(min=0)
    if exclude is not None:
        far = far.scatter(1, exclude[:, None], torch.inf)
    return (-t * far).logsumexp(1)


def tolerance(x: Tensor, labels: Tensor) -> Tensor:
    """The mean cosine of two different rows of one class (N, D), labels int64 (N,), a negative one unknown: ().

    Raises `NotanError` where no class has two rows.
    """
    known = labels >= 0
    u, place = unit(x[known]), torch.unique(labels[known], return_inverse=True)[1]
    count = torch.bincount(place)
    pairs = (count * (count - 1)).sum()
    if pairs == 0:
        raise NotanError(f"{len(labels)} rows of {len(count)} classes have no two of one class", "a class with two rows")
    sums = torch.zeros(len(count), u.shape[1], dtype=u.dtype, device=u.device).index_add(0, place, u)
    return (sums.square().sum() - u.square().sum()) / pairs


def effective_rank(z: Tensor) -> float:
    """exp of the entropy of the normalised singular values of centred (N, D): 1 to min(N - 1, D); 0 if all are equal (Roy and
    Vetterli 2007).
    """
    z = z.double()
    s = torch.linalg.svdvals(z - z.mean(0))
    return _exp_entropy(s) if s.sum() > 1e-9 * z.norm() else 0.0


def rank_me(z: Tensor) -> float:
    """The same of (N, D) as it is, not centred: RankMe (Garrido et al. 2023, arXiv 2210.02885, equation 1); 0 if all are 0."""
    s = torch.linalg.svdvals(z.double())
    return _exp_entropy(s) if s.sum() > 0 else 0.0


def spread(z: Tensor) -> float:
    """Mean std of L2-normalised (N, D), times sqrt(D): 1 when spread over the whole sphere, 0 if all are equal."""
    z = F.normalize(z.double(), dim=1)
    return float(z.std(0, correction=0).mean() * z.shape[1] ** 0.5)


def spearman(a: Tensor, b: Tensor) -> float:
    """Spearman's rank correlation of two (N,), equal values sharing their mean rank; 0 where one of them is constant."""
    from scipy.stats import rankdata

    x, y = (rankdata(v.numpy()) for v in (a, b))
    x, y = x - x.mean(), y - y.mean()
    size = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / size) if size > 0 else 0.0


def _exp_entropy(s: Tensor) -> float:
    p = s / s.sum()
    return float(torch.exp(-torch.xlogy(p, p).sum()))
