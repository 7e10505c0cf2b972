"""Logistic regression on frozen features: the other linear probe, its penalty from held-out training rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from notan.data import keys
from notan.probes.features import check_labelled, check_several
from notan.probes.protocol import Protocol
from notan.probes.ridge import accuracies

GRID = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # scikit-learn's C
NAME = (
    "logistic regression: LBFGS, features standardised on the training rows, penalty by the log-loss of every fifth of "
    "them, refitted on all"
)


def logistic(
    train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor, *, split: str = "the test split"
) -> dict[str, Any]:
    """Accuracy of multinomial logistic regression. Features (N, D), labels int (N,).

    Returns `accuracy`, `balanced`, `C`, `n` and `protocol`. Raises `NotanError` as `ridge` does.
    """
    check_labelled(train_x, train_y)
    check_labelled(test_x, test_y, "test")
    check_several(train_y)
    mean, std = train_x.double().mean(0), train_x.double().std(0, correction=0)
    std = torch.where(std > 1e-6 * mean.abs(), std, torch.inf)
    x, y = ((train_x.double() - mean) / std).numpy(), train_y.numpy()
    C = _choose(x, y)
    guess = _model(C).fit(x, y).predict(((test_x.double() - mean) / std).numpy())
    return {
        **accuracies(torch.from_numpy(guess), test_y),
        "C": C,
        "n": len(x),
        "protocol": Protocol(NAME, split, len(x), len(test_x)),
    }


def _choose(x: np.ndarray, y: np.ndarray) -> float:
    held = np.zeros(len(y), bool)
    held[keys.shuffle(0, 0, len(y))[::5]] = True
    held &= np.isin(y, y[~held])  # a class seen only in the held rows has no log-loss
    if not held.any() or len(np.unique(y[~held])) < 2:
        return 1.0
    return min(GRID, key=lambda C: _log_loss(_model(C).fit(x[~held], y[~held]), x[held], y[held]))


def _log_loss(model: Any, x: np.ndarray, y: np.ndarray) -> float:
    column = np.searchsorted(model.classes_, y)
    return float(-model.predict_log_proba(x)[np.arange(len(y)), column].mean())


def _model(C: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=C, max_iter=500)
