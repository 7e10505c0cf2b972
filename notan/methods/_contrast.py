"""Contrast over the rows of all ranks: each loss here is the one of the whole global batch, whatever rank holds which row.

A rank compares its own rows with the keys of all, so that the work is split and nobody holds all logits. What comes back is
the same number on every rank, with gradients that DDP's average makes exact (see `world`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from notan import world
from notan.errors import NotanError
from notan.losses.geometry import kernel_log_sums
from notan.losses.info_nce import info_nce, info_nce_bank
from notan.losses.mixed_pairs import Mixing, mixed_pairs
from notan.losses.sdm import sdm
from notan.losses.sigmoid import sigmoid_contrast
from notan.losses.supcon import sup_con
from notan.views import random
from notan.views.random import fold


def two_views(z1: Tensor, z2: Tensor, *, tau: float | Tensor) -> Tensor:
    """SimCLR's NT-Xent of this rank's two views (n, D): each of all 2N rows finds its partner among 2N - 1."""
    k1, k2 = world.gather(z1), world.gather(z2)                         # (N, D)
    own = _own(z1, len(k1))
    rows = info_nce(torch.cat([z1, z2]), torch.cat([k1, k2]), tau=tau, positive=torch.cat([own + len(k1), own]),
                    exclude=torch.cat([own, own + len(k1)]))
    return world.mean(rows.sum(), len(rows))


def one_way(q: Tensor, k: Tensor, *, tau: float | Tensor) -> Tensor:
    """InfoNCE of this rank's queries (n, D), whose keys are k (n, D), among the keys of all."""
    keys = world.gather(k)
    rows = info_nce(q, keys, tau=tau, positive=_own(q, len(keys)))
    return world.mean(rows.sum(), len(rows))


def both_ways(q: Tensor, k: Tensor, *, tau: float | Tensor) -> Tensor:
    """CLIP's loss: the mean of both directions."""
    return (one_way(q, k, tau=tau) + one_way(k, q, tau=tau)) / 2


def both_ways_by_label(q: Tensor, k: Tensor, labels: Tensor, *, tau: float | Tensor) -> Tensor:
    """The same where all rows of one label, int64 (n,) of 0 and more, belong together: the mean over them of -log their share.

    Where every label is there once it is `both_ways`.
    """
    queries, keys, every = world.gather(q), world.gather(k), world.gather_plain(labels)
    _own(q, len(keys))
    sides = [sup_con(x, y, labels, every, tau=tau)[0] for x, y in ((q, keys), (k, queries))]
    return world.mean(torch.stack(sides).sum(), 2 * len(q))


def by_identity(q: Tensor, k: Tensor, identity: Tensor, *, tau: float | Tensor) -> Tensor:
    """SDM of this rank's pairs (n, D) twice in both directions, added up; what has one identity, int64 (n,), belongs together."""
    every = world.gather_plain(identity)
    _check_negatives(len(every))
    loss = q.new_zeros(())
    for x, y in ((q, k), (k, q)):
        rows = sdm(x, world.gather(y), lambda i, j: identity[i, None] == every[j], tau=tau)
        loss = loss + world.mean(rows.sum(), len(rows))
    return loss


def against_queue(q: Tensor, k: Tensor, queue: Tensor, *, tau: float | Tensor) -> Tensor:
    """MoCo's loss: this rank's queries and keys (n, D), and negatives (M, D) that every rank has."""
    rows = info_nce_bank(q, k, queue, tau=tau)
    return world.mean(rows.sum(), len(rows))


def same_class(z: Tensor, labels: Tensor, *, tau: float | Tensor) -> Tensor:
    """SupCon's L_out of views (n, V, D) of rows with labels (n,): all views of all rows of a class belong together.

    Rows of a class that is there once, in one view, do not count; where no row counts the loss is 0.
    """
    v = z.shape[1]
    keys, every = world.gather(z), world.gather_plain(labels)
    own = (_own(z, len(keys))[:, None] * v + torch.arange(v, device=z.device)).flatten()
    rows, valid = sup_con(z.flatten(0, 1), keys.flatten(0, 1), labels.repeat_interleave(v), every.repeat_interleave(v), tau=tau,
                          exclude=own)
    return world.mean(rows.sum(), valid.sum())


def near_targets(z: Tensor, targets: Tensor, key: Tensor, *, tau: float | Tensor, beta: tuple[float, float] | None,
                 how: Mixing) -> tuple[Tensor, Tensor]:
    """SupReMix's loss of views (n, V, D) of rows with targets (n,), and how many mixed positives a view has on average.

    beta: of what a mixed negative keeps of its anchor, drawn from the keys (n,) of both rows; None for no mixed negatives.
    """
    v = z.shape[1]
    view = torch.arange(v, device=z.device)
    keys, every, own_key = world.gather(z), world.gather_plain(targets), fold(key[:, None], view).flatten()
    key = world.gather_plain(own_key)
    own = (_own(z, len(keys))[:, None] * v + view).flatten()

    def share(rows: slice, columns: slice) -> Tensor:
        assert beta is not None
        return random.beta(fold(own_key[rows, None], key[columns]), "mix", *beta)

    rows, real, mixed = mixed_pairs(z.flatten(0, 1), keys.flatten(0, 1), targets.repeat_interleave(v),
                                    every.repeat_interleave(v), tau=tau, exclude=own, share=share if beta else None, how=how)
    return world.mean(rows.sum(), (real + mixed > 0).sum()), world.mean(mixed.sum().to(rows.dtype), len(rows))


def each_pair(q: Tensor, k: Tensor, *, tau: float | Tensor, bias: float | Tensor) -> Tensor:
    """SigLIP's loss, with the keys handed round: no rank holds those of all. The mean over rows of the sum over keys."""
    rows = torch.zeros(len(q), dtype=torch.promote_types(q.dtype, torch.float32), device=q.device)
    own, whole = torch.arange(len(q), device=q.device), 0
    for rank, keys in world.ring(k):
        positive = own if rank == world.rank() else torch.full_like(own, -1)
        rows, whole = rows + sigmoid_contrast(q, keys, tau=tau, bias=bias, positive=positive), whole + len(keys)
    _check_negatives(whole)
    return world.mean(rows.sum(), len(rows))


def evenness(z: Tensor, *, t: float) -> Tensor:
    """`geometry.uniformity` of the rows (n, D) of all ranks: (). 0 where all are equal; lower, the more evenly they lie."""
    return evenness_between(z, z, t=t)


def evenness_between(x: Tensor, y: Tensor, *, t: float) -> Tensor:
    """log of the mean over i != j of exp(-t |x_i - y_j|^2), of the pairs (n, D) twice of all ranks: ()."""
    keys = world.gather(y)
    rows = world.gather(kernel_log_sums(x, keys, t=t, exclude=_own(x, len(keys))))
    return rows.logsumexp(0) - math.log(len(keys) * (len(keys) - 1))


def negative_entropy(z: Tensor, *, t: float) -> Tensor:
    """Minus the entropy of the rows (n, D) of all ranks by Gaussian kernels, themselves included: (), from -log N to 0."""
    keys = world.gather(z)
    return world.mean(kernel_log_sums(z, keys, t=t).sum(), len(z)) - math.log(len(keys))


def _own(x: Tensor, whole: int) -> Tensor:
    """Places of this rank's rows in the global batch. Raises `NotanError` where that has one row."""
    _check_negatives(whole)
    return world.offset(len(x)) + torch.arange(len(x), device=x.device)


def _check_negatives(whole: int) -> None:
    if whole < 2:
        raise NotanError("a batch of one row has no negatives", "at least two rows", "raise --batch")
