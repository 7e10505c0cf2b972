"""The states of a text's tokens against one another (Su et al., NeurIPS 2022, arXiv 2202.06417)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def token_cosines(h: Tensor, pad: Tensor) -> tuple[Tensor, Tensor]:
    """cos(h_i, h_j) of every two tokens of a text, and which of them count: two different tokens, neither padding.

    h (B, T, D), pad bool (B, T), True = padding; gives (B, T, T), at least float32, and bool (B, T, T).
    """
    with torch.autocast(h.device.type, enabled=False):
        u = F.normalize(h.to(torch.promote_types(h.dtype, torch.float32)), dim=2)
        s = (u @ u.mT).clamp(max=1)                                     # rounding goes beyond
    real = ~pad
    return s, real[:, :, None] & real[:, None, :] & ~torch.eye(h.shape[1], dtype=torch.bool, device=h.device)


def token_contrast(s: Tensor, pairs: Tensor, rho: float) -> Tensor:
    """Sum over the pairs of max(0, rho - s_ii + s_ij), where s_ii = 1: (B, T, T) and bool (B, T, T) to (B,).

    Zero where all cosines are at most 1 - rho, so at rho = 0 always. Divide by the number of pairs for the paper's loss.
    """
    return ((s - (1 - rho)).clamp(min=0) * pairs).sum((1, 2))
