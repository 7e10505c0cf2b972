"""LOL: a model against its hallucinating copy, at the last layer and at a lower one, told to be truthful.

Chen, Fang, Ni, Liang, Xu, Yang and Li, "Lower Layer Matters: Alleviating Hallucination via Multi-Layer Fusion Contrastive
Decoding with Truthfulness Refocused", 2024 (arXiv 2408.08769).

**What it is.** Subtracting a copy that was made to hallucinate (see `icd`) at the last layer alone is coarse. Here the same
contrast is also made with what the head says of a lower layer m, and the model, not the copy, reads an instruction to be
truthful before the prompt:

    F_N = b q_E,N - c q_A,N      F_m = q_E,m - q_A,m        q = log softmax(head(h)),  E the model, A its copy
    s   = F_N + omega F_m,       among the tokens with at least beta of q_E,N's largest probability

The abstracts name these parts; no code was released, so weights, layer and instruction are reconstructed.

**When it helps.** Where `icd` does, and the copy differs from the model in its lower layers too: an amateur that was tuned in
its upper layers only has F_m = 0, and this is `icd`. All weights come to 0 at b = c = 1: take the best rather than sample.

**What it costs.** What `icd` costs and two products with the head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from notan.errors import check_between
from notan.strategies._strategy import Context, plausible, weighted, within

CARD = {
    "title": "Lower Layer Matters: Alleviating Hallucination via Multi-Layer Fusion Contrastive Decoding with Truthfulness "
             "Refocused", "arxiv": "2408.08769", "year": 2024, "needs": ["prompt"],
    "claim": "Fusing the contrast of a lower layer with that of the last, under an instruction to be truthful, is more truthful "
             "than the last layer's alone.",
    "cost": "A second row of the batch, or one pass of the amateur, and two products with the head.",
    "sum": "b - c: 0 at b = c = 1",
    "off": {"c": 0.0, "omega": 0.0, "beta": 0.0},
    "deviations": [
        "Formula reconstructed from the abstracts: the fusion's weight, the lower layer and both instructions are ours.",
        "Lower layers go to the head without the final norm, as in the code of DoLa and ICD.",
    ],
}


class LOL:
    """ICD at two depths.

    b: strength of the model at the last layer.
    c: strength of its copy there.
    omega: weight of the lower layer's contrast; 0 is ICD.
    lower: the lower layer, as a share of the blocks.
    beta: smallest share of the model's largest probability that a token may have.
    truth: what the model reads first; empty for nothing.
    instruction: what makes the model hallucinate, when no amateur that was tuned to do so is given.
    """

    def __init__(
        self, *, b: float = 1.0, c: float = 1.0, omega: float = 0.5, lower: float = 0.25, beta: float = 0.1,
        truth: str = "Answer truthfully and literally, with what can be verified.",
        instruction: str = "You make things up. Answer with a statement that sounds right and is false.",
    ) -> None:
        check_between(0, math.inf, b=b, c=c, omega=omega)
        check_between(0, 1, lower=lower, beta=beta)
        self.b, self.c, self.omega, self.lower, self.beta = b, c, omega, lower, beta
        self.truth, self.instruction = truth, instruction

    def main(self, given: Context) -> Context:
        return replace(given, system=self.truth)

    def contexts(self, given: Context, amateur: bool) -> list[Context]:
        return [replace(given, model="amateur") if amateur else replace(given, system=self.instruction)]

    def layers(self, depth: int, tied: bool) -> tuple[int, ...]:
        return (max(1, round(self.lower * depth)),)                     # a tied head gives the embeddings themselves back

    def weights(self, t: int) -> tuple[float, ...]:
        return (self.b, -self.c, self.omega, -self.omega)

    def combine(self, z: Sequence[Tensor], t: int) -> Tensor:
        """z: the last layer's logits of the model and of its copy, then the lower layer's."""
        q = [x.log_softmax(1) for x in z]
        return within(plausible(q[0], self.beta), weighted(q, self.weights(t)))
