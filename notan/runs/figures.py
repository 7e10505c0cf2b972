"""The report's drawings: small SVG charts that take their colours from the page, and pictures as PNG data URIs."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np

WIDTH, HEIGHT = 460, 270
LEFT, RIGHT, TOP, BOTTOM = 50, 14, 12, 42


class Line(NamedTuple):
    """One line of a chart: `points` are (x, y, low, high), the last two its band."""

    label: str
    colour: str
    points: Sequence[tuple[float, float, float, float]]
    dashed: bool = False


def colour(i: int) -> str:
    """The i-th categorical colour: ten from the page's palette, then hues by the golden angle."""
    return f"var(--c{i})" if i < 10 else f"hsl({i * 137.508 % 360:.0f} 50% 52%)"


def line_chart(
    lines: Sequence[Line],
    *,
    x: str,
    y: str,
    log_x: bool = False,
    name: str = "",
    width: int = WIDTH,
    height: int = HEIGHT,
) -> str:
    """Lines with bands and points that say their values, as one `<svg>`. Points that are not finite are left out."""
    lines = [line._replace(points=[p for p in line.points if math.isfinite(p[0] + p[1])]) for line in lines]
    lines = [line for line in lines if line.points]
    if not lines:
        return ""
    xs = [_log(p[0]) if log_x else p[0] for line in lines for p in line.points]
    ys = [v for line in lines for p in line.points for v in p[1:] if math.isfinite(v)]
    across, up = _scale(min(xs), max(xs), LEFT, width - RIGHT), _scale(min(ys), max(ys), height - BOTTOM, TOP, 0.05)
    x_of = (lambda v: across(_log(v))) if log_x else across
    ticks = _log_ticks(min(xs), max(xs)) if log_x else _ticks(min(xs), max(xs), 5)
    body = [_axes(ticks, x_of, _ticks(min(ys), max(ys), 5), up, x, y, (width, height))]
    body += [_line(line, x_of, up, x, y) for line in lines]
    label = escape(name or y)
    return f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{"".join(body)}</svg>'


def scatter(xy: np.ndarray, label: np.ndarray, name: str, size: int = 300) -> str:
    """A map of points (N, 2) coloured by class (N,): one path per class, and the points for the page's script."""
    xy, label = np.asarray(xy, dtype=float), np.asarray(label)
    low, span = xy.min(0), np.maximum(np.ptp(xy, axis=0), 1e-9)
    p = np.round(10 + (size - 20) * (xy - low) / span, 1)
    paths = "".join(
        f'<path class="k{c}" stroke="{colour(int(c))}" d="{"".join(f"M{a:g} {b:g}h0" for a, b in p[label == c])}"/>'
        for c in np.unique(label)
    )
    points = " ".join(f"{a:g},{b:g},{c}" for (a, b), c in zip(p, label))
    return (
        f'<svg class="map" viewBox="0 0 {size} {size}" role="img" aria-label="embedding of {escape(name)}" '
        f'data-points="{points}">{paths}</svg>'
    )


def png(image: Any) -> str:
    """A picture (C, H, W), uint8 or float in [0, 1], tensor or array, as a data URI. One channel is grey, else RGB."""
    from PIL import Image

    pixels = to_bytes(image)
    pixels = pixels[:3].transpose(1, 2, 0) if len(pixels) >= 3 else pixels[0]
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def montage(images: Any, columns: int, gap: int = 0) -> np.ndarray:
    """Pictures (N, C, H, W) in rows of `columns`, uint8 (C, h, w); `gap` pixels of mid grey between them."""
    images = to_bytes(images)
    n, c, h, w = images.shape
    rows = -(-n // columns)
    sheet = np.full((c, rows * (h + gap) - gap, columns * (w + gap) - gap), 128, np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * (h + gap), i % columns * (w + gap)
        sheet[:, top : top + h, left : left + w] = image
    return sheet


def smaller(images: Any, side: int) -> np.ndarray:
    """Pictures (..., C, H, W) as uint8, antialiased down so that no side is longer than `side`."""
    import torch

    from notan.views.geometry import resize

    pixels = to_bytes(images)
    h, w = pixels.shape[-2:]
    if max(h, w) <= side:
        return pixels
    flat = torch.from_numpy(pixels.reshape(-1, *pixels.shape[-3:]))
    out = to_bytes(resize(flat, (max(1, h * side // max(h, w)), max(1, w * side // max(h, w)))))
    return out.reshape(*pixels.shape[:-2], *out.shape[-2:])


def to_bytes(images: Any) -> np.ndarray:
    """uint8 as it is; floats in [0, 1] rounded to it, NaN as black."""
    if hasattr(images, "detach"):
        images = images.detach().cpu()
        images = images.float() if images.is_floating_point() else images
    x = np.asarray(images)
    if x.dtype == np.uint8:
        return x
    return np.round(np.nan_to_num(x.astype(np.float32), nan=0).clip(0, 1) * 255).astype(np.uint8)


def _line(line: Line, x_of: Any, up: Any, x: str, y: str) -> str:
    place = [(x_of(p[0]), up(p[1])) for p in line.points]
    banded = [p for p in line.points if math.isfinite(p[2]) and math.isfinite(p[3]) and p[3] > p[2]]
    out = f'<g class="line" data-series="{escape(line.label)}" style="--c:{line.colour}">'
    if len(banded) > 1:
        edge = [(x_of(p[0]), up(p[3])) for p in banded] + [(x_of(p[0]), up(p[2])) for p in reversed(banded)]
        out += f'<polygon points="{_path(edge)}"/>'
    dashes = ' stroke-dasharray="5 4"' if line.dashed else ""
    out += f'<polyline points="{_path(place)}"{dashes}/>'
    if len(place) <= 20:
        for (a, b), p in zip(place, line.points):
            words = f"{escape(line.label)}: {p[1]:.4g} at {p[0]:,g} {escape(x)}"
            out += f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3.2"><title>{words}</title></circle>'
    return out + "</g>"


def _path(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in points)


def _axes(x_ticks: list[float], x_of: Any, y_ticks: list[float], up: Any, x: str, y: str, size: tuple[int, int]) -> str:
    (width, height), floor = size, size[1] - BOTTOM
    grid = "".join(
        f'<line class="grid" x1="{LEFT}" x2="{width - RIGHT}" y1="{up(v):.1f}" y2="{up(v):.1f}"/>'
        f'<text x="{LEFT - 6}" y="{up(v) + 4:.1f}" text-anchor="end">{v:.4g}</text>'
        for v in y_ticks
    )
    grid += "".join(
        f'<text x="{x_of(v):.1f}" y="{floor + 17}" text-anchor="middle">{_short(v)}</text>' for v in x_ticks
    )
    middle, centre = (LEFT + width - RIGHT) / 2, (TOP + floor) / 2
    names = f'<text class="name" x="{middle:.0f}" y="{height - 6}" text-anchor="middle">{escape(x)}</text>'
    names += (
        f'<text class="name" transform="translate(12 {centre:.0f}) rotate(-90)" text-anchor="middle">{escape(y)}</text>'
    )
    return f'<g class="axes">{grid}<line x1="{LEFT}" x2="{width - RIGHT}" y1="{floor}" y2="{floor}"/>{names}</g>'


def _scale(low: float, high: float, start: float, end: float, margin: float = 0.0) -> Any:
    span = (high - low) or abs(high) * 0.1 or 1.0
    low, span = low - margin * span - (high == low) * span / 2, span * (1 + 2 * margin)
    return lambda v: start + (v - low) / span * (end - start)


def _ticks(low: float, high: float, most: int) -> list[float]:
    """At most `most` + 1 round numbers from `low` to `high`."""
    if high <= low:
        return [low]
    step = 10 ** math.floor(math.log10((high - low) / most))
    step = next(step * m for m in (1, 2, 5, 10, 20) if (high - low) / (step * m) <= most)
    return [round(k * step, 12) for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    ticks = [m * 10**k for k in range(math.floor(low), math.ceil(high) + 1) for m in (1, 3)]
    return [t for t in ticks if low - 1e-9 <= math.log10(t) <= high + 1e-9] or [10**low]


def _log(v: float) -> float:
    return math.log10(max(v, 1e-12))


def _short(v: float) -> str:
    return f"{v / 1000:g}k" if abs(v) >= 1000 and v % 100 == 0 else f"{v:g}"
