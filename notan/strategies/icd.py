"""Induce, then contrast: what the model says and a hallucinating copy of it does not.

Zhang, Cui, Bi and Shi, "Alleviating Hallucinations of Large Language Models through Induced Hallucinations", Findings of
NAACL 2025 (arXiv 2312.15710).

**What it is.** A copy of the model is made to hallucinate, by fine-tuning on untruths or by an instruction to make things
up, and its logits are subtracted:

    s = z - c z_untrue,        chosen among the tokens with at least beta of the model's largest probability

Without an amateur the copy is the same model behind an instruction, and both streams are rows of one pass.

**When it helps.** Questions where the model knows the truth and a popular error competes with it. S = 1 - c = 0 at the
paper's c: where the two agree, the choice among plausible tokens is *uniform*, so sample with care, or take the best.

**What it costs.** A second stream: a batch of two rows (instruction), or a second model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from notan.errors import check_between
from notan.strategies._strategy import Context, plausible, weighted, within

CARD = {
    "title": "Alleviating Hallucinations of Large Language Models through Induced Hallucinations", "arxiv": "2312.15710",
    "year": 2025, "needs": ["prompt"],
    "claim": "Subtracting a copy that was made to hallucinate makes answers more truthful.",
    "cost": "A second row of the batch, or one pass of the amateur.",
    "sum": "1 - c: 0 at the paper's c = 1",
    "off": {"c": 0.0, "beta": 0.0},
    "deviations": [
        "The instruction's words are ours; the paper's differ between tasks.",
        "The induced stream reads every emitted token; the released prompt variant never appends them to it.",
    ],
}


class ICD:
    """The model minus its hallucinating copy.

    c: strength of the contrast.
    beta: smallest share of the model's largest probability that a token may have.
    instruction: what the model reads first to hallucinate, when no amateur that was tuned to do so is given.
    """

    def __init__(
        self, *, c: float = 1.0, beta: float = 0.1,
        instruction: str = "You make things up. Answer with a statement that sounds right and is false.",
    ) -> None:
        check_between(0, math.inf, c=c)
        check_between(0, 1, beta=beta)
        self.c, self.beta, self.instruction = c, beta, instruction

    def contexts(self, given: Context, amateur: bool) -> list[Context]:
        return [replace(given, model="amateur") if amateur else replace(given, system=self.instruction)]

    def weights(self, t: int) -> tuple[float, ...]:
        return (1.0, -self.c)

    def combine(self, z: Sequence[Tensor], t: int) -> Tensor:
        return within(plausible(z[0], self.beta), weighted(z, self.weights(t)))
