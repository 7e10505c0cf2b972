"""Batch norm over the *global* batch, so that N ranks train as one does (Ioffe and Szegedy 2015).

torch's SyncBatchNorm does not run on CPU, and here the sums go through `world.total`, whose gradient is exact. On one
rank this is nn.BatchNorm itself; names of parameters and buffers are the same.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from notan import world
from notan.errors import NotanError


class GlobalBatchNorm1d(nn.BatchNorm1d):
    """nn.BatchNorm1d with the statistics of the rows of all ranks: (B, D) or (B, D, L)."""

    def forward(self, input: Tensor) -> Tensor:
        return _batch_norm(self, input)


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d with the statistics of the rows of all ranks: (B, D, H, W)."""

    def forward(self, input: Tensor) -> Tensor:
        return _batch_norm(self, input)


def globalise(module: nn.Module) -> nn.Module:
    """Make every nn.BatchNorm1d/2d inside a foreign module global, in place; weights and names stay."""
    for part in module.modules():
        if type(part) is nn.BatchNorm1d:
            part.__class__ = GlobalBatchNorm1d
        elif type(part) is nn.BatchNorm2d:
            part.__class__ = GlobalBatchNorm2d
    return module


def has_batch_statistics(module: nn.Module) -> bool:
    """Whether a row's output depends on the other rows of its batch in training."""
    return bool(batch_norms(module))


def batch_norms(module: nn.Module) -> list[str]:
    """Names of the parts that are batch norms."""
    return [name for name, part in module.named_modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]


def _batch_norm(norm: nn.BatchNorm1d | nn.BatchNorm2d, x: Tensor) -> Tensor:
    if not world.active() or (not norm.training and norm.running_mean is not None):
        if norm.training and x.numel() == x.shape[1]:
            raise _too_few()
        return nn.modules.batchnorm._BatchNorm.forward(norm, x)         # the rows here are all rows
    dims = [d for d in range(x.dim()) if d != 1]
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    count = world.total(wide.new_tensor(float(x.numel() // x.shape[1])))
    if count <= 1:
        raise _too_few()
    mean = world.total(wide.sum(dims)) / count                          # (D,)
    shape = [-1 if d == 1 else 1 for d in range(x.dim())]
    centred = wide - mean.view(shape)
    var = world.total(centred.square().sum(dims)) / count               # (D,), biased
    _update_running(norm, mean.detach(), var.detach() * count / (count - 1))
    y = centred * torch.rsqrt(var + norm.eps).view(shape)
    if norm.weight is not None:
        y = y * norm.weight.view(shape) + norm.bias.view(shape)
    return y.to(x.dtype)


@torch.no_grad()
def _update_running(norm: nn.BatchNorm1d | nn.BatchNorm2d, mean: Tensor, var: Tensor) -> None:
    if not norm.training or norm.running_mean is None or norm.running_var is None:
        return
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    share = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), share)
    norm.running_var.lerp_(var.to(norm.running_var.dtype), share)


def _too_few() -> NotanError:
    return NotanError("batch norm was given one value per channel", "two over all ranks", "raise the batch size")
