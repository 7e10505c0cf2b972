"""Encoders of rows of numbers and of series of them: a perceptron, and convolutions over time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from notan.errors import NotanError


class Standardise(nn.Module):
    """(x - centre) / spread of each number (the last axis). Both are in the config, not in the weights."""

    centre: Tensor
    spread: Tensor

    def __init__(self, width: int, centre: Sequence[float], spread: Sequence[float]) -> None:
        super().__init__()
        self.width = width
        for name, values in (("centre", centre), ("spread", spread)):
            if len(values) not in (1, width):
                raise NotanError(f"{name} has {len(values)} values for {width} numbers", "one for each")
            self.register_buffer(name, torch.tensor(values).float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:                             # (..., width)
        if x.shape[-1] != self.width:
            raise NotanError(f"the encoder was given rows of {x.shape[-1]} numbers", f"{self.width}",
                             "the columns that it was trained on, or an encoder built for these")
        return (x.to(self.centre.dtype) - self.centre) / self.spread


class Table(nn.Module):
    """A `NumberEncoder` of `features`: standardised, then Linear and ReLU for each hidden width.

    width: numbers in a row. hidden: widths of the layers; the last is `dim`.
    """

    def __init__(self, width: int, hidden: Sequence[int] = (256, 256), *, centre: Sequence[float] = (0.0,),
                 spread: Sequence[float] = (1.0,)) -> None:
        super().__init__()
        if not hidden:
            raise NotanError("a table encoder without layers", "at least one width", "write table:hidden=[256,256]")
        self.config: dict[str, Any] = {"name": "table", "width": width, "hidden": list(hidden), "centre": list(centre),
                                       "spread": list(spread)}
        self.width, self.dim = width, hidden[-1]
        self.standardise = Standardise(width, centre, spread)
        self.layers = nn.Sequential(*[part for i, o in pairwise([width, *hidden]) for part in (nn.Linear(i, o), nn.ReLU())])

    def features(self, x: Tensor, length: Tensor | None = None) -> Tensor:
        """(B, F) to (B, D)."""
        return self.layers(self.standardise(x))

    def forward(self, x: Tensor, length: Tensor | None = None) -> Tensor:
        return self.features(x)


class Series(nn.Module):
    """A `NumberEncoder` of `series`: standardised, convolutions over time with ReLU, the mean over the steps there are.

    width: numbers in a step. widths: channels of the convolutions; the last is `dim`. kernel: steps each one sees, odd.
    """

    def __init__(self, width: int, widths: Sequence[int] = (64, 128, 256), kernel: int = 5, *, centre: Sequence[float] = (0.0,),
                 spread: Sequence[float] = (1.0,)) -> None:
        super().__init__()
        if not widths or kernel % 2 == 0:
            raise NotanError(f"widths={list(widths)}, kernel={kernel}", "at least one width, and an odd kernel",
                             "write series:widths=[64,128],kernel=5")
        self.config: dict[str, Any] = {"name": "series", "width": width, "widths": list(widths), "kernel": kernel,
                                       "centre": list(centre), "spread": list(spread)}
        self.width, self.dim = width, widths[-1]
        self.standardise = Standardise(width, centre, spread)
        self.convolutions = nn.ModuleList([nn.Conv1d(i, o, kernel, padding=kernel // 2) for i, o in pairwise([width, *widths])])

    def features(self, x: Tensor, length: Tensor | None = None) -> Tensor:
        """(B, T, C), or (B, T) of one number a step, with `length` (B,) of each row where they differ, to (B, D).

        What stands after a row's end is not seen: features do not depend on how far it was padded.
        """
        x = x if x.ndim == 3 else x[..., None]
        steps = torch.arange(x.shape[1], device=x.device)
        there = steps < (torch.full((len(x),), x.shape[1], device=x.device) if length is None else length)[:, None]
        there = there[:, None].to(self.standardise.centre.dtype)        # (B, 1, T)
        z = self.standardise(x).mT * there                              # (B, C, T)
        for convolution in self.convolutions:
            z = F.relu(convolution(z)) * there
        return z.sum(2) / there.sum(2).clamp(min=1)

    def forward(self, x: Tensor, length: Tensor | None = None) -> Tensor:
        return self.features(x, length)
