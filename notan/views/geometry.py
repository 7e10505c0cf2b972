"""Crops and resizes: one separable, antialiased resampling whose affine map stays with the view.

Images are (B, C, H, W). Coordinates are relative, with the edges of the image at 0 and 1 (the first pixel's centre is
at 0.5 / W), and come as (x, y). No function here carries gradients.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from notan.errors import NotanError
from notan.views._exact import exact
from notan.views.parts import parts
from notan.views.random import integers, uniform

_TRIES = 10  # candidates of a random crop before the fallback, as in torchvision


class View(NamedTuple):
    """Pixels (B, C, S, S) in [0, 1], and the map that made them.

    `affine` (B, 2, 3) takes (u, v, 1) of the view to (x, y) of the image; a flip is a negative scale.
    """

    pixels: Tensor
    affine: Tensor


def floats(images: Tensor) -> Tensor:
    """uint8 pixels as float32 in [0, 1]; floating images as they are."""
    return images if images.is_floating_point() else images.float().mul_(1 / 255)


def crop_boxes(
    key: Tensor,
    *,
    height: int,
    width: int,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Tensor:
    """Boxes (B, 4) float32 as x0, y0, x1, y1 for a random resized crop of images of this height and width in pixels.

    Area is uniform in `scale` (share of the image), width/height log-uniform in `ratio`, the box whole pixels and
    uniform in place; after ten boxes too large, the largest centred box within `ratio` (Szegedy et al. 2015,
    arXiv:1409.4842, section 6; the details are torchvision's RandomResizedCrop).
    """
    if not 0 < scale[0] <= scale[1] <= 1 or not 0 < ratio[0] <= ratio[1]:
        wanted = "0 < scale[0] <= scale[1] <= 1 and 0 < ratio[0] <= ratio[1]"
        raise NotanError(f"crop scale {scale}, ratio {ratio}", wanted)
    area = uniform(key, "crop area", _TRIES, *scale) * (height * width)  # (B, tries)
    aspect = uniform(key, "crop ratio", _TRIES, math.log(ratio[0]), math.log(ratio[1])).exp()
    w, h = (area * aspect).sqrt_().round_(), (area / aspect).sqrt_().round_()
    fits = (w >= 1) & (w <= width) & (h >= 1) & (h <= height)
    first = fits.byte().argmax(dim=1, keepdim=True)  # the first that fits
    none = ~fits.any(dim=1)
    w = w.gather(1, first)[:, 0].masked_fill(none, min(width, round(height * ratio[1])))
    h = h.gather(1, first)[:, 0].masked_fill(none, min(height, round(width / ratio[0])))
    place = uniform(key, "crop place", 2)
    x = torch.where(none, (width - w).div(2).floor(), (place[:, 0] * (width - w + 1)).floor())
    y = torch.where(none, (height - h).div(2).floor(), (place[:, 1] * (height - h + 1)).floor())
    return torch.stack([x / width, y / height, (x + w) / width, (y + h) / height], dim=1)


def box_affine(boxes: Tensor, flip: Tensor | None = None) -> Tensor:
    """The affine (B, 2, 3) of boxes (B, 4), mirrored left to right where `flip` (B,) bool is True."""
    x0, y0, x1, y1 = boxes.unbind(1)
    affine = boxes.new_zeros(len(boxes), 2, 3)
    affine[:, 0, 0], affine[:, 0, 2] = x1 - x0, x0
    affine[:, 1, 1], affine[:, 1, 2] = y1 - y0, y0
    if flip is not None:
        affine[:, 0, 0] = torch.where(flip, x0 - x1, x1 - x0)
        affine[:, 0, 2] = torch.where(flip, x1, x0)
    return affine


def _sampling(scale: Tensor, start: Tensor, size: int, length: int) -> Tensor:
    """Weights (B, size, length) of one axis: output pixel i reads the interval start + scale * [i, i + 1] / size.

    A triangle as wide as the output pixel, and at least as an input pixel, over the input pixels the interval
    start + scale * [0, 1] touches: for whole-pixel boxes this is crop, then resize with antialiasing.
    """
    step = scale * (length / size)  # (B,) input pixels per output pixel, negative when flipped
    at = torch.arange(size, dtype=scale.dtype, device=scale.device) + 0.5
    pixel = torch.arange(length, dtype=scale.dtype, device=scale.device) + 0.5
    low, high = torch.minimum(start, start + scale) * length, torch.maximum(start, start + scale) * length
    outside = (pixel < low[:, None] - 0.4999) | (pixel > high[:, None] + 0.4999)  # 1e-4 of a pixel forgives rounding
    width = step.abs().clamp(min=1)[:, None]
    centre = torch.addcmul((start * length)[:, None], step[:, None], at) / width  # (B, size)
    reach = pixel.div(width).masked_fill_(outside, torch.inf)  # (B, length)
    weight = (reach[:, None] - centre[:, :, None]).abs_().sub_(1).clamp_(max=0)  # (B, size, length), <= 0
    return weight.div_(weight.sum(dim=2, keepdim=True))


def separable(images: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """down @ image @ across^T for each row and channel: (B, C, H, W), (B, h, H), (B, w, W) -> (B, C, h, w)."""
    b, c, h, w = images.shape
    rows = images.reshape(b, c * h, w) @ across.mT  # (B, C*H, w)
    return down[:, None] @ rows.view(b, c, h, across.shape[1])


@exact
def resample(images: Tensor, affine: Tensor, size: int) -> Tensor:
    """Pixels (B, C, size, size) that `affine` (B, 2, 3) without shear reads from images, uint8 or floating."""
    if images.ndim != 4 or affine.shape != (len(images), 2, 3):
        raise NotanError(f"images {tuple(images.shape)}, maps {tuple(affine.shape)}", "(B, C, H, W) and (B, 2, 3)")
    b, c, h, w = images.shape
    out = torch.empty(b, c, size, size, dtype=floats(images[:0]).dtype, device=images.device)
    for some, maps, target in zip(*(parts(x, c * h * w) for x in (images, affine, out))):
        across = _sampling(maps[:, 0, 0], maps[:, 0, 2], size, w)  # (b, S, W)
        down = _sampling(maps[:, 1, 1], maps[:, 1, 2], size, h)  # (b, S, H)
        target.copy_(separable(floats(some), down.to(out.dtype), across.to(out.dtype)))
    return out


def crop(images: Tensor, boxes: Tensor, flip: Tensor | None, size: int) -> View:
    """The boxes (B, 4) of images (uint8, or floating in [0, 1]) at size x size, mirrored where `flip` (B,) is True."""
    affine = box_affine(boxes, flip)
    return View(resample(images, affine, size), affine)


@exact
def resize(images: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Whole images at size x size, or (height, width), antialiased; the shape is not kept in proportion."""
    height, width = (size, size) if isinstance(size, int) else size
    pixels = floats(images)
    if pixels.shape[2:] == (height, width):
        return pixels
    one, zero = pixels.new_ones(1), pixels.new_zeros(1)
    down, across = _sampling(one, zero, height, pixels.shape[2]), _sampling(one, zero, width, pixels.shape[3])
    return down[0] @ (pixels @ across[0].T)


@torch.no_grad()
def pad_crop(images: Tensor, key: Tensor, pad: int) -> View:
    """Zero padding by `pad` pixels, then a random crop of the old size (He et al. 2015, arXiv:1512.03385, 4.2)."""
    b, _, h, w = images.shape
    dx, dy = integers(key, "pad crop", 2, 2 * pad + 1).unbind(1)  # (B,)
    windows = F.pad(floats(images), (pad, pad, pad, pad)).unfold(2, h, 1).unfold(3, w, 1)  # (B, C, 2p+1, 2p+1, H, W)
    x, y = (dx - pad) / w, (dy - pad) / h
    pixels = windows[torch.arange(b, device=key.device), :, dy, dx]  # (B, C, H, W)
    return View(pixels, box_affine(torch.stack([x, y, x + 1, y + 1], dim=1)))


@exact
def cell_centres(affine: Tensor, grid: int | tuple[int, int]) -> Tensor:
    """Where the centres of a view's grid cells (rows, columns) lie in the image: (B, rows * columns, 2) as (x, y)."""
    rows, columns = (grid, grid) if isinstance(grid, int) else grid
    v = (torch.arange(rows, device=affine.device, dtype=affine.dtype) + 0.5) / rows
    u = (torch.arange(columns, device=affine.device, dtype=affine.dtype) + 0.5) / columns
    v, u = torch.meshgrid(v, u, indexing="ij")
    points = torch.stack([u, v, torch.ones_like(u)], dim=-1).view(-1, 3)  # (N, 3)
    return points @ affine.mT  # (B, N, 2)
