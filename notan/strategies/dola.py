"""DoLa: what the last layer says and an earlier one did not say yet.

Chuang, Xie, Luo, Kim, Glass and He, "DoLa: Decoding by Contrasting Layers Improves Factuality in Large Language Models",
ICLR 2024 (arXiv 2309.03883).

**What it is.** The head is asked what it would say of an earlier layer's state. Where a fact is at stake the answer still
changes in the upper layers; the layer that differs most from the last one is subtracted from it:

    q_j = log softmax(head(h_j)),      h_j the state after block j, N the last block
    j*  = argmax over candidate j of JSD(q_N, q_j),      a new choice for every token
    s   = q_N - c q_j*,                among the tokens with at least beta of the last layer's largest probability

**When it helps.** The paper: short factual answers against the upper half of the layers ("high"), long reasoning against
the lower half ("low"). At the paper's c = 1 the weights come to 0, so plain sampling from the contrast is flat: take the
best. Controlled studies find little on models tuned to follow instructions.

**What it costs.** One product with the head for each candidate layer and token; no second pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from notan.errors import check_between
from notan.strategies._strategy import Context, plausible, within

CARD = {
    "title": "DoLa: Decoding by Contrasting Layers Improves Factuality in Large Language Models", "arxiv": "2309.03883",
    "year": 2024, "needs": ["prompt"],
    "claim": "Subtracting what an earlier layer would have said makes answers more factual, with no other model.",
    "cost": "One product with the head for each candidate layer.",
    "sum": "1 - c: 0 at the paper's c = 1",
    "off": {"c": 0.0, "beta": 0.0},
    "deviations": [
        "Each row of a batch chooses its own layer; the official code chooses one for all (`jsd=official`).",
        "What a model does to its logits after the head (a soft cap, a scale) is not done to the earlier layers'.",
    ],
}


class DoLa:
    """Last layer minus an earlier one.

    bucket: the candidates, every second layer of the lower half (low) or of the upper half (high).
    c: strength of the contrast.
    beta: smallest share of the last layer's largest probability that a token may have.
    jsd: true (Jensen-Shannon divergence, for each row) or official (the released code's: both divergences the other way
        round, averaged over vocabulary and batch).
    norm: pass an earlier state through the final norm before the head; the released code does not.
    """

    def __init__(self, *, bucket: Literal["low", "high"] = "low", c: float = 1.0, beta: float = 0.1,
                 jsd: Literal["true", "official"] = "true", norm: bool = False) -> None:
        check_between(0, math.inf, c=c)
        check_between(0, 1, beta=beta)
        self.bucket, self.c, self.beta, self.jsd, self.norm = bucket, c, beta, jsd, norm

    def contexts(self, given: Context, amateur: bool) -> list[Context]:
        return []

    def layers(self, depth: int, tied: bool) -> tuple[int, ...]:
        """Candidate layers of a model of `depth` blocks, 0 being the embeddings, which a tied head only gives back."""
        start, half = (2 if tied else 0), depth // 2
        if depth > 40:
            return tuple(range(start, 20, 2) if self.bucket == "low" else range(depth - 20, depth, 2))
        found = range(start, half, 2) if self.bucket == "low" else range(half, depth, 2)
        return tuple(found) or (max(start - 1, 0),)                     # a model of few blocks has one below the last

    def weights(self, t: int) -> tuple[float, ...]:
        return (1.0, -self.c)                                           # of the last layer and the chosen one

    def combine(self, z: Sequence[Tensor], t: int) -> Tensor:
        """z: the last layer's logits, then the candidates'."""
        q, *early = (x.log_softmax(1) for x in z)                       # (B, V)
        q_j = torch.stack(early)                                        # (J, B, V)
        chosen = self.divergence(q, q_j).argmax(0)                      # (B,)
        return within(plausible(q, self.beta), q - self.c * q_j[chosen, torch.arange(len(q), device=q.device)])

    def divergence(self, q: Tensor, q_j: Tensor) -> Tensor:
        """How far each candidate (J, B, V) is from the last layer (B, V), both log-probabilities: (J, B)."""
        m = torch.logaddexp(q.expand_as(q_j), q_j) - torch.log(torch.tensor(2.0))
        if self.jsd == "true":
            return 0.5 * ((q.exp() * (q - m)).sum(2) + (q_j.exp() * (q_j - m)).sum(2))
        swapped = 0.5 * ((m.exp() * (m - q)).mean(2) + (m.exp() * (m - q_j)).mean(2))
        return swapped.mean(1, keepdim=True).expand(-1, q.shape[0])
