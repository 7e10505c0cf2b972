"""M3ID: the longer the answer, the more the picture must speak.

Favero, Zancato, Trager, Choudhary, Perera, Achille, Swaminathan and Soatto, "Multi-Modal Hallucination Control by Visual
Information Grounding", CVPR 2024 (arXiv 2403.14003).

**What it is.** A second stream reads the words without the picture. As an answer grows the model forgets the picture and goes
on from its own words; so what the picture adds is weighted more and more:

    s = z + k_t (z - z_blind),    k_t = (1 - g_t) / g_t = e^{lam t} - 1,    g_t = e^{-lam t},    t = 0 at the first token

among the tokens with at least beta of z's largest probability.

**When it helps.** Long descriptions. At the first token k_0 = 0: a one-word answer is the model's own, so any gain reported
on yes/no questions is the head's.

**What it costs.** A second row of the batch, without picture tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from notan.errors import check_between
from notan.strategies._strategy import Context, needs_picture, plausible, weighted, within

CARD = {
    "title": "Multi-Modal Hallucination Control by Visual Information Grounding", "arxiv": "2403.14003", "year": 2024,
    "needs": ["prompt", "image"],
    "claim": "Weighting what the picture adds more with every token keeps long answers grounded in it.",
    "cost": "A second row of the batch, without picture tokens.",
    "sum": "1",
    "off": {"lam": 0.0, "beta": 0.0},
    "deviations": [
        "No gate on the model's confidence: the two public re-implementations that we follow have none.",
        "k_t stops growing at 1e4, so that no float overflows.",
    ],
}


class M3ID:
    """The picture against the words alone.

    lam: how fast the picture's weight grows with the tokens.
    beta: smallest share of the largest probability that a token may have.
    """

    def __init__(self, *, lam: float = 0.02, beta: float = 0.1) -> None:
        check_between(0, math.inf, lam=lam)
        check_between(0, 1, beta=beta)
        self.lam, self.beta = lam, beta

    def contexts(self, given: Context, amateur: bool) -> list[Context]:
        return [replace(needs_picture(given), image=None)]

    def weights(self, t: int) -> tuple[float, ...]:
        k = growth(self.lam, t)
        return (1 + k, -k)

    def combine(self, z: Sequence[Tensor], t: int) -> Tensor:
        return within(plausible(z[0], self.beta), weighted(z, self.weights(t)))


def growth(lam: float, t: int) -> float:
    """k_t = e^{lam t} - 1, at most 1e4."""
    return math.expm1(min(lam * t, math.log(1e4)))
