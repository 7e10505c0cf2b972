"""Visual contrastive decoding: what the model says of the picture and would not say of noise.

Leng, Zhang, Chen, Li, Lu, Miao and Bing, "Mitigating Object Hallucinations in Large Vision-Language Models through Visual
Contrastive Decoding", CVPR 2024 (arXiv 2311.16922).

**What it is.** A second stream reads the same words about a picture drowned in noise, so it says what the words alone
suggest, and is subtracted:

    s = (1 + alpha) z - alpha z',        among the tokens with at least beta of z's largest probability

    x_n = sqrt(abar_n) x + sqrt(1 - abar_n) eps,    abar_n = prod_{i <= n} (1 - b_i),    n = step of 1,000
    b = b_1 + (b_T - b_1) sigmoid(i) for i from -6 to 6,    b_1 = 1e-5, b_T = 5e-3

on the pixels as the model reads them, already normalised. One noise for one prompt and picture, all answer long.

**When it helps.** Models that name what usually stands beside the things they see. Later studies trace its gain on yes/no
benchmarks to two other causes: the plausible head, which makes sampling nearly greedy, and a shift of all answers to one
side. Compare with greedy and with the head alone (alpha = 0) before believing a gain.

**What it costs.** A second row of the batch, and a second picture through the encoder.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from notan.errors import check_between
from notan.strategies._strategy import Context, needs_picture, plausible, weighted, within
from notan.views.random import normal

CARD = {
    "title": "Mitigating Object Hallucinations in Large Vision-Language Models through Visual Contrastive Decoding",
    "arxiv": "2311.16922", "year": 2024, "needs": ["prompt", "image"],
    "claim": "Subtracting what the model says of a noised picture removes objects that only the words suggest.",
    "cost": "A second row of the batch and a second picture.",
    "sum": "1",
    "off": {"alpha": 0.0, "beta": 0.0},
    "deviations": [
        "The noise is drawn from a key of seed, prompt and picture, not from torch's generator.",
    ],
}


class VCD:
    """The picture minus noise.

    alpha: strength of the contrast; the released scripts use 1.
    beta: smallest share of the largest probability that a token may have.
    step: how far the picture is drowned, 0 (not at all) to 999 (all noise).
    """

    def __init__(self, *, alpha: float = 1.0, beta: float = 0.1, step: int = 500) -> None:
        check_between(0, math.inf, alpha=alpha)
        check_between(0, 1, beta=beta)
        check_between(0, 999, step=step)
        self.alpha, self.beta, self.step = alpha, beta, step

    def contexts(self, given: Context, amateur: bool) -> list[Context]:
        return [replace(needs_picture(given), noise=lambda x: noised(x, self.step, given.key))]

    def weights(self, t: int) -> tuple[float, ...]:
        return (1 + self.alpha, -self.alpha)

    def combine(self, z: Sequence[Tensor], t: int) -> Tensor:
        return within(plausible(z[0], self.beta), weighted(z, self.weights(t)))


def noised(x: Tensor, step: int, key: int) -> Tensor:
    """Normalised pixels (any shape) after `step` of 1,000 steps of diffusion; the noise is a function of the key."""
    b = torch.linspace(-6, 6, 1000, dtype=torch.float64).sigmoid() * (5e-3 - 1e-5) + 1e-5
    abar = float((1 - b).cumprod(0)[step])
    eps = normal(torch.tensor([key]), "vcd noise", x.numel()).view(x.shape).to(x)
    return math.sqrt(abar) * x + math.sqrt(1 - abar) * eps
