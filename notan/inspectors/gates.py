"""Gates: which classes Hydra has found to share a subspace.

Wu et al., "Rethinking Positive Pairs in Contrastive Learning", 2024 (arXiv 2410.18200).

**What it is.** The gate of a class with itself, g(c, c) in (0, 1)^D, says which dimensions the class is told by. Two classes
whose gates overlap are told by the same:

    overlap(a, b) = cos(g(a, a), g(b, b)),   as a map of all classes

Beside it stands what the encoder itself makes of them, the cosines of the classes' mean features around the mean of all, and the
rank correlation of the two (`agreement`): near 1 the gates say what the features say; near 0 they say something else, or nothing.

**When it helps.** To look at relations between classes that nobody labelled. A map that is nearly the same everywhere
(`contrast`, the standard deviation of the overlaps, near 0) has nothing to say: the gates stayed as they began.

**What it costs.** One pass over the rows. Of a run of `hydra` or `hydra_momentum`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from notan.errors import NotanError
from notan.losses.geometry import spearman
from notan.nets.gate import PairGate

CARD = {
    "title": "Rethinking Positive Pairs in Contrastive Learning", "arxiv": "2410.18200", "year": 2024,
    "needs": ["image", "label"], "asks": "method",
    "claim": "Gates reveal relations of classes.",
    "cost": "One pass over the rows.",
    "deviations": ["Agreement with the encoder's own features is not in the paper, which compares with distances in WordNet."],
}


@torch.no_grad()
def measure(model: Any, data: Any) -> dict[str, Any]:
    """"agreement", "contrast", "open" (mean of all gates), and the map of overlaps beside that of features.

    Raises `NotanError` for a method without gates, and rows of fewer than three of its classes.
    """
    gate, was = getattr(model, "gate", None), model.training
    if not isinstance(gate, PairGate):
        raise NotanError(f"{type(model).__name__} has no gates", "a run of hydra or hydra_momentum, with a gate",
                         "notan train hydra --data DATA")
    model.eval()                                                        # a class at a time has no statistics of its own
    try:
        every = torch.arange(gate.embed.num_embeddings, device=gate.embed.weight.device)
        gates = gate(every, every).double().cpu()                       # (C, D)
        means, seen = class_means(model, data, len(every))
    finally:
        model.train(was)
    if int(seen.sum()) < 3:
        raise NotanError(f"rows of {int(seen.sum())} of {len(every)} classes", "of at least three", "--rows 2000")
    overlap, alike = cosines(gates), cosines(means[seen] - means[seen].mean(0))
    pairs = torch.triu_indices(int(seen.sum()), int(seen.sum()), 1)
    there = overlap[seen][:, seen]
    apart = overlap[tuple(torch.triu_indices(len(every), len(every), 1))]
    agreement = spearman(*(x[tuple(pairs)].round(decimals=12) for x in (there, alike)))     # rounding errors are ties
    return {"agreement": agreement, "contrast": float(apart.std(correction=0)),
            "open": float(gates.mean()), "map": drawn(there, alike, names(model, seen))}


def class_means(model: Any, data: Any, classes: int) -> tuple[Tensor, Tensor]:
    """Mean feature of each class (C, D), and which classes have a row (C,)."""
    sums, count = torch.zeros(()), torch.zeros(classes, dtype=torch.float64)
    for batch in data:
        z = F.normalize(model.encode(batch).double().cpu(), dim=1)
        own = F.one_hot(batch["label"].cpu(), classes).double()
        sums, count = sums + own.T @ z, count + own.sum(0)
    return sums / count.clamp(min=1)[:, None], count > 0


def cosines(x: Tensor) -> Tensor:
    u = F.normalize(x, dim=1)
    return u @ u.T


def names(model: Any, seen: Tensor) -> list[str]:
    return [str(name) for name, there in zip(model.classes, seen.tolist()) if there]


def drawn(overlap: Tensor, alike: Tensor, labels: list[str]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 + 0.5 * len(labels), 1.5 + 0.25 * len(labels)), layout="constrained")
    titles = "overlap of gates", "of features, around their mean"
    apart = ~torch.eye(len(labels), dtype=torch.bool)                   # of a class with itself it is 1
    for axes, values, title in zip(figure.subplots(1, 2), (overlap, alike), titles):
        shown = axes.imshow(values, vmin=float(values[apart].min()), vmax=float(values[apart].max()))
        axes.set_xticks(range(len(labels)), labels, rotation=90, fontsize=7)
        axes.set_yticks(range(len(labels)), labels, fontsize=7)
        axes.set_title(title)
        figure.colorbar(shown, ax=axes)
    return figure


def example() -> tuple[Any, list[dict]]:
    from notan.inspectors._example import Gated, pictures

    torch.manual_seed(0)
    return Gated().double(), pictures()
