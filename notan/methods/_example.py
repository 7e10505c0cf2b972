"""A small valid batch of images for the methods' `example`s."""

from __future__ import annotations

import torch
from torch import Tensor

from notan.views.random import fold


def images(rows: int, size: int = 16, channels: int = 3, classes: int = 3) -> dict[str, Tensor]:
    """Random pictures uint8 (rows, channels, size, size) with labels, row numbers and keys; always the same ones."""
    row = torch.arange(rows)
    image = torch.randint(0, 256, (rows, channels, size, size), generator=torch.Generator().manual_seed(0))
    return {"image": image.to(torch.uint8), "label": row % classes, "row": row, "key": fold(row, 7)}
