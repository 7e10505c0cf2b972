"""Momentum teachers: a frozen copy that follows its student (He et al. 2020; Grill et al. 2020)."""

from __future__ import annotations

import copy
import math
from typing import TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


def teacher(module: M) -> M:
    """A copy of `module` that takes no gradient. It stays in the mode (train or eval) its owner puts it in."""
    return copy.deepcopy(module).requires_grad_(False)                  # type: ignore[return-value]


@torch.no_grad()
def ema_(teacher: nn.Module, student: nn.Module, decay: float) -> None:
    """teacher <- decay * teacher + (1 - decay) * student, for parameters; buffers are left alone."""
    torch._foreach_lerp_(list(teacher.parameters()), [p.detach() for p in student.parameters()], 1 - decay)


@torch.no_grad()
def copy_buffers_(teacher: nn.Module, student: nn.Module) -> None:
    """teacher's buffers (running statistics) <- student's."""
    for t, s in zip(teacher.buffers(), student.buffers(), strict=True):
        t.copy_(s)


def cosine_decay(base: float, fraction: float) -> float:
    """1 - (1 - base) (cos(pi fraction) + 1) / 2: from `base` at 0 to 1 at the end (BYOL, section 3.2)."""
    return 1 - (1 - base) * (math.cos(math.pi * fraction) + 1) / 2
