"""Softmax contrast of two sets of vectors in fixed memory: what the losses of any batch size rest on.

The logits of N queries against M keys are never there at once; they are made a tile at a time and thrown away. Where whole
rows of logits fit a tile, the gradient is taken while the tile is there: three products of the size N M D in all, as many
as with all logits in memory. Where the keys are too many for that, or the rows turn out to count unequally, the backward
pass makes the tiles again: four products. Half precision is computed in float32; on a GPU see `fused`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import wraps

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from notan.errors import NotanError
from notan.losses import fused

TILE = 1 << 22                                                          # logits held at once: 16 MB in float32
LEAST, WIDTH = 64, 2048                                                 # rows of a tile of whole rows; columns of one product
MILD = 40.0                                                             # logits whose exponentials need no maximum taken off
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
        on_chip = edit is None and fused.pays(q, k)
        base = base_of(tau) if edit is None and not on_chip else 1.0    # an edit may add to logits
        x, y = Scaled(q, a / tau * base), Scaled(k, b)
        ahead = any(ctx.needs_input_grad) and not on_chip and len(k) * min(LEAST, len(q)) <= tile
        lse, own, dx, dy = (whole_rows if ahead else online)(x, y, positive, edit, tile, base)
        ctx.positive, ctx.edit, ctx.tile, ctx.base = positive, edit, tile, base
        ctx.ahead = (dx, dy)                                            # for one backward pass, which writes over it
        ctx.save_for_backward(q, k, tau, a, b, lse)
        return lse - own

    @staticmethod
    @gradient
    def backward(ctx, g: Tensor):
        q, k, tau, a, b, lse = ctx.saved_tensors
        (dx, dy), ctx.ahead = ctx.ahead, (None, None)
        if dx is not None and bool((g == g[0]).all()):                  # a sum or a mean of rows
            scale = g[0]
        else:
            scale, g = torch.ones_like(tau), g.to(lse.dtype)
            x, y = Scaled(q, a / tau * ctx.base), Scaled(k, b)
            dx, dy = gradients(x, y, lse, g, ctx.positive, ctx.edit, ctx.tile, ctx.base)
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


def base_of(tau: Tensor) -> float:
    """What logits are multiplied by. log2 e where none can be so large, or so small, that sums of exponentials overflow or
    vanish: no maximum is taken off then, and 2^x takes half the time of e^x. 1 where e^x is taken of logits less their maximum.
    """
    return math.log2(math.e) if float(tau) * MILD >= 1 else 1.0


def whole_rows(x: Scaled, y: Scaled, positive: Tensor | None, edit: Edit | None, tile: int, base: float) -> tuple[Tensor, ...]:
    """log-sum-exp of each row, its positive's logit or 0, and the gradients of their differences' sum to x / base and y.

    base: what x is multiplied by, see `base_of`.
    """
    lse, own, dx, dy = x.empty(len(x)), x.empty(len(x)).zero_(), x.empty(*x.x.shape), y.zeros()
    room = x.empty(max(1, min(len(x), tile // len(y))), len(y))
    columns = y[:] if len(y) <= WIDTH else y                            # few enough to be made once
    for rows in parts(len(x), len(room)):
        xi, d = x[rows], dx[rows]
        e = room[: len(xi)]
        for j in parts(len(y), WIDTH):
            torch.mm(xi, columns[j].T, out=e[:, j])
        at = None if positive is None else positive[rows, None]
        if at is not None:
            own[rows] = e.gather(1, at).squeeze(1) / base
        if edit is not None:
            edit(e, rows, slice(0, len(y)))
        most = finite(e.amax(1)) if base == 1 else torch.zeros_like(lse[rows])
        total = (e.sub_(most[:, None]).exp_() if base == 1 else e.exp2_()).sum(1)
        lse[rows] = total.log() + most
        whole = torch.where(total == 0, 1, total)[:, None]              # 0 where there is no pair
        if at is not None:
            e.scatter_add_(1, at, -whole)
        share = 1 / whole
        xi *= share / base
        for j in parts(len(y), WIDTH):
            d.addmm_(e[:, j], columns[j], beta=int(j.start > 0))        # 0: what is there is not read
            dy[j].addmm_(e[:, j].T, xi, beta=int(rows.start > 0))
        d *= share
    return lse, own, dx, dy


def online(x: Scaled, y: Scaled, positive: Tensor | None, edit: Edit | None, tile: int,
           base: float) -> tuple[Tensor, Tensor, None, None]:
    """log-sum-exp of each row and its positive's logit or 0, from tiles that hold a part of a row."""
    own = x.empty(len(x)).zero_() if positive is None else paired(x, y, positive) / base
    if edit is None and fused.pays(x.x, y.x):
        return fused.log_sums(x, y), own, None, None
    lse = x.empty(len(x)).fill_(-torch.inf)
    n = max(1, tile // WIDTH)
    room = room_for(x, y, n, WIDTH)
    for rows in parts(len(x), n):
        xi = x[rows]
        for columns in parts(len(y), WIDTH):
            s = made(xi, y[columns], edit, rows, columns, room)
            lse[rows] = torch.logaddexp(lse[rows], s.logsumexp(1) if base == 1 else s.exp2_().sum(1).log_())
    return lse, own, None, None


def paired(x: Scaled, y: Scaled, positive: Tensor) -> Tensor:
    """Logits of positives: (N,)."""
    return torch.cat([x.empty(0), *((x[i] * y[positive[i]]).sum(1) for i in parts(len(x), WIDTH))])


def gradients(x: Scaled, y: Scaled, lse: Tensor, g: Tensor, positive: Tensor | None, edit: Edit | None,
              tile: int, base: float) -> tuple[Tensor, Tensor]:
    """The gradients of the sum of g_i (lse_i - own_i) with respect to x / base and y."""
    if edit is None and fused.pays(x.x, y.x):
        dx, dy = fused.pulls(x, y, lse, g, None, None), fused.pulls(y, x, None, None, lse, g)
    else:
        dx, dy = pulls(x, y, finite(lse), g, edit, tile, base)
    if positive is not None:
        for rows in parts(len(x), WIDTH):
            dx[rows] -= y[positive[rows]] * g[rows, None]
            dy.index_add_(0, positive[rows], x[rows] * g[rows, None], alpha=-1 / base)
    return dx, dy


def pulls(x: Scaled, y: Scaled, lse: Tensor, g: Tensor, edit: Edit | None, tile: int, base: float) -> tuple[Tensor, Tensor]:
    """The gradients of the sum of g_i lse_i with respect to x / base and y."""
    dx, dy = x.zeros(), y.zeros()
    count = g if base == 1 else (-lse).exp() * g
    n = max(1, tile // WIDTH)
    room = room_for(x, y, n, WIDTH)
    for rows in parts(len(x), n):
        xi, d = x[rows], dx[rows]
        for columns in parts(len(y), WIDTH):
            yj = y[columns]
            s = made(xi, yj, edit, rows, columns, room)
            p = (s.sub_(lse[rows, None]).exp_() if base == 1 else s.exp2_()).mul_(count[rows, None])
            d.addmm_(p, yj)
            dy[columns].addmm_(p.T, xi, alpha=1 / base)
    return dx, dy


def tangent(d: Tensor, x: Tensor, a: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of vectors x from d, that of their directions u = a x: scale a (d - u (u . d)); and the sum of scale u . d.

    It is written over d, where x is of d's dtype.
    """
    out, along = d if d.dtype == x.dtype else torch.empty_like(x), torch.zeros_like(scale)
    for i in parts(len(x), WIDTH):
        dot = (x[i] * d[i]).sum(1) * a[i]
        out[i] = torch.addcmul(d[i], x[i].to(d.dtype), (a[i] * dot)[:, None], value=-1).mul_((scale * a[i])[:, None])
        along += scale * dot.sum()
    return out, along


def room_for(x: Scaled, y: Scaled, rows: int, columns: int) -> Tensor:
    """For the numbers of a tile of at most so many rows and columns, flat: one after the other are written there."""
    return x.empty(min(len(x), rows) * min(len(y), columns))


def made(x: Tensor, y: Tensor, edit: Edit | None, rows: slice, columns: slice, room: Tensor) -> Tensor:
    """A tile of logits, written to `room`, flat and as long or longer."""
    s = torch.mm(x, y.T, out=room[: len(x) * len(y)].view(len(x), len(y)))
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
