"""Pixels on their way into an encoder, and patches of pixels: normalise, check, patchify, unpatchify."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from notan.errors import NotanError


class Normalise(nn.Module):
    """(pixels - mean) / std per channel, in the module's dtype. Both are in the config, not in the weights."""

    mean: Tensor
    std: Tensor

    def __init__(self, image_size: int, channels: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.shape = (channels, image_size, image_size)
        for name, values in (("mean", mean), ("std", std)):
            if len(values) not in (1, channels):
                raise NotanError(f"{name} has {len(values)} values for {channels} channels", "one value per channel")
            self.register_buffer(name, torch.tensor(values).float().view(-1, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:                        # (B, C, S, S) in [0, 1] -> the same shape
        if tuple(pixels.shape[1:]) != self.shape:
            raise NotanError(f"the encoder was given images of shape {tuple(pixels.shape[1:])}", f"{self.shape}",
                             "resize the views, or build the encoder for this size")
        return self.per_channel(pixels)

    def per_channel(self, pixels: Tensor) -> Tensor:
        """The same for images of another size: patches, crops."""
        if not pixels.is_floating_point():
            raise NotanError(f"the encoder was given {pixels.dtype} pixels", "floats in [0, 1]",
                             "convert with views.geometry.floats")
        return (pixels.to(self.mean.dtype) - self.mean) / self.std

    def undo(self, x: Tensor) -> Tensor:
        """Normalised values (B, C, ., .) back to pixels in [0, 1]."""
        return x * self.std + self.mean


def patchify(images: Tensor, patch: int) -> Tensor:
    """Images (B, C, H, W) to patches (B, N, patch * patch * C) in raster order; in a patch (row, column, channel)."""
    B, C, H, W = images.shape
    x = images.reshape(B, C, H // patch, patch, W // patch, patch)      # (B, C, h, p, w, p)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(B, -1, patch * patch * C)


def unpatchify(patches: Tensor, patch: int, grid: tuple[int, int]) -> Tensor:
    """The inverse of `patchify`: (B, h * w, patch * patch * C) to (B, C, h * patch, w * patch)."""
    h, w = grid
    x = patches.unflatten(2, (patch, patch, -1)).unflatten(1, (h, w))   # (B, h, w, p, p, C)
    return x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
