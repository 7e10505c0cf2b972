"""k nearest neighbours: no fitting at all, so the features' own geometry is what is measured."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from notan.errors import NotanError
from notan.probes.features import check_finite, check_labelled
from notan.probes.protocol import Protocol
from notan.probes.ridge import accuracies

TAU = 0.07  # Wu et al. 2018, arXiv:1805.01978, section 3.4


def knn_cosine(
    train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor, *, k: int = 20, split: str = "the test split"
) -> dict[str, Any]:
    """Accuracy of k-NN on cosine similarity s, a neighbour's vote weighing exp(s / 0.07) (Wu et al. 2018).

    Features (N, D), labels int (N,). Returns `accuracy`, `balanced`, `k`, `n` and `protocol`. Raises `NotanError` on
    features that are not finite or fewer than k training rows.
    """
    _check(train_x, train_y, test_x, test_y, k)
    s, where = nearest_cosine(train_x, test_x, k)
    guess = _vote(torch.exp((s - s[:, :1]) / TAU), train_y[where])  # relative to the nearest: no overflow
    name = f"k-NN on cosine similarity s, votes weighted exp(s / {TAU})"
    return {
        **accuracies(guess, test_y),
        "k": k,
        "n": len(train_x),
        "protocol": Protocol(name, split, len(train_x), len(test_x), k),
    }


def knn_euclidean(
    train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor, *, k: int = 20, split: str = "the test split"
) -> dict[str, Any]:
    """Accuracy of k-NN on Euclidean distance d of the features as they are, votes weighing 1 / d. As `knn_cosine`."""
    _check(train_x, train_y, test_x, test_y, k)
    d, where = nearest_euclidean(train_x, test_x, k)
    same = d <= 0  # identical rows outvote all others
    weight = torch.where(same.any(1, keepdim=True), same.to(d), 1 / d)
    guess = _vote(weight, train_y[where])
    name = "k-NN on Euclidean distance d, votes weighted 1 / d"
    return {
        **accuracies(guess, test_y),
        "k": k,
        "n": len(train_x),
        "protocol": Protocol(name, split, len(train_x), len(test_x), k),
    }


def nearest_cosine(train_x: Tensor, test_x: Tensor, k: int, chunk: int = 1024) -> tuple[Tensor, Tensor]:
    """The k most similar training rows of each test row, nearest first: cosines (M, k) and row numbers (M, k)."""
    keys = F.normalize(train_x.float(), dim=1)
    found = [(F.normalize(q.float(), dim=1) @ keys.T).topk(k) for q in test_x.split(chunk)]
    return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])


def nearest_euclidean(train_x: Tensor, test_x: Tensor, k: int, chunk: int = 1024) -> tuple[Tensor, Tensor]:
    """The k closest training rows of each test row, nearest first: distances (M, k) and row numbers (M, k).

    Candidates by |q|^2 - 2 q.x + |x|^2 about the mean; the chosen ones' distances are then taken exactly.
    """
    train_x, test_x = train_x.float(), test_x.float()
    mean = train_x.mean(0)
    keys = train_x - mean
    norms = keys.square().sum(1)
    distances, indices = [], []
    for q in test_x.split(chunk):
        where = (norms - 2 * (q - mean) @ keys.T).topk(k, largest=False).indices  # (B, k)
        d = torch.stack([(q - train_x[where[:, j]]).norm(dim=1) for j in range(k)], 1)
        d, order = d.sort(1)
        distances.append(d)
        indices.append(where.gather(1, order))
    return torch.cat(distances), torch.cat(indices)


def _vote(weight: Tensor, label: Tensor) -> Tensor:
    """Weights and labels (M, k) of the neighbours -> the class with the largest sum (M,)."""
    votes = weight.new_zeros(len(weight), int(label.max()) + 1)
    return votes.scatter_add_(1, label.long(), weight).argmax(1)


def _check(train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor, k: int) -> None:
    check_labelled(train_x, train_y)
    check_labelled(test_x, test_y, "test")
    check_finite(test_x, "test features")
    if not 1 <= k <= len(train_x):
        raise NotanError(
            f"k={k} neighbours of {len(train_x)} training rows", "1 <= k <= training rows", "use a smaller k"
        )
