"""The contrast of half-precision vectors on a GPU, in Triton: no tile of logits leaves the chip.

In float32 a GPU spends its time in the products, and writing tiles of logits costs little beside them. In half precision the
products are several times faster and the logits would take most of the time: here a block of rows meets the columns block by
block, in registers. Products of half-precision vectors are summed in float32 and scaled after, so the logits are as exact as
those of `tiles`; a pair's share of the gradient is rounded to TF32 (10 bits) before it meets its vector. Only plain contrast is
here: where pairs are left out or weighed, and for vectors of more than MOST numbers, `tiles` does it.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from notan.losses.tiles import Scaled

MOST = 1024                                                             # numbers of a vector
HALF = (torch.float16, torch.bfloat16)


def pays(x: Tensor, y: Tensor) -> bool:
    """Whether vectors (N, D) and (M, D) are contrasted here: of one half precision, on a GPU, with Triton installed."""
    return x.is_cuda and x.dtype == y.dtype and x.dtype in HALF and x.shape[1] <= MOST and has_triton()


@cache
def has_triton() -> bool:
    return find_spec("triton") is not None


def log_sums(x: Scaled, y: Scaled) -> Tensor:
    """log of the sum over j of exp(x_i . y_j): (N,), float32."""
    from notan.losses import kernels

    out, shape = x.empty(len(x)), blocks(x.x.shape[1])
    kernels.log_sums[(-(-len(x) // shape["BN"]),)](
        x.x.contiguous(), y.x.contiguous(), x.factor, y.factor, out, len(x), len(y), x.x.shape[1], **shape)
    return out


def pulls(x: Scaled, y: Scaled, r: Tensor | None, g: Tensor | None, c: Tensor | None, h: Tensor | None) -> Tensor:
    """The sum over j of (g_i exp(x_i . y_j - r_i) + h_j exp(x_i . y_j - c_j)) y_j: (N, D), float32.

    r and g (N,) are of the rows, c and h (M,) of the columns; a pair that is None is left out.
    """
    from notan.losses import kernels

    out, shape = x.empty(*x.x.shape), blocks(x.x.shape[1])
    pairs = [x.factor if t is None else t.contiguous() for t in (r, g, c, h)]                   # of None nothing is read
    kernels.pulls[(-(-len(x) // shape["BN"]),)](
        x.x.contiguous(), y.x.contiguous(), x.factor, y.factor, *pairs, out, len(x), len(y), x.x.shape[1],
        BY_ROWS=r is not None, BY_COLUMNS=c is not None, **shape)
    return out


def blocks(d: int) -> dict[str, int]:
    """Rows and columns of a block for vectors of `d` numbers, so that it fits 99 KB of shared memory."""
    wide = max(16, 1 << (d - 1).bit_length())
    return {"WIDE": wide, "BN": max(16, min(64, 16384 // wide)), "BM": 32 if wide <= 512 else 16,
            "num_warps": 8 if wide > 128 else 4}
