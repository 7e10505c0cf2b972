"""Retrieval: is what belongs to a query among the nearest of a gallery? R@k, mean average precision, and mINP.

Ties count against: of equal similarities, those that do not belong come first. So features that are all equal find nothing.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from notan.errors import NotanError
from notan.probes.features import check_finite
from notan.probes.protocol import Protocol

ROWS = 512                                                              # queries at a time
AT = (1, 5, 10)


def retrieval(queries: Tensor, gallery: Tensor, pairs: Tensor, *, split: str = "the test split",
              notes: str = "") -> dict[str, Any]:
    """Cosine search of `gallery` (M, D) by each of `queries` (N, D); pairs int64 (P, 2): which gallery rows belong to a query.

    Returns `r1`, `r5`, `r10` (the share of queries with one of theirs among the nearest k), `map` (mean average precision),
    `minp` (how many are theirs, over the rank of the last of them: Ye et al. 2021, arXiv 2001.04193), `median` (the median rank
    of the first), `chance` (R@1 of a random order), `n` and `protocol`. Raises `NotanError` for a query to which nothing belongs.
    """
    check_finite(queries, "query features")
    check_finite(gallery, "gallery features")
    counts = torch.bincount(pairs[:, 0], minlength=len(queries))
    if not len(queries) or int(counts.min()) == 0:
        raise NotanError(f"{int((counts == 0).sum()):,} of {len(queries):,} queries have nothing that belongs to them",
                         "at least one row of the gallery for each query", "leave these queries out")
    found = torch.cat(list(_ranks(queries, gallery, pairs, int(counts.max()))))                 # (N, R), inf where there is none
    last = found.masked_fill(found.isinf(), 0).amax(1)
    protocol = Protocol("cosine search, ties count against", split, 0, len(queries),
                        notes=f"among {len(gallery):,}" + (f"; {notes}" if notes else ""))
    return {**{f"r{k}": float((found[:, 0] <= k).double().mean()) for k in AT},
            "map": float((precisions(found).sum(1) / counts).mean()), "minp": float((counts / last).mean()),
            "median": float(found[:, 0].median()), "chance": float((counts / len(gallery)).mean()), "n": len(queries),
            "protocol": protocol}


def _ranks(queries: Tensor, gallery: Tensor, pairs: Tensor, most: int):
    """Ranks from 1 of what belongs to each query, the best first: float64 (n, most) a part, inf after the last."""
    keys = F.normalize(gallery.double(), dim=1)
    for start in range(0, len(queries), ROWS):
        s = F.normalize(queries[start : start + ROWS].double(), dim=1) @ keys.T                 # (n, M)
        here = pairs[(pairs[:, 0] >= start) & (pairs[:, 0] < start + len(s))]
        own = torch.zeros_like(s, dtype=torch.bool)
        own[here[:, 0] - start, here[:, 1]] = True
        yield ranks(s, own, ~own, most)


def ranks(s: Tensor, own: Tensor, others: Tensor, most: int) -> Tensor:
    """Ranks from 1, the best first, of what belongs to queries of similarities s (n, M): float64 (n, most), inf after the last.

    own, others: bool (n, M), what belongs to a query, and what it has to be told from. Of equal ones the others come first.
    """
    theirs = s.masked_fill(~own, -torch.inf).topk(most, dim=1).values                           # (n, R), the largest first
    before = s.shape[1] - torch.searchsorted(s.masked_fill(~others, -torch.inf).sort(1).values, theirs.contiguous())
    rank = before + torch.arange(1, most + 1)                           # others at least as near come before
    return torch.where(theirs == -torch.inf, torch.inf, rank.double())


def precisions(ranks: Tensor) -> Tensor:
    """Precision at each of the ranks (n, R) of what belongs to a query: (n, R), 0 where there is none."""
    return torch.where(ranks.isinf(), 0, torch.arange(1, ranks.shape[1] + 1) / ranks)
