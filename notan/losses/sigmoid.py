"""Each pair judged by itself: SigLIP (Zhai et al. 2023, arXiv 2303.15343), in fixed memory. See `tiles`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from notan.losses.tiles import WIDTH, Scaled, check_tau, full_precision, gradient, inverse_lengths, parts, tangent, wide


def sigmoid_contrast(q: Tensor, k: Tensor, *, tau: float | Tensor, bias: float | Tensor, positive: Tensor) -> Tensor:
    """-sum over j of log sigmoid(z_ij (cos(q_i, k_j) / tau + bias)), z = 1 for the positive and -1 for others: (N,).

    q (N, D), k (M, D). positive: int64 (N,), the column of each row's right key, or -1 where it is not among these keys: the
    sum over parts of the keys is the loss over all of them. The paper's loss is the mean over rows, tau = 0.1 and bias = -10
    at first. Zero vectors count as a direction of zero, without a gradient.
    """
    check_tau(tau)
    with full_precision(q):
        tau, bias = (torch.as_tensor(x, dtype=wide(q), device=q.device) for x in (tau, bias))
        return _Sigmoid.apply(q, k, tau, bias, positive)


class _Sigmoid(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, tau: Tensor, bias: Tensor, positive: Tensor) -> Tensor:
        a, b = inverse_lengths(q), inverse_lengths(k)
        x, y = Scaled(q, a / tau), Scaled(k, b)
        loss = x.empty(len(x)).zero_()
        for rows in parts(len(x), WIDTH):
            xi = x[rows]
            for columns in parts(len(y), WIDTH):
                s = (xi @ y[columns].T).add_(bias)
                loss[rows] += F.softplus(_turned(s, positive[rows], columns)).sum(1)
        ctx.save_for_backward(q, k, tau, bias, positive, a, b)
        return loss

    @staticmethod
    @gradient
    def backward(ctx, g: Tensor):
        q, k, tau, bias, positive, a, b = ctx.saved_tensors
        x, y = Scaled(q, a / tau), Scaled(k, b)
        dx, dy, db = x.zeros(), y.zeros(), torch.zeros_like(tau)
        for rows in parts(len(x), WIDTH):
            xi = x[rows]
            for columns in parts(len(y), WIDTH):
                yj = y[columns]
                s = _turned((xi @ yj.T).add_(bias), positive[rows], columns)
                p = _turned(s.sigmoid_(), positive[rows], columns).mul_(g[rows, None])
                dx[rows].addmm_(p, yj)
                dy[columns].addmm_(p.T, xi)
                db += p.sum()
        dq, along = tangent(dx, q, a, 1 / tau)
        dk, _ = tangent(dy, k, b, torch.ones_like(tau))
        return dq, dk, -along / tau, db, None


def _turned(s: Tensor, positive: Tensor, columns: slice) -> Tensor:
    """The sign of each row's positive is turned, in place, where it is among these columns."""
    at = positive[:, None] - columns.start
    inside = (at >= 0) & (at < s.shape[1]) & (positive[:, None] >= 0)
    at = at.clamp(0, s.shape[1] - 1)
    here = s.gather(1, at)
    return s.scatter_(1, at, torch.where(inside, -here, here))
