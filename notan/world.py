"""Ranks: gather, sum and mean with exact gradients. The only importer of torch.distributed.

One convention makes the rest simple. In training every rank computes the *same global loss* L, and the backward of a
sum over ranks is a sum over ranks. A parameter's gradient on one rank is then `size` times that rank's share of dL, and
the average that DDP takes over ranks is dL exactly, however uneven the ranks are.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor


def active() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    return dist.get_rank() if active() else 0


def size() -> int:
    return dist.get_world_size() if active() else 1


def is_main() -> bool:
    return rank() == 0


def asked() -> int:
    """How many processes the launcher was asked for (torchrun and accelerate set WORLD_SIZE; 1 otherwise)."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def barrier() -> None:
    if active():
        dist.barrier()


def total(x: Tensor) -> Tensor:
    """Sum of `x` over ranks, the same shape on each; its gradient is summed over ranks too."""
    return _Total.apply(x) if active() else x


def mean(sum: Tensor, count: Tensor | float) -> Tensor:
    """Global sum over global count: the only right way to average rows, tokens or pairs that ranks hold unevenly.

    A global count of zero gives 0 with zero gradient. Half precision is summed over ranks and divided in float32.
    """
    sum = sum.float() if sum.dtype in (torch.float16, torch.bfloat16) else sum
    rows = total(torch.as_tensor(count, dtype=sum.dtype, device=sum.device).detach())
    return total(sum) / torch.where(rows > 0, rows, 1)                  # not a clamp: 0 * (1 / tiny) may overflow to NaN


def gather(x: Tensor) -> Tensor:
    """Rows (n_r, ...) of all ranks in rank order, (sum n_r, ...); ranks may hold different numbers of rows."""
    return _Gather.apply(x) if active() else x


def gather_plain(x: Tensor) -> Tensor:
    """`gather` without a gradient, for what a step stores: queues, banks, statistics. Any dtype."""
    return _rows(x.detach(), _counts(x)) if active() else x.detach()


def ring(x: Tensor) -> Iterator[tuple[int, Tensor]]:
    """(rank, its rows) for every rank, this one's first, then those before it: each rank's rows are handed on, so that no
    rank holds the rows of all. Gradients go back the way the rows came. Every rank must read it to its end.
    """
    counts = _counts(x) if active() else [len(x)]
    for step in range(size()):
        owner = (rank() - step) % size()
        yield owner, x
        if step + 1 < size():
            x = _Hand.apply(x, counts[owner], counts[owner - 1])


def offset(rows: int) -> int:
    """Where this rank's rows start in a gathered tensor, when it holds `rows` of them."""
    if not active():
        return 0
    counts = _counts(torch.empty(rows, 0))
    return sum(counts[: rank()])


def any_rank(flag: bool) -> bool:
    """True on every rank when it is true on one: so that all stop together."""
    if not active():
        return flag
    x = torch.tensor(float(flag), device=_device())
    dist.all_reduce(x, op=dist.ReduceOp.MAX)
    return bool(x.item())


def broadcast_object(value: object) -> object:
    """Rank 0's picklable value on every rank."""
    if not active():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        y = x.detach().clone().contiguous()
        dist.all_reduce(y)
        return y

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        g = grad.clone().contiguous()
        dist.all_reduce(g)
        return g


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.counts = _counts(x)
        return _rows(x.detach(), ctx.counts)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        g = grad.clone().contiguous()
        dist.all_reduce(g)                                              # gloo has no reduce_scatter
        start = sum(ctx.counts[: rank()])
        return g[start : start + ctx.counts[rank()]]


class _Hand(torch.autograd.Function):
    """Rows go to the next rank, those of the one before come; gradients the other way."""

    @staticmethod
    def forward(ctx, x: Tensor, mine: int, theirs: int) -> Tensor:
        ctx.mine = mine
        return _exchange(x, theirs, 1)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return _exchange(grad, ctx.mine, -1), None, None


def _exchange(x: Tensor, rows: int, step: int) -> Tensor:
    """Send `x` that many ranks on, and receive as many rows as the rank that many before sends."""
    x, got = x.detach().contiguous(), x.new_empty(rows, *x.shape[1:])
    to, source = (rank() + step) % size(), (rank() - step) % size()
    for work in dist.batch_isend_irecv([dist.P2POp(dist.isend, x, to), dist.P2POp(dist.irecv, got, source)]):
        work.wait()
    return got


def _device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


def _counts(x: Tensor) -> list[int]:
    mine = torch.tensor([x.shape[0]], device=_device())
    counts = [torch.empty_like(mine) for _ in range(size())]
    dist.all_gather(counts, mine)
    return [int(c) for c in counts]


def _rows(x: Tensor, counts: list[int]) -> Tensor:
    padded = x.new_zeros(max(counts), *x.shape[1:])                     # all_gather wants equal shapes
    padded[: x.shape[0]] = x
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([p[:n] for p, n in zip(parts, counts)])
