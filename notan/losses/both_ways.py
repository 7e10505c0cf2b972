"""Softmax contrast in both directions at once, in fixed memory: rows against columns and columns against rows.

A tile of logits serves its rows and its columns, so CLIP's two losses cost four products of the size N M D, not six. Where
both sets are the same one, tile (j, i) is the transpose of tile (i, j) and is not made: two products, where all logits in
memory cost three.
"""

from __future__ import annotations

import torch
from torch import Tensor

from notan.losses import fused
from notan.losses.tiles import (
    Edit,
    Scaled,
    base_of,
    finite,
    full_precision,
    gradient,
    inverse_lengths,
    made,
    parts,
    room_for,
    tangent,
    wide,
)

SIDE = 2048                                                             # of a tile: 16 MB in float32


def both_ways(q: Tensor, k: Tensor, tau: float | Tensor, *, side: int = SIDE) -> tuple[Tensor, Tensor]:
    """-log of each pair's share in its row and in its column of exp(cos(q_i, k_j) / tau): (N, D) twice to (N,) twice.

    See `tiles.log_sum_exp`.
    """
    with full_precision(q):
        return _Both.apply(q, k, torch.as_tensor(tau, dtype=wide(q), device=q.device), side)


def own_log_sum_exp(z: Tensor, tau: float | Tensor, *, edit: Edit | None = None, side: int = SIDE) -> Tensor:
    """log of the sum over j of exp(cos(z_i, z_j) / tau): (N, D) to (N,).

    `edit` may leave pairs out, (i, j) and (j, i) alike; adding to a logit is not for it.
    """
    with full_precision(z):
        return _Own.apply(z, torch.as_tensor(tau, dtype=wide(z), device=z.device), edit, side)


class _Both(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, tau: Tensor, side: int) -> tuple[Tensor, Tensor]:
        a, b = inverse_lengths(q), inverse_lengths(k)
        ctx.side, ctx.base = side, 1.0 if fused.pays(q, k) else base_of(tau)
        x, y = Scaled(q, a / tau * ctx.base), Scaled(k, b)
        if fused.pays(q, k):
            r, c = fused.log_sums(x, y), fused.log_sums(y, x)
        else:
            r, c = (s.empty(len(s)).fill_(-torch.inf) for s in (x, y))
            _sums(x, y, r, c, None, side, ctx.base != 1)
        ctx.save_for_backward(q, k, tau, a, b, r, c)
        own = torch.cat([(x[i] * y[i]).sum(1) for i in parts(len(x), side)]) / ctx.base
        return r - own, c - own

    @staticmethod
    @gradient
    def backward(ctx, g: Tensor, h: Tensor):
        q, k, tau, a, b, r, c = ctx.saved_tensors
        x, y = Scaled(q, a / tau * ctx.base), Scaled(k, b)
        if fused.pays(q, k):
            dx, dy = fused.pulls(x, y, r, g, c, h), fused.pulls(y, x, c, h, r, g)
        else:
            dx, dy = x.zeros(), y.zeros()
            _gradients(x, y, dx, dy, finite(r), finite(c), g, h, None, ctx.side, ctx.base != 1)
        for i in parts(len(x), ctx.side):
            w = (g + h)[i, None]
            dx[i] -= w * y[i]
            dy[i] -= w * x[i]
        dq, along = tangent(dx, q, a, 1 / tau)
        dk, _ = tangent(dy, k, b, torch.ones_like(tau) / ctx.base)
        return dq, dk, -along / tau, None


class _Own(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z: Tensor, tau: Tensor, edit: Edit | None, side: int) -> Tensor:
        a = inverse_lengths(z)
        ctx.edit, ctx.side, ctx.base = edit, side, base_of(tau)
        x = Scaled(z, a * (ctx.base / tau).sqrt())
        r = x.empty(len(x)).fill_(-torch.inf)
        _sums(x, x, r, r, edit, side, ctx.base != 1)
        ctx.save_for_backward(z, tau, a, r)
        return r

    @staticmethod
    @gradient
    def backward(ctx, g: Tensor):
        z, tau, a, r = ctx.saved_tensors
        x = Scaled(z, a * (ctx.base / tau).sqrt())
        dx, r = x.zeros(), finite(r)
        _gradients(x, x, dx, dx, r, r, g, g, ctx.edit, ctx.side, ctx.base != 1)
        dz, along = tangent(dx, z, a, 1 / (ctx.base * tau).sqrt())
        return dz, -along / (2 * tau), None, None


def _sums(x: Scaled, y: Scaled, r: Tensor, c: Tensor, edit: Edit | None, side: int, mild: bool) -> None:
    """Adds to the log-sums of rows r (N,) and columns c (M,). Where y is x, c is r and the tiles below the diagonal are left
    out: each of the others is added to both of its sides.
    """
    room = room_for(x, y, side, side)
    for rows in parts(len(x), side):
        xi = x[rows]
        for columns in parts(len(y), side):
            if y is x and columns.start < rows.start:
                continue
            s = made(xi, y[columns], edit, rows, columns, room)
            s = s.exp2_() if mild else s
            r[rows] = torch.logaddexp(r[rows], _log_sum(s, 1, mild))
            if y is not x or columns.start > rows.start:
                c[columns] = torch.logaddexp(c[columns], _log_sum(s, 0, mild))


def _gradients(x: Scaled, y: Scaled, dx: Tensor, dy: Tensor, r: Tensor, c: Tensor, g: Tensor, h: Tensor, edit: Edit | None,
               side: int, mild: bool) -> None:
    """Adds the gradients of sum_i g_i r_i + sum_j h_j c_j; where y is x (dy is dx, c is r, h is g) that of sum_i g_i r_i."""
    if mild:
        g, h = (-r).exp() * g, (-c).exp() * h
    room, second = room_for(x, y, side, side), room_for(x, y, side, side)
    for rows in parts(len(x), side):
        xi = x[rows]
        for columns in parts(len(y), side):
            if y is x and columns.start < rows.start:
                continue
            yj = y[columns]
            s = made(xi, yj, edit, rows, columns, room)
            w = second[: s.numel()].view(s.shape)
            if mild:
                torch.add(g[rows, None], h[columns], out=w).mul_(s.exp2_())
            else:
                torch.sub(s, r[rows, None], out=w).exp_().mul_(g[rows, None])
                w += s.sub_(c[columns]).exp_().mul_(h[columns])
            dx[rows].addmm_(w, yj)
            if y is not x or columns.start > rows.start:
                dy[columns].addmm_(w.T, xi)


def _log_sum(s: Tensor, axis: int, mild: bool) -> Tensor:
    """log-sum-exp of a tile along an axis; of one that is exponentials already, where logits are mild."""
    if mild:
        return s.sum(axis).log_()
    most = finite(s.amax(axis, keepdim=True))
    return (s - most).exp_().sum(axis).log_() + most.squeeze(axis)
