"""Contrastive decoding: what a large model expects and a small one of its family does not.

Li, Holtzman, Fried, Liang, Eisner, Hashimoto, Zettlemoyer and Lewis, "Contrastive Decoding: Open-ended Text Generation as
Optimization", ACL 2023 (arXiv 2210.15097); O'Brien and Lewis, "Contrastive Decoding Improves Reasoning in Large Language
Models", 2023 (arXiv 2309.09117).

**What it is.** The expert e and an amateur a with the same vocabulary read the same text. What both find likely is common to
all language models, repetition included; what only the expert finds likely is what its size has taught it.

    difference (Li et al.)          s = z_e - c z_a / tau               tau = 0.5: the amateur is sharpened first
    scaled     (O'Brien, Lewis)     s = (1 + c) z_e - c z_a / tau       tau = 1

Chosen among the tokens with at least beta of the expert's largest probability: without that, tokens that both find absurd
win by their ratio.

**When it helps.** Long open-ended text with a small model at hand that makes the large one's mistakes more often. With no
family of sizes, or short factual answers, expect little.

**What it costs.** The amateur's forward pass and cache beside the expert's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from torch import Tensor

from notan.errors import check_between
from notan.strategies._strategy import Context, plausible, weighted, within

CARD = {
    "title": "Contrastive Decoding: Open-ended Text Generation as Optimization", "arxiv": "2210.15097", "year": 2023,
    "needs": ["prompt", "amateur"],
    "claim": "Text chosen by how much more a large model expects it than a small one is more coherent at equal diversity.",
    "cost": "One pass of the amateur beside each of the expert.",
    "sum": "1 + c - c / tau (scaled; 1 at tau = 1), 1 - c / tau (difference)",
    "off": {"c": 0.0, "beta": 0.0},
    "deviations": [
        "Temperature and truncation are applied to the contrast, not to the expert before it.",
    ],
}


class ContrastiveDecoding:
    """Expert minus amateur.

    c: strength of the contrast; the papers use 0.5 (scaled) and 1 (difference).
    form: scaled or difference, see above.
    tau: temperature of the amateur's logits; Li et al. sharpen with 0.5, O'Brien and Lewis leave 1.
    beta: smallest share of the expert's largest probability that a token may have.
    """

    def __init__(self, *, c: float = 0.5, form: Literal["scaled", "difference"] = "scaled", tau: float = 1.0,
                 beta: float = 0.1) -> None:
        check_between(0, math.inf, c=c)
        check_between(1e-6, math.inf, tau=tau)
        check_between(0, 1, beta=beta)
        self.c, self.form, self.tau, self.beta = c, form, tau, beta

    def contexts(self, given: Context, amateur: bool) -> list[Context]:
        return [replace(given, model="amateur")]

    def weights(self, t: int) -> tuple[float, ...]:
        return (1 + self.c if self.form == "scaled" else 1.0, -self.c / self.tau)

    def combine(self, z: Sequence[Tensor], t: int) -> Tensor:
        return within(plausible(z[0], self.beta), weighted(z, self.weights(t)))
