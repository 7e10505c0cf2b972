"""Colour jitter, grey, blur and solarise on pixels (B, C, H, W) in [0, 1], each row with its own strength.

The definitions are torchvision's; what is drawn is a function of `key` (B,) alone. An operation with a probability
works on the chosen rows only and returns a new tensor. Images without three channels have no hue: saturation, hue and
grey leave them as they are. No function here carries gradients.
"""

from __future__ import annotations

import torch
from torch import Tensor

from notan.errors import NotanError
from notan.views._exact import exact
from notan.views.geometry import separable
from notan.views.parts import parts
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
    """Hue of HSV turned by `turn` (B,) of a full circle; largest and smallest channel keep their value.

    HSV's hexagon without branches: in sixths of a circle, hue = +-(1 + (g + b - r - min) / (max - min)) with the sign
    of g - b, and back r = max - chroma * w(hue - 3), g = min + chroma * w(hue - 2), b = min + chroma * w(hue - 4) with
    w(x) = clamp(2 - |x|, 0, 1).
    """
    if pixels.shape[1] != 3:
        return pixels
    r, g, b = pixels.unbind(1)  # (B, H, W)
    high, low = torch.maximum(g, b).maximum(r), torch.minimum(g, b).minimum(r)
    chroma = high - low
    h = (g + b).sub_(r).sub_(low).div_(chroma.clamp(min=torch.finfo(pixels.dtype).tiny)).add_(1)  # 0 .. 3
    h.copysign_(g - b).add_(6 * turn[:, None, None])
    h.sub_((h * (1 / 6)).floor_(), alpha=6)  # 0 .. 6
    out = torch.empty_like(pixels)
    for channel, (centre, base, sign) in enumerate(((3, high, -1), (2, low, 1), (4, low, 1))):
        w = torch.rsub((h - centre).abs_(), 2).clamp_(0, 1)
        torch.addcmul(base, w, chroma, value=sign, out=out[:, channel])
    return out


@exact
def jitter(
    pixels: Tensor, key: Tensor, *, brightness: float, contrast: float, saturation: float, hue: float, p: float = 1.0
) -> Tensor:
    """Colour jitter of a share p of the rows, the four operations in an order drawn for each row.

    Factors are uniform in [max(0, 1 - s), 1 + s], the turn of the hue in [-hue, hue]. Brightness, contrast and
    saturation are one operation with other coefficients (`_linear`), so rows differ in their order at no cost; rows are
    sorted by the place of the hue among the four, and those that share it go together.
    """
    if min(brightness, contrast, saturation) < 0 or not 0 <= hue <= 0.5:
        seen = f"jitter of {brightness}, {contrast}, {saturation}, {hue}"
        raise NotanError(seen, "strengths >= 0 and a hue in [0, 0.5]")
    order, factors, turn = jitter_draws(key, brightness, contrast, saturation, hue)
    place = (order == 3).byte().argmax(1)  # (B,) where the hue comes
    place.masked_fill_(~bernoulli(key, "jitter", p), 4)
    linear = order[order != 3].view(-1, 3)  # (B, 3) the other operations in their order
    sizes = place.bincount(minlength=5).tolist()
    rows = place.argsort(stable=True).split(sizes)  # rows with the hue first, second, third, last; and those left alone
    out = torch.empty_like(pixels)
    out[rows[4]] = pixels[rows[4]]
    for when in range(4):
        for part in parts(rows[when], pixels.shape[1:].numel()):
            x, weights, op = pixels.index_select(0, part), factors[part].to(pixels.dtype), linear[part]
            for step in range(4):
                if step == when:
                    x = _hue(x, turn[part].to(pixels.dtype))
                else:
                    x = _linear(x, op[:, step - (step > when)], weights)
            out.index_copy_(0, part, x)
    return out


def jitter_draws(
    key: Tensor, brightness: float, contrast: float, saturation: float, hue: float
) -> tuple[Tensor, Tensor, Tensor]:
    """What jitter draws: order (B, 4) of operations 0 to 3, factors (B, 3) of the first three, turn (B,) of the hue."""
    strengths = ("brightness", brightness), ("contrast", contrast), ("saturation", saturation)
    factors = [uniform(key, f"jitter {name}", 1, max(0.0, 1 - s), 1 + s) for name, s in strengths]
    turn = uniform(key, "jitter hue", 1, -hue, hue)[:, 0]
    return permutation(key, "jitter order", 4), torch.cat(factors, dim=1), turn


def _linear(pixels: Tensor, op: Tensor, factors: Tensor) -> Tensor:
    """Brightness (op 0), contrast (1) or saturation (2) of each row, with its factor of the three (B, 3).

    All are clamp(f * pixels + (1 - f) * away, 0, 1): away is black, the mean grey, the grey of the pixel.
    """
    c, x = pixels.shape[1], pixels.flatten(2)  # (B, C, H*W)
    eye = torch.eye(c, dtype=x.dtype, device=x.device)
    grey = x.new_tensor(_LUMA if c == 3 else [1 / c] * c)  # (C,)
    f = factors.gather(1, op[:, None])[:, :, None]  # (B, 1, 1)
    is_contrast, is_saturation = (op == 1)[:, None, None], (op == 2)[:, None, None]
    if c != 3:
        f = f.masked_fill(is_saturation, 1)
    matrix = f * eye + (1 - f) * is_saturation * grey  # (B, C, C)
    lift = (1 - f) * is_contrast * (x.mean(2) @ grey)[:, None, None]  # (B, 1, 1)
    return torch.baddbmm(lift, matrix, x).clamp_(0, 1).view_as(pixels)


_hue = hue  # jitter's strength of the hue hides the function


@torch.no_grad()
def grayscale(pixels: Tensor, key: Tensor, p: float) -> Tensor:
    """RGB rows replaced by their grey value in all channels, with probability p."""
    if pixels.shape[1] != 3:
        return pixels
    rows = _rows(bernoulli(key, "grayscale", p))
    out = pixels.clone()
    return out.index_copy_(0, rows, luma(pixels.index_select(0, rows)).expand(-1, 3, -1, -1))


@exact
def blur(
    pixels: Tensor, key: Tensor, *, sigma: tuple[float, float] = (0.1, 2.0), p: float = 0.5, radius: int | None = None
) -> Tensor:
    """Gaussian blur of a share p of the rows, sigma in pixels uniform in its range, edges reflected.

    The kernel has 2 * radius + 1 taps; the default radius, a twentieth of the side, is SimCLR's (arXiv:2002.05709,
    appendix A).
    """
    h, w = pixels.shape[2:]
    radius = max(1, min(h, w) // 20) if radius is None else radius
    if not 0 < sigma[0] <= sigma[1] or not 0 < radius < min(h, w):
        seen = f"blur of sigma {sigma} and radius {radius} on {h} x {w} pixels"
        raise NotanError(seen, "0 < sigma[0] <= sigma[1] and a radius below the side")
    rows = _rows(bernoulli(key, "blur", p))  # (R,)
    tap = torch.arange(-radius, radius + 1, dtype=pixels.dtype, device=pixels.device)
    spread = uniform(key, "blur sigma", 1, *sigma)[rows].to(pixels.dtype)  # (R, 1)
    kernel = (tap / spread).square_().mul_(-0.5).exp_()  # (R, taps)
    kernel.div_(kernel.sum(1, keepdim=True))
    down, across = _reflected(h, radius).to(kernel), _reflected(w, radius).to(kernel)
    out = pixels.clone()
    for part, k in zip(*(parts(x, pixels.shape[1:].numel()) for x in (rows, kernel))):
        some = pixels.index_select(0, part)
        out.index_copy_(0, part, separable(some, (k @ down).view(-1, h, h), (k @ across).view(-1, w, w)))
    return out


def _reflected(length: int, radius: int) -> Tensor:
    """The pixel each tap reads, one-hot (taps, length * length) over (output, input); edge pixels are not repeated."""
    source = (torch.arange(length) + torch.arange(-radius, radius + 1)[:, None]).abs_()  # (taps, length)
    source = (length - 1) - (length - 1 - source).abs_()
    return torch.zeros(*source.shape, length).scatter_(2, source[..., None], 1.0).flatten(1)


@torch.no_grad()
def solarise(pixels: Tensor, key: Tensor, *, threshold: float = 0.5, p: float = 0.2) -> Tensor:
    """Pixels at or above the threshold inverted, in a share p of the rows."""
    rows = _rows(bernoulli(key, "solarise", p))
    some = pixels.index_select(0, rows)
    return pixels.clone().index_copy_(0, rows, torch.where(some >= threshold, 1 - some, some))
