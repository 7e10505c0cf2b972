"""Views keep their precision inside a training step's autocast: bfloat16 would move pixels, places and matches."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def exact(function: Callable[Concatenate[Tensor, P], R]) -> Callable[Concatenate[Tensor, P], R]:
    """`function` without gradients and without autocast on the device of its first argument."""

    @wraps(function)
    def computed(first: Tensor, *rest: P.args, **named: P.kwargs) -> R:
        with torch.no_grad(), torch.autocast(first.device.type, enabled=False):
            return function(first, *rest, **named)

    return computed
