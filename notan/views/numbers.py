"""A view of a row of numbers, or of a series of them: a little noise, and some numbers hidden."""

from __future__ import annotations

from torch import Tensor

from notan.views import random


def noisy(x: Tensor, key: Tensor, *, centre: Tensor, spread: Tensor, noise: float, hide: float) -> Tensor:
    """Each number plus `noise` of its deviation over the data, or, with probability `hide`, its mean over the data instead.

    x: (B, F) or (B, T, C), with key int64 (B,), and centre and spread of the last axis. What a step of a series becomes does
    not depend on how far the row is padded.
    """
    x, n = x.to(centre.dtype), x[0].numel()
    moved = x + noise * spread * random.normal(key, "noise", n).view_as(x).to(x)
    hidden = (random.uniform(key, "hide", n) < hide).view_as(x)
    return moved.where(~hidden, centre)
