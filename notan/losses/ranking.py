"""Predict which of two patches is harder (HPM, Wang et al. 2023, section 3.3; arXiv 2304.05919).

Half precision is computed in float32: in bfloat16 1 - sigmoid(7) is 0.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def pairwise_ranking(t: Tensor, l: Tensor) -> tuple[Tensor, Tensor]:
    """HPM's relative loss: for every ordered pair of one row's tokens with different l, is the first the harder one?

    t: predicted difficulty (B, M). l: the losses it should order (B, M), not differentiated.
    Returns the sum over pairs and their number, both scalars. As published, 1e-6 stands inside the logarithm, which
    caps a pair at 13.8 and lets the gradient of a hopelessly wrong pair vanish.
    """
    harder, untied, d = _pairs(t, l)
    p = d.sigmoid()
    terms = -torch.where(harder, (p + 1e-6).log(), (1 - p + 1e-6).log())
    return (terms * untied).sum(), untied.sum()


def stable_pairwise_ranking(t: Tensor, l: Tensor) -> tuple[Tensor, Tensor]:
    """The same with log-sigmoids in place of log(sigmoid + 1e-6): no cap, and a gradient everywhere."""
    harder, untied, d = _pairs(t, l)
    terms = -F.logsigmoid(torch.where(harder, d, -d))
    return (terms * untied).sum(), untied.sum()


def absolute_ranking(t: Tensor, l: Tensor) -> Tensor:
    """HPM's absolute loss: squared distance of t to l standardised within its row, per token: (B, M)."""
    t, l = widened(t), widened(l.detach())
    l = (l - l.mean(1, keepdim=True)) / (l.var(1, keepdim=True) + 1e-6).sqrt()
    return (t - l).square()


def widened(x: Tensor) -> Tensor:
    """x, in float32 if it is in half precision."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _pairs(t: Tensor, l: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    t, l = widened(t), widened(l.detach())
    harder = l[:, :, None] > l[:, None, :]                              # (B, M, M): token i above token j
    untied = l[:, :, None] != l[:, None, :]
    return harder, untied, t[:, :, None] - t[:, None, :]
