"""Isotropy: whether the states of a text's tokens point different ways, or all one way.

Su and Collier, "Contrastive Search Is What You Need For Neural Text Generation", TMLR 2023 (arXiv 2210.14140), after
Ethayarajh 2019 (arXiv 1909.00512).

**What it is.** A model's states h_1, ..., h_n of a text's n tokens are compared with one another, in each text x of a corpus:

    isotropy = 1 - sum_x sum_{i != j} cos(h_i, h_j) / sum_x n_x (n_x - 1)

so a text counts by its pairs. 0: all states point one way. 1: the directions cancel. The states are those that the model's
head reads; the same of earlier layers is the curve.

    sum_{i != j} cos(h_i, h_j) = |sum_i u_i|^2 - sum_i |u_i|^2,    u_i = h_i / |h_i|

**When it helps.** Before `notan decode contrastive_search`, whose penalty is such a cosine: the paper finds 0.10 for gpt2, where
it fails, and 0.55 to 0.83 for the models where it works. Small models trained on little text are isotropic already.

**What it costs.** One pass over the texts.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from notan.errors import NotanError

CARD = {
    "title": "Contrastive Search Is What You Need For Neural Text Generation", "arxiv": "2210.14140", "year": 2023,
    "needs": ["text"], "asks": "states",
    "claim": "Only the small English gpt2 models have states that all point one way; language models otherwise do not.",
    "cost": "One pass over the texts.",
    "deviations": [
        "Not rounded; the released code rounds to two decimals.",
        "Texts are cut at 512 tokens (`--tokens`).",
        "Tokens that the tokenizer puts around a text by itself count as tokens of it.",
    ],
}


@torch.no_grad()
def measure(model: Any, data: Any) -> dict[str, Any]:
    """`isotropy` of what the head reads, `by layer` (embeddings first, the head's last), their curve, and what was read.

    Raises `NotanError` when no text has two tokens.
    """
    total, pairs, texts = torch.zeros(()), 0, 0
    for batch in data:
        layers, mask = model.states(batch)                              # (B, T, E) each, (B, T)
        n = mask.sum(1)
        total = total + torch.stack([cosines(h, mask) for h in layers])
        pairs, texts = pairs + int((n * (n - 1)).sum()), texts + len(n)
    if not pairs:
        raise NotanError(f"none of {texts} texts has two tokens", "longer texts")
    curve = (1 - total / pairs).tolist()
    return {"isotropy": curve[-1], "texts": texts, "pairs": pairs, "by layer": curve, "layers": drawn(curve)}


def cosines(h: Tensor, mask: Tensor) -> Tensor:
    """Sum over texts of the cosines of all ordered pairs of different tokens, on the CPU: (B, T, E), bool (B, T) to ()."""
    u = F.normalize(h.double(), dim=2) * mask[..., None]
    return (u.sum(1).square().sum() - u.square().sum()).cpu()


def drawn(curve: list[float]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot(range(len(curve)), curve, marker=".")
    axes.set(xlabel="block (0: embeddings, last: what the head reads)", ylabel="isotropy", ylim=(min(0, *curve), max(1, *curve)))
    return figure


def example() -> tuple[Any, list[dict]]:
    from notan.inspectors._example import Letters, texts

    torch.manual_seed(0)
    return Letters().double(), texts()
