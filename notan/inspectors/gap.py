"""The gap between pictures and texts in a space they share: how far apart they lie, and how each uses the space.

Liang, Zhang, Kwon, Yeung and Zou, "Mind the Gap: Understanding the Modality Gap in Multi-modal Contrastive Representation
Learning", NeurIPS 2022 (arXiv 2203.02053), and Fahim, Murphy and Fyshe, "It's Not a Modality Gap" (arXiv 2405.18570, 2024),
whose measures these are.

**What it is.** x are pictures and y their texts, at unit length.

    distance of means = |mean x - mean y|, from 0 to 2; and the cosine of the means
    separability = accuracy of a logistic regression that tells x from y, on a fifth of the pairs: 0.5 where there is no gap
    alignment = mean |x_i - y_i|^2;  uniformity of x, of y and across (i != j), as Wang and Isola's
    matched, unmatched = mean cosine of pairs, and of pictures with others' texts
    variance of the first 8 directions, of x and of y; how alike the cosines among pictures and among texts are (rank correlation)

**When it helps.** Before you reckon across the two: add a word to a picture, average both, set one threshold for all. With a gap
the nearest neighbour of a picture is always a picture. Retrieval from one to the other does not suffer of a gap.

**What it costs.** One pass of both encoders over the rows, and their products with each other.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from notan.errors import NotanError
from notan.losses.geometry import alignment, spearman, uniformity, uniformity_of_others
from notan.losses.tiles import unit
from notan.views.random import uniform

CARD = {
    "title": "Mind the Gap: Understanding the Modality Gap in Multi-modal Contrastive Representation Learning",
    "arxiv": "2203.02053", "year": 2022, "needs": ["image", "text or captions"], "asks": "encode",
    "claim": "Encoders of pictures and texts that are trained by contrast put the two into separate regions of their space.",
    "cost": "One pass of both encoders over the rows.",
    "deviations": ["Which pairs are held out from the separating line is drawn by key, the same for both sides.",
                   "Of several captions the first is taken."],
}
MOST = 500                                                              # rows whose cosines among themselves are compared


@torch.no_grad()
def measure(model: Any, data: Any) -> dict[str, Any]:
    """What the module says ("variance of pictures" and "of texts" are lists, cumulative over the first 8 directions), and the
    figure.

    Raises `NotanError` for a model without both outputs, fewer than ten pairs, and features that are not finite.
    """
    x, y, held = features(model, data)
    n = len(x)
    found: dict[str, Any] = {
        "pairs": n, "distance of means": float((x.mean(0) - y.mean(0)).norm()),
        "cosine of means": float(torch.cosine_similarity(x.mean(0), y.mean(0), dim=0)),
        "separability": separability(x, y, held), "alignment": float(alignment(x, y).mean()),
        "uniformity of pictures": float(uniformity(x)), "uniformity of texts": float(uniformity(y)),
        "uniformity across": float(uniformity_of_others(x, y)), "matched": float((x * y).sum(1).mean()),
        "unmatched": float((x.sum(0) @ y.sum(0) - (x * y).sum()) / (n * (n - 1))),
        "variance of pictures": variance(x)[:8], "variance of texts": variance(y)[:8],
        "likeness of cosines": spearman(lower(x[:MOST] @ x[:MOST].T), lower(y[:MOST] @ y[:MOST].T)),
    }
    return {**found, "figure": drawn(x, y, found)}


def features(model: Any, data: Any) -> tuple[Tensor, Tensor, np.ndarray]:
    """Unit vectors float64 (N, D) of pictures and of texts, and which pairs are held out, bool (N,)."""
    images, texts, draws = [], [], []
    for batch in data:
        z = model.encode(batch)
        if not isinstance(z, dict) or not {"image", "text"} <= z.keys():
            raise NotanError("the model gives " + (", ".join(z) if isinstance(z, dict) else "one output"), "image and text",
                             "a run of a method of both, such as clip")
        images.append(z["image"].double().cpu())
        texts.append(z["text"].double().cpu())
        draws.append(uniform(batch["key"], "held out", 1)[:, 0])
    x, y = torch.cat(images), torch.cat(texts)
    if len(x) < 10:
        raise NotanError(f"{len(x)} pairs", "at least ten", "--rows 2000")
    if not bool(x.isfinite().all() and y.isfinite().all()):
        raise NotanError("features are not finite", "finite numbers", "the encoder has diverged: train at a lower rate")
    order = torch.cat(draws).argsort()
    held = np.zeros(len(x), dtype=bool)
    held[order[: max(1, len(x) // 5)]] = True
    return unit(x), unit(y), held


def separability(x: Tensor, y: Tensor, held: np.ndarray) -> float:
    """Accuracy on held-out pairs of a logistic regression, scikit-learn's defaults, that tells pictures from texts."""
    from sklearn.linear_model import LogisticRegression

    def both(chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        count = int(chosen.sum())
        return np.concatenate([x.numpy()[chosen], y.numpy()[chosen]]), np.repeat([0, 1], count)

    return float(LogisticRegression().fit(*both(~held)).score(*both(held)))


def variance(x: Tensor) -> list[float]:
    """Cumulative shares of variance by direction; zeros where all rows are equal."""
    s = torch.linalg.svdvals(x - x.mean(0)).square()
    return (s.cumsum(0) / s.sum().clamp(min=1e-30)).tolist()


def lower(s: Tensor) -> Tensor:
    """The numbers below the diagonal of (N, N)."""
    return s[torch.ones_like(s, dtype=torch.bool).tril(-1)]


def drawn(x: Tensor, y: Tensor, found: dict[str, Any]) -> Any:
    """Pairs on the two main directions of both together, and the cumulative variance."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    both = torch.cat([x, y])
    flat = ((both - both.mean(0)) @ torch.linalg.svd(both - both.mean(0), full_matrices=False).Vh[:2].T).numpy()
    a, b = flat[: len(x)][:300], flat[len(x):][:300]
    left.plot([a[:, 0], b[:, 0]], [a[:, 1], b[:, 1]], color="0.85", linewidth=0.5, zorder=0)
    left.scatter(*a.T, s=8, label="pictures")
    left.scatter(*b.T, s=8, label="texts")
    left.legend()
    left.set(title=f"distance of means {found['distance of means']:.2f}, separability {found['separability']:.2f}",
             xlabel="first direction of both", ylabel="second")
    for name in ("pictures", "texts"):
        shares = found[f"variance of {name}"]
        right.plot(range(1, len(shares) + 1), shares, marker=".", label=name)
    right.legend()
    right.set(title="variance", xlabel="directions", ylabel="cumulative share", ylim=(0, 1.02))
    return figure


def example() -> tuple[Any, list[dict]]:
    from notan.inspectors._example import Paired, captioned

    torch.manual_seed(0)
    return Paired().double(), captioned()
