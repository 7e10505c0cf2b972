"""How well features predict a number: the closed-form ridge of `ridge`, its penalty by leave-one-out, and errors by density.

Where targets are unevenly spread, the mean error is that of the frequent ones. So test rows are also grouped by how many
training rows have a target near theirs, after Yang et al. 2021 (arXiv 2102.09554): of AgeDB's ages, one bin a year and 120 rows
a bin on average, those with more than 100 rows are many-shot and those with less than 20 few-shot.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from notan.errors import NotanError
from notan.losses.geometry import spearman
from notan.probes.features import check_finite
from notan.probes.protocol import Protocol
from notan.probes.ridge import fit, scores

NAME = ("ridge regression: closed form, features standardised on the training rows, penalty by leave-one-out on them, "
        "predictions kept within the range of their targets")
MANY, FEW = 100 / 120, 20 / 120                                         # of the rows a bin has on average
ROWS_A_BIN, BINS = 10, 100                                              # rows of a bin on average, at least; bins at most


def regression(train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor, *,
               split: str = "the test split") -> dict[str, Any]:
    """Errors of the ridge probe of a target. Features (N, D), targets float (N,).

    Returns `mae`, `rmse`, `r2`, `spearman` (of prediction and target, 0 where either is constant), `gm` (geometric mean of
    absolute errors), where targets are uneven `groups`, {"many", "medium", "few"} to {"mae", "gm", "n"} of the groups that the
    test rows have; `lambda`, `n` and `protocol`. Raises `NotanError` for targets that are not finite or all equal.
    """
    check_targets(train_x, train_y)
    check_targets(test_x, test_y, "test")
    if train_y.min() == train_y.max():
        raise NotanError(f"all {len(train_y):,} training targets are {float(train_y[0]):g}", "at least two values",
                         "more rows, or data whose target varies")
    probe = fit(train_x, train_y[:, None])
    low, high = float(train_y.min()), float(train_y.max())
    guess, truth = scores(probe, test_x)[:, 0].clamp(low, high), test_y.double()    # a feature that few rows have may be huge
    found = errors(guess, truth)
    groups = shots(train_y, test_y)
    if len(groups.unique()) > 1:
        found["groups"] = {}
        for g, name in enumerate(("few", "medium", "many")):
            if (at := groups == g).any():
                part = errors(guess[at], truth[at])
                found["groups"][name] = {"mae": part["mae"], "gm": part["gm"], "n": int(at.sum())}
    return {**found, "lambda": probe.penalty, "n": len(train_x), "protocol": Protocol(NAME, split, len(train_x), len(test_x))}


def errors(guess: Tensor, truth: Tensor) -> dict[str, Any]:
    """`mae`, `rmse`, `r2`, `spearman` and `gm` of predictions (N,). An error of 0 counts as 1e-10 in the geometric mean."""
    error = (guess - truth).abs()
    spread = (truth - truth.mean()).square().sum()
    return {"mae": float(error.mean()), "rmse": float(error.square().mean().sqrt()),
            "r2": float(1 - error.square().sum() / spread) if spread > 0 else float("nan"),
            "spearman": spearman(guess, truth), "gm": float(error.clamp(min=1e-10).log().mean().exp())}


def shots(train_y: Tensor, test_y: Tensor) -> Tensor:
    """Of each test target 2, 1 or 0: many, some or few training rows are near it, int64 (M,).

    Near is in the same of up to BINS bins of equal width over the range of both splits.
    """
    every = torch.cat([train_y, test_y]).double()
    bins = max(1, min(BINS, len(train_y) // ROWS_A_BIN))
    edges = torch.linspace(float(every.min()), float(every.max()), bins + 1, dtype=torch.float64)[1:-1]
    count = torch.bincount(torch.bucketize(train_y.double(), edges), minlength=bins)
    near = count[torch.bucketize(test_y.double(), edges)] / (len(train_y) / bins)
    return (near > MANY).long() + (near >= FEW).long()


def ordering(x: Tensor, y: Tensor, most: int = 1000) -> float:
    """Spearman's correlation of distances in features (N, D) and in targets (N,), over all pairs of the first `most` rows.

    1: the further two rows are apart in target, the further their features.
    """
    check_targets(x, y)
    i, j = torch.triu_indices(min(len(x), most), min(len(x), most), 1)
    apart = torch.cdist(x[:most].double(), x[:most].double())[i, j]
    return spearman(apart, (y[i] - y[j]).abs())


def fragmentation(x: Tensor, y: Tensor, k: int = 5, most: int = 1000) -> float:
    """How unlike in target the k rows with the nearest features are: their mean gap over that of any two rows.

    0: neighbours have one target; 1: features tell nothing of it. Of the first `most` rows.
    """
    check_targets(x, y)
    x, y = x[:most].double(), y[:most].double()
    if not 1 <= k < len(x):
        raise NotanError(f"{k} neighbours of {len(x)} rows", f"1 to {len(x) - 1}")
    near = torch.cdist(x, x).fill_diagonal_(torch.inf).topk(k, largest=False).indices
    gaps = (y[:, None] - y).abs()
    n = len(y)
    return float(gaps.gather(1, near).mean() / (gaps.sum() / (n * (n - 1))).clamp(min=1e-300))


def check_targets(x: Tensor, y: Tensor, name: str = "training") -> None:
    """Features (N, D) and targets (N,) that a regression can be fitted to or scored on."""
    if x.ndim != 2 or y.ndim != 1 or len(x) != len(y):
        raise NotanError(f"{name} features are {tuple(x.shape)} and targets {tuple(y.shape)}", "(N, D) and (N,)")
    if not len(x):
        raise NotanError(f"there are no {name} rows", "at least one row with a target")
    check_finite(x, f"{name} features")
    check_finite(y[:, None].float(), f"{name} targets")
