"""The two kernels of `fused`, in Triton. A program has a block of BN rows, with all their numbers, and goes over the columns.

x (N, D) and y (M, D) lie row after row in half precision; a (N,) and b (M,) are their factors in float32, so that a logit is
a_i b_j x_i . y_j. WIDE is the power of two that holds D.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def log_sums(x, y, a, b, out, N, M, D, WIDE: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr):
    """out_i = log of the sum over j of exp(logit), by a running maximum."""
    i, e = tl.program_id(0) * BN + tl.arange(0, BN), tl.arange(0, WIDE)
    xi = tl.load(x + i[:, None].to(tl.int64) * D + e[None, :], mask=(i < N)[:, None] & (e < D)[None, :], other=0.0)
    ai = tl.load(a + i, mask=i < N, other=0.0)
    most = tl.full((BN,), float("-inf"), tl.float32)
    total = tl.zeros((BN,), tl.float32)
    for start in range(0, M, BM):
        j = start + tl.arange(0, BM)
        yj = tl.load(y + j[:, None].to(tl.int64) * D + e[None, :], mask=(j < M)[:, None] & (e < D)[None, :], other=0.0)
        bj = tl.load(b + j, mask=j < M, other=0.0)
        s = tl.where((j < M)[None, :], tl.dot(xi, tl.trans(yj)) * ai[:, None] * bj[None, :], float("-inf"))
        higher = tl.maximum(most, tl.max(s, 1))
        total = total * tl.exp(most - higher) + tl.sum(tl.exp(s - higher[:, None]), 1)
        most = higher
    tl.store(out + i, most + tl.log(total), mask=i < N)


@triton.jit
def pulls(x, y, a, b, r, g, c, h, out, N, M, D, WIDE: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr, BY_ROWS: tl.constexpr,
          BY_COLUMNS: tl.constexpr):
    """out_i = the sum over j of (g_i exp(logit - r_i) + h_j exp(logit - c_j)) b_j y_j, of the two parts those that are asked."""
    i, e = tl.program_id(0) * BN + tl.arange(0, BN), tl.arange(0, WIDE)
    here = (i < N)[:, None] & (e < D)[None, :]
    at = i[:, None].to(tl.int64) * D + e[None, :]
    xi = tl.load(x + at, mask=here, other=0.0)
    ai = tl.load(a + i, mask=i < N, other=0.0)
    if BY_ROWS:
        ri, gi = tl.load(r + i, mask=i < N, other=0.0), tl.load(g + i, mask=i < N, other=0.0)
    pull = tl.zeros((BN, WIDE), tl.float32)
    for start in range(0, M, BM):
        j = start + tl.arange(0, BM)
        yj = tl.load(y + j[:, None].to(tl.int64) * D + e[None, :], mask=(j < M)[:, None] & (e < D)[None, :], other=0.0)
        bj = tl.load(b + j, mask=j < M, other=0.0)
        s = tl.where((j < M)[None, :], tl.dot(xi, tl.trans(yj)) * ai[:, None] * bj[None, :], float("-inf"))
        w = tl.zeros((BN, BM), tl.float32)
        if BY_ROWS:
            w += gi[:, None] * tl.exp(s - ri[:, None])
        if BY_COLUMNS:
            cj, hj = tl.load(c + j, mask=j < M, other=0.0), tl.load(h + j, mask=j < M, other=0.0)
            w += hj[None, :] * tl.exp(s - cj[None, :])
        pull = tl.dot(w * bj[None, :], yj.to(tl.float32), pull, input_precision="tf32")
    tl.store(out + at, pull, mask=here)
