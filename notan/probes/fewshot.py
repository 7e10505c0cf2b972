"""How good with few labels: n labels per class, and curves over the number of labels, with several keyed draws.

Which rows get a label is a function of (seed, draw, row), so every arm of a comparison sees the same labels, and a
larger set of one draw contains the smaller.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from notan.data import keys
from notan.errors import NotanError
from notan.probes.ridge import ridge

Probe = Callable[[Tensor, Tensor, Tensor, Tensor], dict[str, Any]]  # train x, y, test x, y


def per_class(labels: np.ndarray, n: int, *, seed: int, draw: int = 0) -> np.ndarray:
    """`n` rows of each class that occurs in `labels` int (N,): sorted row numbers.

    Raises `NotanError` when a class has fewer than `n` rows.
    """
    order = _order(len(labels), seed, draw)
    chosen = []
    for c in np.unique(labels):
        rows = order[labels[order] == c]
        if len(rows) < n:
            raise NotanError(f"class {c} has {len(rows)} labelled rows", f"{n} per class", "ask for fewer labels per class")
        chosen.append(rows[:n])
    return np.sort(np.concatenate(chosen))


def some(labels: np.ndarray, n: int, *, seed: int, draw: int = 0) -> np.ndarray:
    """`n` of all rows, whatever their class, as labels come in life: sorted row numbers."""
    if not 1 <= n <= len(labels):
        raise NotanError(f"{n:,} labels were asked of {len(labels):,} rows", f"1 to {len(labels):,}")
    return np.sort(_order(len(labels), seed, draw)[:n])


def few_shot(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    *,
    n: int = 10,
    draws: int = 5,
    seed: int = 0,
    probe: Probe = ridge,
) -> dict[str, Any]:
    """Mean accuracy of `probe` with `n` labels per class over `draws` draws.

    Returns `accuracy` (the mean), `draws` (each), `n` (labels used) and `protocol`.
    """
    labels = train_y.numpy()
    index = [per_class(labels, n, seed=seed, draw=d) for d in range(draws)]
    return _over_draws(index, f"{n} labels per class", "accuracy", probe, train_x, train_y, test_x, test_y)


def label_curve(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    *,
    sizes: Sequence[int],
    draws: int = 3,
    seed: int = 0,
    probe: Probe = ridge,
    metric: str = "accuracy",
) -> dict[int, dict[str, Any]]:
    """`few_shot`'s result for each number of labels in `sizes` (of all classes together), rows drawn uniformly.

    metric: which number of the probe's result; "mae" or "r2" of `regression`. Sizes beyond the training rows are left out;
    one that uses every row has a single draw.
    """
    labels, out = train_y.numpy(), {}
    for n in sorted({n for n in sizes if n <= len(labels)}):
        index = [some(labels, n, seed=seed, draw=d) for d in range(draws if n < len(labels) else 1)]
        what = f"{n:,} labels, uniformly drawn" if n < len(labels) else ""
        out[n] = _over_draws(index, what, metric, probe, train_x, train_y, test_x, test_y)
    return out


def _order(n: int, seed: int, draw: int) -> np.ndarray:
    key = keys.fold(keys.fold(keys.fold(keys.word("labels"), seed), draw), np.arange(n))
    return np.argsort(key, kind="stable")


def _over_draws(
    indices: Sequence[np.ndarray],
    what: str,
    metric: str,
    probe: Probe,
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
) -> dict[str, Any]:
    results = [probe(train_x[i], train_y[i], test_x, test_y) for i in map(torch.from_numpy, indices)]
    values = [r[metric] for r in results]
    notes = f"{what}, mean of {len(values)} draw{'s' * (len(values) > 1)} keyed by the seed" if what else ""
    return {
        metric: float(np.mean(values)),
        "draws": values,
        "n": len(indices[0]),
        "protocol": replace(results[0]["protocol"], notes=notes),
    }
