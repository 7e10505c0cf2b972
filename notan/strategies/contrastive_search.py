"""Contrastive search: a likely token whose meaning the text has not had yet.

Su, Lan, Wang, Yogatama, Kong and Collier, "A Contrastive Framework for Neural Text Generation", NeurIPS 2022 (arXiv
2202.06417); Su and Collier, "Contrastive Search Is What You Need For Neural Text Generation", TMLR 2023 (arXiv 2210.14140).

**What it is.** The likeliest text repeats itself, and sampled text drifts. Here each of the k likeliest tokens is tried,
and its state h_v (the last layer's, which the head reads) is compared with the states H_j of all tokens before it, prompt
included:

    score(v) = (1 - alpha) p(v | x) - alpha max_j cos(h_v, H_j),        v among the k likeliest

The best is taken; nothing is drawn. alpha = 0 is greedy, and so is k = 1. `diverse` draws that many first tokens by
nucleus sampling, so that one prompt has several continuations.

**When it helps.** Open-ended text from a model whose states differ from one another (isotropy 0.5 and more: most models
but the two smallest English GPT-2). The papers find human-like diversity at much better coherence than sampling; for
translation with larger models beam search is better.

**What it costs.** k candidates read the context in one pass: k tokens of one row where the model allows, so the cache is
not copied.
"""

from __future__ import annotations

import math

from torch import Tensor

from notan.errors import check_between

CARD = {
    "title": "Contrastive Search Is What You Need For Neural Text Generation", "arxiv": "2210.14140", "year": 2023,
    "needs": ["prompt"],
    "claim": "Trading probability against similarity to the text so far gives text as diverse as people's and coherent, "
             "from models as they are.",
    "cost": "One pass of k tokens for each token, on one cache.",
    "sum": "does not add streams",
    "off": {"alpha": 0.0},
    "deviations": [
        "Logits processors act before the k likeliest are taken; the official code has none.",
        "Ties go to the likelier token.",
    ],
}


class ContrastiveSearch:
    """Probability against similarity, one token ahead.

    k: how many of the likeliest tokens are tried.
    alpha: weight of the similarity, 0 to 1; 0 is greedy.
    diverse: number of first tokens that are drawn by nucleus sampling instead.
    nucleus: probability of the nucleus they are drawn from.
    """

    def __init__(self, *, k: int = 5, alpha: float = 0.6, diverse: int = 0, nucleus: float = 0.95) -> None:
        check_between(1, math.inf, k=k)
        check_between(0, math.inf, diverse=diverse)
        check_between(0, 1, alpha=alpha, nucleus=nucleus)
        self.k, self.alpha, self.diverse, self.nucleus = k, alpha, diverse, nucleus

    def rerank(self, p: Tensor, h: Tensor, H: Tensor, seen: Tensor) -> Tensor:
        """Which candidate to take: int (B,).

        p (B, k) probabilities, likeliest first; h (B, k, E) the candidates' states and H (B, L, E) those of the text so
        far, float32 of length 1; seen bool (B, L), False at padding.
        """
        return self.score(p, h, H, seen).argmax(1)

    def score(self, p: Tensor, h: Tensor, H: Tensor, seen: Tensor) -> Tensor:
        """(1 - alpha) p - alpha max cos: (B, k)."""
        cos = (h @ H.mT).masked_fill(~seen[:, None], -1.0)              # (B, k, L); no cosine is less
        return (1 - self.alpha) * p - self.alpha * cos.amax(2)
