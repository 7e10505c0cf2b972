"""What depends on what was asked: retrieval under an instruction, galleries of a query's own, a caption and its false twin, and
two pictures with what tells them apart.

Ties count against, so features that are all equal find nothing and choose wrongly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from notan.errors import NotanError
from notan.probes.features import check_finite
from notan.probes.protocol import Protocol
from notan.probes.retrieval import precisions, ranks

ROWS = 512                                                              # queries at a time


def same_value(z: Tensor, values: Tensor, *, queries: Tensor | None = None, split: str = "the test split",
               notes: str = "") -> dict[str, Any]:
    """Each row looks for the others of its value by cosine: z (N, D), values int64 (N,), a negative one unknown and left out.

    queries: bool (N,), the rows that look; all by default.
    Returns `map`, the mean average precision over rows whose value another one has; `chance`, the mean share of such others;
    `scaled`, (map - chance) / (1 - chance), 0 by chance and 1 when all are found first; `n` and `protocol`. Raises
    `NotanError` where no two rows share a value, or all do.
    """
    check_finite(z, "features")
    if len(z) != len(values):
        raise NotanError(f"{len(z):,} features and {len(values):,} values", "one for each")
    known = values >= 0
    look = (torch.ones_like(known) if queries is None else queries)[known]
    z, values = F.normalize(z[known].double(), dim=1), values[known]
    found, shares = [torch.zeros(0).double()], [torch.zeros(0).double()]
    for start in range(0, len(z), ROWS):
        s = (z[start : start + ROWS] @ z.T).round(decimals=12)          # (n, N); equal rows give equal numbers
        theirs = values[start : start + ROWS, None] == values
        own = torch.arange(start, start + len(s))[:, None] == torch.arange(len(z))
        counts = (theirs & ~own).sum(1)
        chosen = (counts > 0) & look[start : start + ROWS]
        precision = precisions(ranks(s, theirs & ~own, ~theirs, int(counts.max()))).sum(1) / counts.clamp(min=1)
        found.append(precision[chosen])
        shares.append((counts.double() / max(len(z) - 1, 1))[chosen])
    every, share = torch.cat(found), torch.cat(shares)
    if not len(every) or bool((share == 1).all()):
        raise NotanError(f"{len(z):,} rows with {len(values.unique()):,} values", "two values or more, one of them in two rows",
                         "more rows, or another attribute")
    mean, chance = float(every.mean()), float(share.mean())
    protocol = Protocol("cosine retrieval of equal values, ties count against", split, 0, len(every),
                        notes=f"among {len(z):,}, the query left out" + (f"; {notes}" if notes else ""))
    return {"map": mean, "scaled": (mean - chance) / (1 - chance), "chance": chance, "n": len(every), "protocol": protocol}


def own_gallery(queries: Tensor, gallery: Tensor, right: Tensor, *, at: Sequence[int] = (1, 2, 3), split: str = "the test split",
                notes: str = "") -> dict[str, Any]:
    """Each query against a gallery of its own (as GeneCIS: Vaze et al. 2023, arXiv 2306.07969).

    queries (N, D), gallery (N, G, D), right int64 (N,): which of its gallery a query looks for. Returns "r1" and so on: the share
    of queries that have it among the nearest 1, ...; `chance` of r1, `n` and `protocol`.
    """
    check_finite(queries, "query features")
    check_finite(gallery, "gallery features")
    if gallery.ndim != 3 or len(gallery) != len(queries) or len(right) != len(queries) or gallery.shape[1] < 2:
        raise NotanError(f"queries {tuple(queries.shape)}, gallery {tuple(gallery.shape)}, {len(right):,} right ones",
                         "(N, D), (N, G, D) with two or more each, and (N,)")
    s = torch.einsum("nd,ngd->ng", F.normalize(queries.double(), dim=1), F.normalize(gallery.double(), dim=2))
    theirs = s.gather(1, right[:, None])
    rank = (s >= theirs).sum(1)                                         # itself, and others at least as near
    protocol = Protocol("cosine search of each query's own gallery, ties count against", split, 0, len(s),
                        notes=f"among {s.shape[1]}" + (f"; {notes}" if notes else ""))
    return {**{f"r{k}": float((rank <= k).double().mean()) for k in at}, "chance": 1 / s.shape[1], "n": len(s),
            "protocol": protocol}


def true_or_false(pictures: Tensor, true: Tensor, false: Tensor, groups: Sequence[str] | None = None, *,
                  split: str = "the test split", notes: str = "") -> dict[str, Any]:
    """Whether a picture is nearer to its caption than to a false one (as SugarCrepe: Hsieh et al. 2023, arXiv 2306.14610).

    pictures, true, false (N, D); groups: what is false in each. Returns `accuracy`, where there are groups the mean over them and
    `by_group`; `chance` 0.5, `n` and `protocol`.
    """
    for x, name in ((pictures, "picture"), (true, "caption"), (false, "false caption")):
        check_finite(x, f"{name} features")
        if x.shape != pictures.shape or not len(x):
            raise NotanError(f"{name} features of shape {tuple(x.shape)} for pictures {tuple(pictures.shape)}",
                             "as many, not none")
    z, t, f = (F.normalize(x.double(), dim=1) for x in (pictures, true, false))
    right = ((z * t).sum(1) > (z * f).sum(1)).double()
    value, by_group, said = _over(right, groups)
    protocol = Protocol("the nearer of two captions by cosine, ties count against", split, 0, len(z),
                        notes="; ".join(filter(None, [said, notes])))
    return {"accuracy": value, **({"by_group": by_group} if by_group else {}), "chance": 0.5, "n": len(z), "protocol": protocol}


def both_of_two(pictures: Tensor, texts: Tensor, groups: Sequence[str] | None = None, *, split: str = "the test split",
                notes: str = "") -> dict[str, Any]:
    """Two pictures that differ in one thing, and what is true of each: a pair is right where each text is nearer to its picture
    than to the other (as MMVP-VLM: Tong et al. 2024, arXiv 2401.06209).

    pictures, texts (P, 2, D): text i is of picture i; groups: what differs in each pair. Returns `accuracy`, where there are
    groups the mean over them and `by_group`; `chance` 0.25, `n` and `protocol`.
    """
    for x, name in ((pictures, "picture"), (texts, "text")):
        check_finite(x, f"{name} features")
        if x.shape != pictures.shape or x.ndim != 3 or x.shape[1] != 2 or not len(x):
            raise NotanError(f"{name} features of shape {tuple(x.shape)} for pictures {tuple(pictures.shape)}",
                             "(P, 2, D) both, and one pair or more")
    s = torch.einsum("ptd,pid->pti", F.normalize(texts.double(), dim=2), F.normalize(pictures.double(), dim=2))
    right = ((s[:, 0, 0] > s[:, 0, 1]) & (s[:, 1, 1] > s[:, 1, 0])).double()
    value, by_group, said = _over(right, groups)
    protocol = Protocol("each of two texts picks its picture by cosine, ties count against", split, 0, len(s),
                        notes="; ".join(filter(None, [said, notes])))
    return {"accuracy": value, **({"by_group": by_group} if by_group else {}), "chance": 0.25, "n": len(s), "protocol": protocol}


def _over(right: Tensor, groups: Sequence[str] | None) -> tuple[float, dict[str, float], str]:
    """The mean of what is right (N,), over groups where there are any; of each group; and how that is said."""
    named = list(groups or ())
    if named and len(named) != len(right):
        raise NotanError(f"{len(named):,} groups for {len(right):,} rows", "one for each")
    by_group = {name: float(right[torch.tensor([g == name for g in named])].mean()) for name in dict.fromkeys(named)}
    if not by_group:
        return float(right.mean()), {}, ""
    return sum(by_group.values()) / len(by_group), by_group, f"mean over {len(by_group)} groups"
