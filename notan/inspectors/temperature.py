"""Temperature: whom a contrastive loss would push, at which temperature, among an encoder's features.

Wang and Liu, "Understanding the Behaviour of Contrastive Loss", CVPR 2021 (arXiv 2012.09740).

**What it is.** s_ij is the cosine of picture i and another picture j. At temperature tau the loss pushes j away from i with the
share

    r_ij = exp(s_ij / tau) / sum over k != i of exp(s_ik / tau)                              section 3.2

of all pushing: a small tau pushes the nearest alone, a large one all alike. `effective negatives` is exp of the entropy of r_i,
`nearest 10` the share that the ten nearest get; both are means over pictures. Beside them stand what tau trades:

    uniformity = log mean exp(-2 |u_i - u_j|^2)                       lower: more evenly over the sphere
    tolerance = mean cosine of two pictures of one class              higher: what is alike lies together
    separation = cosine of two views of a picture - that of its nearest other pictures       figure 8

**When it helps.** Before a long run: at a tau where a handful of negatives get all, and those are of the picture's own class,
the loss parts what belongs together. After one: how uniform and how tolerant it has become.

**What it costs.** Two passes over the rows, and three products of all rows with all, in parts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from notan.errors import NotanError
from notan.inspectors.geometry import features, viewed
from notan.losses.geometry import tolerance, uniformity
from notan.losses.tiles import TILE, cosines, parts, unit

CARD = {
    "title": "Understanding the Behaviour of Contrastive Loss", "arxiv": "2012.09740", "year": 2021,
    "needs": ["image"], "asks": "encode",
    "claim": "A small temperature pushes the nearest negatives alone: features become uniform, and what is alike is parted.",
    "cost": "Two passes over the rows, and three products of all rows with all.",
    "deviations": [
        "Of the features that probes and searches see; the paper measures what the loss sees, after the projector.",
        "Negatives are the other rows that are looked at (`--rows`), not the whole training set.",
        "Entropy, effective negatives and the share of the ten nearest are not in the paper.",
    ],
}


@torch.no_grad()
def measure(model: Any, data: Any, *, taus: str = "0.05,0.07,0.1,0.2,0.3,0.5,0.7,1.0", crop: float = 0.5) -> dict[str, Any]:
    """What the module says; lists are by tau, "nearest" by rank; tolerance and "own class" only where rows have labels of which
    two are equal. "own class" is the share of the pushing that goes to rows of the same class.

    taus: temperatures, separated by commas.
    crop: smallest share of the picture in the other view.

    Raises `NotanError` for temperatures that are not above 0, fewer than three rows, or features that are not finite.
    """
    grid = temperatures(taus)
    u = unit(features(model, data, lambda x, key: x))
    if len(u) < 3:
        raise NotanError(f"{len(u)} rows", "at least three", "--rows 2000")
    labels = torch.cat([batch["label"] for batch in data]).cpu() if all("label" in batch for batch in data) else None
    if labels is not None and not alike(labels):
        labels = None
    views = cosines(u, unit(features(model, data, lambda x, key: viewed(x, key, crop))))
    near = nearest(u, min(10, len(u) - 1))
    found: dict[str, Any] = {"rows": len(u), "uniformity": float(uniformity(u))}
    if labels is not None:
        found["tolerance"] = float(tolerance(u, labels))
    found |= {"views": float(views.mean()), "separation": float(views.mean()) - near[0], "nearest": near, "taus": grid}
    found |= shares(u, grid, labels)
    return {**found, "figure": drawn(u, found)}


def temperatures(text: str) -> list[float]:
    try:
        grid = [float(part) for part in text.split(",")]
    except ValueError:
        grid = [0.0]
    if not all(0 < tau < math.inf for tau in grid):
        raise NotanError(f"taus = {text}", "temperatures above 0, separated by commas", "--taus 0.07,0.2,1.0")
    return grid


def relative_penalty(s: Tensor, tau: float) -> Tensor:
    """r of cosines of negatives (..., K): a Boltzmann distribution over them."""
    return torch.softmax(s / tau, -1)


def shares(u: Tensor, taus: Sequence[float], labels: Tensor | None) -> dict[str, list[float]]:
    """Means over rows of the entropy of r, exp of it, the share of the ten nearest, and of rows of the same class, by tau.

    The cosines are taken once for all of them.
    """
    sums: dict[str, Tensor] = {}
    known = torch.ones(len(u), dtype=torch.bool) if labels is None else labels >= 0
    for i in parts(len(u), max(1, TILE // len(u))):
        s, own = others(u, i), None if labels is None else (labels[i, None] == labels) & known & known[i, None]
        for at, tau in enumerate(taus):
            r = relative_penalty(s, tau)                                # (n, N), 0 for the row itself
            h = -torch.xlogy(r, r).sum(1)
            found = {"entropy": h.sum(), "effective negatives": h.exp().sum(),
                     "nearest 10": r.topk(min(10, len(u) - 1), dim=1).values.sum()}
            for name, value in (found | ({} if own is None else {"own class": (r * own).sum()})).items():
                sums.setdefault(name, u.new_zeros(len(taus)))[at] += value
    rows = {"own class": int(known.sum())}
    return {name: (total / rows.get(name, len(u))).tolist() for name, total in sums.items()}


def nearest(u: Tensor, most: int) -> list[float]:
    """Mean cosine of a row and its nearest other, the next, and so on."""
    found = [others(u, i).topk(most, dim=1).values for i in parts(len(u), max(1, TILE // len(u)))]
    return torch.cat(found).mean(0).tolist()


def others(u: Tensor, rows: slice) -> Tensor:
    """Cosines of some rows with all (n, N); -inf with themselves."""
    s = u[rows] @ u.T
    return s.scatter_(1, torch.arange(len(u))[rows, None], -torch.inf)


def alike(labels: Tensor) -> bool:
    known = labels[labels >= 0]
    return len(known) > len(known.unique())


def drawn(u: Tensor, found: dict[str, Any]) -> Any:
    """The relative penalty by cosine (figure 3), the effective negatives by tau, and local separation (figure 8)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.4), layout="constrained")
    penalty, effective, local = figure.subplots(1, 3)
    s = torch.linspace(-1, 1, 201, dtype=torch.float64)
    for tau in found["taus"]:
        penalty.plot(s, relative_penalty(s, tau) * len(s), label=f"{tau:g}")
    penalty.set(yscale="log", ylim=(1e-3, None), xlabel="cosine of the negative", ylabel="penalty (1: all alike)",
                title="whom a loss pushes, of negatives all over")
    penalty.legend(title="tau", fontsize=7, ncols=2)
    effective.loglog(found["taus"], found["effective negatives"], marker=".", label="effective negatives")
    effective.axhline(len(u) - 1, color="grey", linestyle=":", label="all of them")
    effective.set(xlabel="tau", title="how many of these rows are pushed")
    effective.legend(fontsize=7)
    local.plot(range(1, len(found["nearest"]) + 1), found["nearest"], marker=".", label="its nearest others")
    local.axhline(found["views"], color="tab:orange", label="another view of it")
    local.set(xlabel="rank", ylabel="mean cosine with a picture", title="local separation")
    local.legend(fontsize=7)
    return figure


def example() -> tuple[Any, list[dict]]:
    from notan.inspectors._example import Bright, pictures

    torch.manual_seed(0)
    return Bright().double(), pictures()
