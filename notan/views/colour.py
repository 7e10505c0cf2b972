"""Colour jitter, grey, blur and solarise on pixels (B, C, H, W) in [0, 1], each row with its own strength.

The definitions are torchvision's; what is drawn is a function of `key` (B,) alone. An operation with a probability
works on the chosen rows only and returns a new tensor. Images without three channels have no hue: saturation, hue and
grey leave them as they are. No function here carries gradients.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from notan.errors import NotanError
from notan.views.random import bernoulli, permutation, uniform

_LUMA = (0.2989, 0.587, 0.114)  # ITU-R 601-2, rounded as torchvision and Pillow do


def _rows(chosen: Tensor) -> Tensor:
    return chosen.nonzero()[:, 0]


def _each(factor: Tensor) -> Tensor:
    return factor[:, None, None, None]


def luma(pixels: Tensor) -> Tensor:
    """Grey value (B, 1, H, W) of RGB pixels; of any other number of channels, their mean."""
    if pixels.shape[1] != 3:
        return pixels.mean(1, keepdim=True)
    r, g, b = pixels.split(1, dim=1)
    return (r * _LUMA[0]).add_(g, alpha=_LUMA[1]).add_(b, alpha=_LUMA[2])


@torch.no_grad()
def brightness(pixels: Tensor, factor: Tensor) -> Tensor:
    """Towards black: factor * pixels, in [0, 1]. `factor` (B,) >= 0, 1 changes nothing."""
    return (pixels * _each(factor)).clamp_(0, 1)


@torch.no_grad()
def contrast(pixels: Tensor, factor: Tensor) -> Tensor:
    """Towards the row's mean grey, in [0, 1]. `factor` (B,) >= 0, 1 changes nothing."""
    return torch.lerp(luma(pixels).mean((1, 2, 3), keepdim=True), pixels, _each(factor)).clamp_(0, 1)


@torch.no_grad()
def saturation(pixels: Tensor, factor: Tensor) -> Tensor:
    """Towards each pixel's grey, in [0, 1]. `factor` (B,) >= 0, 1 changes nothing."""
    if pixels.shape[1] != 3:
        return pixels
    return torch.lerp(luma(pixels), pixels, _each(factor)).clamp_(0, 1)


@torch.no_grad()
def hue(pixels: Tensor, turn: Tensor) -> Tensor:
    """Hue of HSV turned by `turn` (B,) of a full circle, in [-0.5, 0.5]; largest and smallest channel keep their value.

    With h the hue in sixths, a channel is max - chroma * clamp(min(k, 4 - k), 0, 1), k = (n + h) mod 6, n = 5, 3, 1.
    """
    if pixels.shape[1] != 3:
        return pixels
    r, g, b = pixels.unbind(1)  # (B, H, W)
    largest = pixels.amax(1)
    chroma = largest - pixels.amin(1)
    sixths = torch.where(r == largest, g - b, torch.where(g == largest, b - r, r - g)).div_(chroma.clamp(min=1e-12))
    sixths.add_(torch.where(r == largest, 0.0, torch.where(g == largest, 2.0, 4.0))).add_(6 * turn[:, None, None])
    k = sixths[:, None] + sixths.new_tensor([5.0, 3.0, 1.0])[:, None, None]  # (B, 3, H, W)
    k.remainder_(6)
    k = torch.minimum(k, 4 - k).clamp_(0, 1)
    return k.mul_(chroma[:, None]).neg_().add_(largest[:, None])


@torch.no_grad()
def jitter(
    pixels: Tensor, key: Tensor, *, brightness: float, contrast: float, saturation: float, hue: float, p: float = 1.0
) -> Tensor:
    """Colour jitter of a share p of the rows, the four operations in an order drawn for each row.

    Factors are uniform in [max(0, 1 - s), 1 + s], the turn of the hue in [-hue, hue].
    """
    if min(brightness, contrast, saturation) < 0 or not 0 <= hue <= 0.5:
        seen = f"jitter of {brightness}, {contrast}, {saturation}, {hue}"
        raise NotanError(seen, "strengths >= 0 and a hue in [0, 0.5]")
    chosen = bernoulli(key, "jitter", p)
    order = permutation(key, "jitter order", 4)  # (B, 4)
    strengths = (brightness, contrast, saturation)
    factors = [uniform(key, f"jitter {i}", 1, max(0.0, 1 - s), 1 + s)[:, 0] for i, s in enumerate(strengths)]
    factors.append(uniform(key, "jitter 3", 1, -hue, hue)[:, 0])
    out = pixels.clone()
    for step in range(4):
        for i, change in enumerate(_CHANGES):
            rows = _rows(chosen & (order[:, step] == i))
            out[rows] = change(out[rows], factors[i][rows].to(pixels.dtype))
    return out


_CHANGES = (brightness, contrast, saturation, hue)


@torch.no_grad()
def grayscale(pixels: Tensor, key: Tensor, p: float) -> Tensor:
    """RGB rows replaced by their grey value in all channels, with probability p."""
    if pixels.shape[1] != 3:
        return pixels
    rows = _rows(bernoulli(key, "grayscale", p))
    out = pixels.clone()
    out[rows] = luma(pixels[rows]).expand(-1, 3, -1, -1)
    return out


@torch.no_grad()
def blur(
    pixels: Tensor, key: Tensor, *, sigma: tuple[float, float] = (0.1, 2.0), p: float = 0.5, radius: int | None = None
) -> Tensor:
    """Gaussian blur of a share p of the rows, sigma in pixels uniform in its range, edges reflected.

    The kernel has 2 * radius + 1 taps; the default radius, a twentieth of the side, is SimCLR's (arXiv:2002.05709,
    appendix A).
    """
    rows = _rows(bernoulli(key, "blur", p))
    width = uniform(key, "blur sigma", 1, *sigma)[rows].to(pixels.dtype)  # (R, 1)
    side = min(pixels.shape[2:])
    radius = max(1, side // 20) if radius is None else radius
    if not 0 < sigma[0] <= sigma[1] or not 0 < radius < side:
        seen = f"blur of sigma {sigma} and radius {radius} on {side} px"
        raise NotanError(seen, "0 < sigma[0] <= sigma[1] and a radius below the side")
    out = pixels.clone()
    down, across = (_bands(width, radius, length) for length in pixels.shape[2:])
    out[rows] = down[:, None] @ pixels[rows] @ across[:, None].mT
    return out


def _bands(sigma: Tensor, radius: int, length: int) -> Tensor:
    """Blur of one axis as matrices (R, length, length); taps beyond an edge are reflected (without repeating it)."""
    tap = torch.arange(-radius, radius + 1, device=sigma.device)
    kernel = (tap.to(sigma.dtype) / sigma).square_().mul_(-0.5).exp_()  # (R, taps)
    kernel.div_(kernel.sum(1, keepdim=True))
    pixel = torch.arange(length, device=sigma.device)
    source = (pixel[:, None] + tap).abs()  # (length, taps)
    source = (length - 1) - (length - 1 - source).abs()
    where = F.one_hot(source, length).to(sigma.dtype)  # (length, taps, length)
    return torch.einsum("rt,ptq->rpq", kernel, where)


@torch.no_grad()
def solarise(pixels: Tensor, key: Tensor, *, threshold: float = 0.5, p: float = 0.2) -> Tensor:
    """Pixels at or above the threshold inverted, in a share p of the rows."""
    rows = _rows(bernoulli(key, "solarise", p))
    out = pixels.clone()
    some = pixels[rows]
    out[rows] = torch.where(some >= threshold, 1 - some, some)
    return out
