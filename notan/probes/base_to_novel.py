"""Base to novel: what was learned from one half of the classes, measured on both (Zhou et al. 2022, arXiv 2203.05557)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from notan.errors import NotanError
from notan.methods._prompting import base_count
from notan.probes.protocol import Protocol
from notan.probes.zero_shot import zero_shot


def harmonic(base: float, novel: float) -> float:
    """2 b n / (b + n), 0 where both are 0. Over several data sets the literature takes it of the two averages."""
    return 2 * base * novel / (base + novel) if base + novel > 0 else 0.0


def base_to_novel(images: Tensor, labels: Tensor, classes: Tensor, *, split: str = "the test split",
                  notes: str = "") -> dict[str, Any]:
    """Pictures (N, D) of base classes among the base classes of `classes` (C, D), of the others among the others.

    The first ceil(C / 2) classes are base. Returns the accuracies `base` and `novel`, their `harmonic` mean, how many pictures of
    each, `n` in all, and `protocol`. Raises `NotanError` for less than three classes, or a half without pictures.
    """
    count = base_count(len(classes))
    if len(classes) < 3:
        raise NotanError(f"{len(classes)} classes", "at least three, to divide into base and novel", "--protocol zeroshot")
    found: dict[str, Any] = {}
    for half, of in (("base", labels < count), ("novel", labels >= count)):
        if not bool(of.any()):
            raise NotanError(f"{split} has no picture of the {half} classes", "pictures of both halves", "more --rows")
        among, shift = (classes[:count], 0) if half == "base" else (classes[count:], count)
        found |= {half: zero_shot(images[of], labels[of] - shift, among)["accuracy"], f"{half}_n": int(of.sum())}
    return {**found, "harmonic": harmonic(found["base"], found["novel"]), "n": len(labels),
            "protocol": Protocol(f"nearest of the {count} base or {len(classes) - count} novel classes by its name", split, 0,
                                 len(labels), notes=notes)}
