"""Objectives of models with a latent code: VAE, A-MIM, and cMIM's contrast of a code with itself.

Livne, Swersky and Fleet 2019 (MIM) and 2020 (SentenceMIM); Livne 2025 (cMIM, arXiv 2502.19642). All values are per row,
in nats; `log_sigma` is the logarithm of the standard deviation, never of the variance.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from notan.losses.info_nce import hidden
from notan.losses.tiles import TILE, log_sum_exp


def sample(mu: Tensor, log_sigma: Tensor, noise: Tensor) -> Tensor:
    """z = mu + sigma * noise, differentiable in mu and log_sigma: (B, D)."""
    return mu + log_sigma.exp() * noise


def normal_log_prob(z: Tensor, mu: Tensor, log_sigma: Tensor) -> Tensor:
    """log N(z; mu, diag sigma^2): (B, D) to (B,)."""
    e = (z - mu) * (-log_sigma).exp()
    return (-0.5 * e.square() - log_sigma - 0.5 * math.log(2 * math.pi)).sum(1)


def prior_log_prob(z: Tensor) -> Tensor:
    """log N(z; 0, I): (B, D) to (B,)."""
    return (-0.5 * z.square() - 0.5 * math.log(2 * math.pi)).sum(1)


def bernoulli_log_prob(logits: Tensor, x: Tensor) -> Tensor:
    """log p(x) of x in [0, 1] under independent Bernoulli variables, summed over all but the rows: (B, ...) to (B,)."""
    return -F.binary_cross_entropy_with_logits(logits, x, reduction="none").flatten(1).sum(1)


def vae(log_px: Tensor, log_qz: Tensor, log_pz: Tensor) -> Tensor:
    """-log p(x|z) + log q(z|x) - log P(z): the negative ELBO at one sample, (B,)."""
    return -log_px + log_qz - log_pz


def a_mim(log_px: Tensor, log_qz: Tensor, log_pz: Tensor) -> Tensor:
    """-log p(x|z) - (log q(z|x) + log P(z)) / 2 (A-MIM), (B,). A sharp posterior is rewarded: keep log sigma >= -6."""
    return -log_px - 0.5 * (log_qz + log_pz)


def self_contrast(
    z: Tensor, *, tau: float, bank: Tensor | None = None, own: Tensor | None = None, tile: int = TILE,
) -> Tensor:
    """cMIM's log p(k = 1 | x_i, z_i), one value in [-log 2, 0] per row: (N,).

    z: codes (N, D) as sampled. bank: the codes (M, D) of all ranks, with own (N,) the place of each z in it; both
    default to z itself. The code is its own positive, with similarity 1, and the negatives count by their *mean*, so
    that the value does not grow with the batch: InfoNCE with the negatives' logits lowered by log(M - 1). One softplus,
    so that nothing cancels where the term is small. tile: similarities held at once.
    """
    bank = z if bank is None else bank
    own = torch.arange(z.shape[0], device=z.device) if own is None else own
    if bank.shape[0] == 1:
        return (z * 0).sum(1)
    others = log_sum_exp(z, bank, tau, edit=hidden(own), tile=tile)
    return -F.softplus(others - math.log(bank.shape[0] - 1) - 1 / tau)
