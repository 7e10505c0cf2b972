"""Softmax contrast of two sets of vectors in fixed memory: what the losses of any batch size rest on.

The logits of N queries against M keys are never there at once; they are made a tile at a time and thrown away. Where whole
rows of logits fit a tile, the gradient is taken while the tile is there: three products of the size N M D in all, as many
as with all logits in memory. Where the keys are too many for that, or the rows turn out to count unequally, the backward
pass makes the tiles again: four products. Half precision is computed in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from notan.errors import NotanError

TILE = 1 << 22                                                          # logits held at once: 16 MB in float32
LEAST, WIDTH = 64, 2048                                                 # rows of a tile of whole rows; columns of one product
Edit = Callable[[Tensor, slice, slice], object]                         # changes logits of rows x columns (n, m) in place
Pairs = Tensor | Callable[[slice, slice], Tensor]                       # a matrix (N, M), or what gives a part (n, m) of it


def log_sum_exp(q: Tensor, k: Tensor, tau: float | Tensor, *, positive: Tensor | None = None, edit: Edit | None = None,
                tile: int = TILE) -> Tensor:
    """log of the sum over j of exp(cos(q_i, k_j) / tau), minus the positive's cosine / tau: (N,), at least float32.

    q (N, D), k (M, D), tau a number or a scalar tensor above 0. positive: int64 (N,), or None for nothing to subtract.
    edit: takes a tile of logits, its rows and its columns, and changes it in place without a gradient: -inf leaves a pair
    out, adding log w weighs it by w. The direction of a zero vector is zero, without a gradient. A row that is left with no
    pair gives -inf without a gradient. NaN and inf in a vector make every row that meets it NaN.
    tile: how many logits are held at once.
    """
    with full_precision(q):
        return _LogSumExp.apply(q, k, torch.as_tensor(tau, dtype=wide(q), device=q.device), positive, edit, tile)


def full_precision(x: Tensor) -> torch.autocast:
    """Without autocast, which would make half-precision logits of float32 vectors."""
    return torch.autocast(x.device.type, enabled=False)


def gradient(backward: Callable) -> Callable:
    """For the backward of a Function: without autocast, and without a gradient of its own."""
    @once_differentiable
    @wraps(backward)
    def exact(ctx, *g: Tensor):
        with full_precision(g[0]):
            return backward(ctx, *g)
    return exact


class _LogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, tau: Tensor, positive: Tensor | None, edit: Edit | None, tile: int) -> Tensor:
        a, b = inverse_lengths(q), inverse_lengths(k)
        x, y = Scaled(q, a / tau), Scaled(k, b)
        ahead = any(ctx.needs_input_grad) and len(k) * min(LEAST, len(q)) <= tile
        lse, own, dx, dy = (whole_rows if ahead else online)(x, y, positive, edit, tile)
        ctx.positive, ctx.edit, ctx.tile = positive, edit, tile
        ctx.save_for_backward(q, k, tau, a, b, lse, dx, dy)
        return lse - own

    @staticmethod
    @gradient
    def backward(ctx, g: Tensor):
        q, k, tau, a, b, lse, dx, dy = ctx.saved_tensors
        if dx is not None and bool((g == g[0]).all()):                  # a sum or a mean of rows
            scale = g[0]
        else:
            scale, g = torch.ones_like(tau), g.to(lse.dtype)
            dx, dy = gradients(Scaled(q, a / tau), Scaled(k, b), lse, g, ctx.positive, ctx.edit, ctx.tile)
        dq, along = tangent(dx, q, a, scale / tau)
        dk, _ = tangent(dy, k, b, scale)
        return dq, dk, -along / tau, None, None, None


class Scaled:
    """Vectors (N, D) times a factor (N,), in float32 where they are in half precision; made a few rows at a time."""

    def __init__(self, x: Tensor, factor: Tensor) -> None:
        self.x, self.factor = x, factor

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        return self.x[rows] * self.factor[rows, None]

    def empty(self, *shape: int) -> Tensor:
        return self.factor.new_empty(shape)

    def zeros(self) -> Tensor:
        return self.factor.new_zeros(self.x.shape)


def parts(n: int, size: int) -> Iterator[slice]:
    return (slice(i, min(i + size, n)) for i in range(0, n, size))


def whole_rows(x: Scaled, y: Scaled, positive: Tensor | None, edit: Edit | None, tile: int) -> tuple[Tensor, ...]:
    """log-sum-exp of each row, its positive's logit or 0, and the gradients of their differences' sum to x and y."""
    lse, own, dx, dy = x.empty(len(x)), x.empty(len(x)).zero_(), x.zeros(), y.zeros()
    room = x.empty(min(len(x), max(1, tile // len(y))), len(y))
    for rows in parts(len(x), len(room)):
        xi, d = x[rows], dx[rows]
        e = room[: len(xi)]
        for j in parts(len(y), WIDTH):
            torch.mm(xi, y[j].T, out=e[:, j])
        if edit is not None:
            edit(e, rows, slice(0, len(y)))
        most = finite(e.amax(1))
        total = e.sub_(most[:, None]).exp_().sum(1)
        lse[rows] = total.log() + most
        share = torch.where(total == 0, 0, 1 / total)[:, None]
        for j in parts(len(y), WIDTH):
            d.addmm_(e[:, j], y[j])
            dy[j].addmm_(e[:, j].T, xi * share)
        d *= share
        if positive is not None:
            own[rows] = pull(xi, y, positive[rows], d, dy)
    return lse, own, dx, dy


def pull(xi: Tensor, y: Scaled, j: Tensor, dx: Tensor, dy: Tensor, g: Tensor | None = None) -> Tensor:
    """Logits of positives (n,), whose gradient, times g, is taken off dx (n, D) and dy (M, D)."""
    yj = y[j]
    own = (xi * yj).sum(1)
    dx -= yj if g is None else yj.mul_(g[:, None])
    dy.index_add_(0, j, xi if g is None else xi * g[:, None], alpha=-1)
    return own


def online(x: Scaled, y: Scaled, positive: Tensor | None, edit: Edit | None, tile: int) -> tuple[Tensor, Tensor, None, None]:
    """log-sum-exp of each row and its positive's logit or 0, from tiles that hold a part of a row."""
    lse, own = x.empty(len(x)).fill_(-torch.inf), x.empty(len(x)).zero_()
    for rows in parts(len(x), max(1, tile // WIDTH)):
        xi = x[rows]
        for columns in parts(len(y), WIDTH):
            lse[rows] = torch.logaddexp(lse[rows], made(xi, y[columns], edit, rows, columns).logsumexp(1))
        if positive is not None:
            own[rows] = (xi * y[positive[rows]]).sum(1)
    return lse, own, None, None


def gradients(x: Scaled, y: Scaled, lse: Tensor, g: Tensor, positive: Tensor | None, edit: Edit | None,
              tile: int) -> tuple[Tensor, Tensor]:
    """The gradients of the sum of g_i (lse_i - own_i) with respect to x and y."""
    dx, dy, lse = x.zeros(), y.zeros(), finite(lse)
    for rows in parts(len(x), max(1, tile // WIDTH)):
        xi, d = x[rows], dx[rows]
        for columns in parts(len(y), WIDTH):
            yj = y[columns]
            p = made(xi, yj, edit, rows, columns).sub_(lse[rows, None]).exp_().mul_(g[rows, None])
            d.addmm_(p, yj)
            dy[columns].addmm_(p.T, xi)
        if positive is not None:
            pull(xi, y, positive[rows], d, dy, g[rows])
    return dx, dy


def tangent(d: Tensor, x: Tensor, a: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of vectors x from d, that of their directions u = a x: scale a (d - u (u . d)); and the sum of scale u . d."""
    out, along = torch.empty_like(x), torch.zeros_like(scale)
    for i in parts(len(x), WIDTH):
        dot = (x[i] * d[i]).sum(1) * a[i]
        out[i] = torch.addcmul(d[i], x[i].to(d.dtype), (a[i] * dot)[:, None], value=-1).mul_((scale * a[i])[:, None])
        along += scale * dot.sum()
    return out, along


def made(x: Tensor, y: Tensor, edit: Edit | None, rows: slice, columns: slice) -> Tensor:
    """A tile of logits."""
    s = x @ y.T
    if edit is not None:
        edit(s, rows, columns)
    return s


def finite(x: Tensor) -> Tensor:
    """0 for -inf, which rows without a pair have: exp(-inf - 0) is 0, where exp(-inf + inf) is NaN."""
    return x.masked_fill(x == -torch.inf, 0)


def cosines(x: Tensor, y: Tensor) -> Tensor:
    """cos(x_i, y_i): (N, D) twice to (N,), at least float32; 0 without a gradient where one is a zero vector."""
    with full_precision(x):
        return _Cosines.apply(x, y)


def unit(x: Tensor) -> Tensor:
    """Directions (N, D), at least float32; of a zero vector 0, without a gradient."""
    x = x.to(wide(x))
    n = x.norm(dim=1, keepdim=True)
    return x / torch.where(n == 0, torch.inf, n)


def pooled(v: Tensor, pairs: Pairs, n: int) -> Tensor:
    """The sum over j of pairs_ij v_j: (M, D) and (n, M), bool or weights without a gradient, to (n, D), a tile at a time."""
    with full_precision(v):
        return _Pooled.apply(v, pairs, n)


class _Pooled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, v: Tensor, pairs: Pairs, n: int) -> Tensor:
        ctx.pairs, ctx.shape = pairs, v.shape
        out = v.new_zeros(n, v.shape[1])
        for rows in parts(n, WIDTH):
            for columns in parts(len(v), WIDTH):
                out[rows].addmm_(part(pairs, rows, columns).to(v.dtype), v[columns])
        return out

    @staticmethod
    @gradient
    def backward(ctx, g: Tensor):
        dv = g.new_zeros(ctx.shape)
        for rows in parts(len(g), WIDTH):
            for columns in parts(len(dv), WIDTH):
                dv[columns].addmm_(part(ctx.pairs, rows, columns).to(g.dtype).T, g[rows])
        return dv, None, None


def part(pairs: Pairs, rows: slice, columns: slice) -> Tensor:
    """A part of a matrix that is there, or is made."""
    return pairs[rows, columns] if isinstance(pairs, Tensor) else pairs(rows, columns)


class _Cosines(torch.autograd.Function):
    """Keeps the vectors alone: their directions are made a few rows at a time."""

    @staticmethod
    def forward(ctx, x: Tensor, y: Tensor) -> Tensor:
        a, b = inverse_lengths(x), inverse_lengths(y)
        u, v = Scaled(x, a), Scaled(y, b)
        s = torch.cat([(u[i] * v[i]).sum(1) for i in parts(len(x), WIDTH)])
        ctx.save_for_backward(x, y, a, b)
        return s

    @staticmethod
    @gradient
    def backward(ctx, g: Tensor):
        x, y, a, b = ctx.saved_tensors
        dx, dy = torch.empty_like(x), torch.empty_like(y)
        for i in parts(len(x), WIDTH):
            u, v = x[i] * a[i, None], y[i] * b[i, None]
            s = (u * v).sum(1, keepdim=True)
            dx[i] = (g[i] * a[i])[:, None] * (v - u * s)
            dy[i] = (g[i] * b[i])[:, None] * (u - v * s)
        return dx, dy


def check_tau(tau: float | Tensor) -> None:
    """Raises `NotanError` unless the temperature is one number above 0."""
    value = torch.as_tensor(tau).detach()
    if value.numel() != 1 or not 0 < float(value) < torch.inf:
        raise NotanError(f"tau = {value.tolist()}", "a temperature above 0", "correct it")


def inverse_lengths(x: Tensor) -> Tensor:
    """1 / |x_i|, and 0 for a zero vector: (N, D) to (N,)."""
    n = torch.cat([x[i].to(wide(x)).norm(dim=1) for i in parts(len(x), WIDTH)])
    return torch.where(n == 0, 0, 1 / n)


def wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
