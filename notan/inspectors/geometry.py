"""Geometry: how an encoder's features lie, and which changes of a picture they do not see.

Wang and Isola, "Understanding Contrastive Representation Learning through Alignment and Uniformity on the Hypersphere", ICML 2020
(arXiv 2005.10242), with the ranks of Roy and Vetterli 2007 and of RankMe (Garrido et al. 2023, arXiv 2210.02885).

**What it is.** u are features at unit length, u' those of another view of the same picture.

    alignment = mean |u - u'|^2                     0: two views of a picture have the same feature
    uniformity = log mean exp(-2 |u_i - u_j|^2)     over different pictures; lower: more evenly over the sphere
    isotropy = 1 - mean cosine of different rows    0: all point one way; 1: the directions cancel
    effective rank, RankMe = exp H(s / sum s)       of singular values s, of centred features and of features as they are
    reacts to X = (1 - cos(u, u_X)) / (1 - mean cosine of different rows)

`reacts to` says how far X moves a picture's feature, beside the distance between pictures: near 0, X is suppressed and
whatever differs in it alone will coincide; at 1, a picture under X is as far from itself as from any other.

**When it helps.** To see why a probe fails: features that collapsed (rank), that follow the crop (alignment), or that dropped
what the task needs (reacts to). Alignment and uniformity compare encoders of one kind; neither is better by itself.

**What it costs.** Eight passes over the rows, and a product of all rows with all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from notan.errors import NotanError
from notan.losses.geometry import alignment, effective_rank, rank_me, spread, uniformity
from notan.losses.tiles import cosines, unit
from notan.views import colour
from notan.views.augment import contrastive
from notan.views.geometry import floats
from notan.views.random import fold

CARD = {
    "title": "Understanding Contrastive Representation Learning through Alignment and Uniformity on the Hypersphere",
    "arxiv": "2005.10242", "year": 2020, "needs": ["image"], "asks": "encode",
    "claim": "Contrastive learning makes features aligned and uniform, and both go with better probes.",
    "cost": "Eight passes over the rows.",
    "deviations": [
        "Of the features that probes and searches see; the paper measures what the loss sees, after the projector.",
        "`reacts to` is not the paper's: it asks for the suppression of single features without labels.",
    ],
}

CHANGES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {              # pixels (B, C, H, W) in [0, 1], keys (B,)
    "mirroring": lambda x, key: x.flip(3),
    "brightness": lambda x, key: colour.brightness(x, torch.full((len(x),), 0.5, device=x.device)),
    "hue": lambda x, key: colour.hue(x, torch.full((len(x),), 1 / 3, device=x.device)),
    "grey": lambda x, key: colour.luma(x).expand_as(x),
    "blur": lambda x, key: colour.blur(x, key, sigma=(1.5, 1.5), p=1.0),
}


@torch.no_grad()
def measure(model: Any, data: Any, *, crop: float = 0.5) -> dict[str, Any]:
    """What the module says, the 64 largest singular values of centred features ("spectrum", shares of their sum), their figure,
    and `reacts to` for each change; of colour only where pictures have one.

    crop: smallest share of the picture in the view of "alignment" and "reacts to cropping".

    Raises `NotanError` for fewer than two rows or features that are not finite.
    """
    z = features(model, data, lambda x, key: x)
    u = unit(z)
    if len(u) < 2:
        raise NotanError(f"{len(u)} rows", "at least two", "--rows 2000")
    n = len(u)
    others = float((u.sum(0).square().sum() - u.square().sum()) / (n * (n - 1)))           # mean cosine of different rows
    v = unit(features(model, data, lambda x, key: viewed(x, key, crop)))
    s = torch.linalg.svdvals(z - z.mean(0))
    found = {"rows": n, "dimensions": z.shape[1], "alignment": float(alignment(u, v).mean()), "uniformity": float(uniformity(u)),
             "isotropy": 1 - others, "effective rank": effective_rank(z), "RankMe": rank_me(z), "spread": spread(z),
             "spectrum": (s / s.sum().clamp(min=1e-300))[:64].tolist()}
    coloured = any(bool((batch["image"] != batch["image"][:, :1]).any()) for batch in data)
    for name, change in CHANGES.items():
        if coloured or name not in ("hue", "grey"):
            found[f"reacts to {name}"] = moved(u, unit(features(model, data, change)), others)
    found["reacts to cropping"] = moved(u, v, others)
    return {**found, "figure": drawn(found)}


def features(model: Any, data: Any, change: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Features float64 (N, D) on the CPU of changed pictures; several outputs side by side. Raises when one is not finite."""
    found = []
    for batch in data:
        z = model.encode({**batch, "image": as_bytes(change(floats(batch["image"]), batch["key"]))})
        found.append((torch.cat(list(z.values()), 1) if isinstance(z, dict) else z).double().cpu())
    x = torch.cat(found)
    if not bool(x.isfinite().all()):
        raise NotanError(f"the features of {int((~x.isfinite()).any(1).sum()):,} of {len(x):,} rows are not finite",
                         "finite numbers", "the encoder has diverged: train with a lower learning rate")
    return x


def viewed(pixels: Tensor, key: Tensor, crop: float) -> Tensor:
    """A random crop at the pictures' own size; pictures that are not square become so first, as encoders take them."""
    return contrastive(as_bytes(pixels), fold(key, 1), pixels.shape[2], scale=crop, flip=0.0, jitter=0.0, grey=0.0, blur=0.0)


def as_bytes(pixels: Tensor) -> Tensor:
    return (pixels * 255).round().to(torch.uint8)


def moved(u: Tensor, v: Tensor, others: float) -> float:
    """1 - cos of rows and their changed ones, in units of that of different rows; 0 where all rows point one way."""
    apart = 1 - others
    return float((1 - cosines(u, v)).mean()) / apart if apart > 1e-9 else 0.0


def drawn(found: dict[str, Any]) -> Any:
    """The spectrum, and what moves features how far."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    shares = [max(s, 1e-8) for s in found["spectrum"]]
    left.semilogy(range(1, len(shares) + 1), shares, marker=".")
    left.set(xlabel="singular value", ylabel="share of their sum", title=f"effective rank {found['effective rank']:.1f}")
    names = [name for name in found if name.startswith("reacts to")]
    right.barh([name.removeprefix("reacts to ") for name in names], [found[name] for name in names])
    right.axvline(1, color="grey", linestyle=":")
    right.set(xlabel="distance moved (1: as far as another picture)", title="reacts to")
    return figure


def example() -> tuple[Any, list[dict]]:
    from notan.inspectors._example import Bright, pictures

    torch.manual_seed(0)
    return Bright().double(), pictures()
