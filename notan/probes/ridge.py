"""The closed-form linear probe: ridge regression on one-hot labels, its penalty chosen by leave-one-out.

No learning rate, no epochs, no random state: the same features always give the same number. One eigendecomposition
serves every penalty of a fixed grid, with the exact leave-one-out residuals r_i / (1 - h_ii) (Allen 1974, "PRESS";
Golub, Heath and Wahba 1979). Everything is float64 and nothing of the test rows enters the fit.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from notan.probes.features import check_finite, check_labelled, check_several
from notan.probes.protocol import Protocol

GRID = tuple(10.0 ** (p / 2) for p in range(-14, 5))  # penalty per training row: 1e-7 ... 1e2
NAME = "ridge probe: closed form, features standardised on the training rows, penalty by leave-one-out on them"


class Fit(NamedTuple):
    """A fitted probe: scores are `((x - mean) / std) @ weight + bias`."""

    mean: Tensor  # (D,)
    std: Tensor  # (D,)
    weight: Tensor  # (D, K)
    bias: Tensor  # (K,)
    penalty: float  # lambda / n, one of GRID
    errors: Tensor  # (len(GRID),) mean squared leave-one-out error


def ridge(
    train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor, *, split: str = "the test split"
) -> dict[str, Any]:
    """Accuracy of the ridge probe. Features (N, D) float, labels int (N,).

    Returns `accuracy`, `balanced` (mean recall over classes), `lambda` (the penalty per training row), `n` (training
    rows) and `protocol`. Raises `NotanError` on features that are not finite, a single class, or no rows.
    """
    check_labelled(train_x, train_y)
    check_labelled(test_x, test_y, "test")
    check_several(train_y)
    classes = int(torch.maximum(train_y.max(), test_y.max())) + 1
    probe = fit(train_x, torch.nn.functional.one_hot(train_y.long(), classes).double())
    guess = scores(probe, test_x).argmax(1)
    return {
        **accuracies(guess, test_y),
        "lambda": probe.penalty,
        "n": len(train_x),
        "protocol": Protocol(NAME, split, len(train_x), len(test_x)),
    }


def fit(x: Tensor, targets: Tensor, grid: tuple[float, ...] = GRID) -> Fit:
    """Ridge of targets (N, K) on standardised x (N, D), with a free bias and the penalty of least leave-one-out error.

    One-hot targets and -1/1 targets differ by an affine map that the bias absorbs: the winning class is the same.
    A feature that is constant up to float32 rounding counts as zero.
    """
    check_finite(x, "training features")
    x, targets = x.double(), targets.double()
    n = len(x)
    mean, std = x.mean(0), x.std(0, correction=0)
    std = torch.where(std > 1e-6 * mean.abs(), std, torch.inf)
    x, bias = (x - mean) / std, targets.mean(0)
    y = targets - bias
    s, V = _spectrum(x)  # x^T x = V diag(s) V^T
    Q = x @ V  # (N, R), Q^T Q = diag(s)
    a = Q.T @ y  # (R, K)
    shrink = 1 / (s + n * torch.tensor(grid, dtype=s.dtype).unsqueeze(1))  # (L, R)
    leverage = 1 / n + Q.square() @ shrink.T  # (N, L), the bias has 1/n
    errors = torch.stack([_left_out(y - Q @ (a * r.unsqueeze(1)), 1 - h) for r, h in zip(shrink, leverage.T)])
    best = int(errors.argmin())
    return Fit(mean, std, V @ (a * shrink[best].unsqueeze(1)), bias, grid[best], errors)


def scores(probe: Fit, x: Tensor) -> Tensor:
    """(N, D) -> (N, K) float64."""
    check_finite(x, "test features")
    weight = probe.weight / probe.std.unsqueeze(1)                      # (D, K): standardising costs nothing per row
    return x.double() @ weight + (probe.bias - probe.mean @ weight)


def accuracies(guess: Tensor, truth: Tensor) -> dict[str, float]:
    """Share of right guesses, over rows (`accuracy`) and as the mean over the classes that occur (`balanced`)."""
    right = (guess == truth).double()
    recall = [right[truth == c].mean() for c in truth.unique()]
    return {"accuracy": float(right.mean()), "balanced": float(torch.stack(recall).mean())}


def _left_out(residual: Tensor, free: Tensor) -> Tensor:
    """Mean squared leave-one-out error from residuals (N, K) and 1 - h (N,); infinite if rounding ate 1 - h."""
    return torch.where(free.min() > 1e-11, (residual / free.unsqueeze(1)).square().mean(), torch.inf)


def _spectrum(x: Tensor) -> tuple[Tensor, Tensor]:
    """The non-zero eigenvalues (R,) of x^T x and their vectors (D, R), through the smaller of the two Gram matrices."""
    n, d = x.shape
    wide = n < d
    s, U = torch.linalg.eigh(x @ x.T if wide else x.T @ x)
    keep = s > s[-1].clamp(min=0) * 1e-12
    s, U = s[keep], U[:, keep]
    return s, (x.T @ U) / s.sqrt() if wide else U
