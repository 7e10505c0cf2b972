"""Contrast over ranks: on one, two and four, with uneven shares, the loss and the gradient of the whole batch."""

from __future__ import annotations

import pytest
import torch
from ranks import spawn

from notan import world
from notan.errors import NotanError
from notan.losses.info_nce import nt_xent, symmetric_info_nce
from notan.losses.sigmoid import sigmoid_contrast
from notan.losses.supcon import sup_con
from notan.methods import _contrast

LABELS = torch.tensor([0, 1, 0, 2, -1, 1, 0, 3, 3])
SPLITS = {1: [9], 2: [6, 3], 4: [3, 1, 3, 2]}


def _batch():
    g = torch.Generator().manual_seed(0)
    x, y, queue = (torch.randn(n, 5, generator=g, dtype=torch.float64) for n in (9, 9, 20))
    return x, y, queue, torch.randn(5, 4, generator=g, dtype=torch.float64)


def _losses(x, y, queue, labels, w, tau):
    """Each loss of rows x and y, through weights w."""
    q, k = x @ w, y @ w
    return {"two views": _contrast.two_views(q, k, tau=tau), "one way": _contrast.one_way(q, k, tau=tau),
            "both ways": _contrast.both_ways(q, k, tau=tau), "queue": _contrast.against_queue(q, k, queue @ w.detach(), tau=tau),
            "classes": _contrast.same_class(torch.stack([q, k], 1), labels, tau=tau),
            "one view": _contrast.same_class(q[:, None], labels, tau=tau),
            "pairs": _contrast.each_pair(q, k, tau=tau, bias=-1.0)}


def _gradients(rank, size):
    x, y, queue, w = _batch()
    start = sum(SPLITS[size][:rank])
    here, found = slice(start, start + SPLITS[size][rank]), {}
    for name in _losses(x[here], y[here], queue, LABELS[here], w, 0.3):
        w, tau = w.detach().requires_grad_(), torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
        loss = _losses(x[here], y[here], queue, LABELS[here], w, tau)[name]
        loss.backward()
        found[name] = {"loss": loss.detach(), "w": world.gather_plain(w.grad[None]).mean(0),
                       "tau": world.gather_plain(tau.grad[None]).mean(0)}
    return found


@pytest.mark.parametrize("size", [2, 4])
def test_uneven_ranks_equal_one(size):
    whole = _gradients(0, 1)
    for rank in spawn(_gradients, size):
        for name, found in rank.items():
            for part, value in found.items():
                torch.testing.assert_close(value, whole[name][part], rtol=1e-11, atol=1e-12, msg=f"{name}: {part}")


def test_one_rank_is_the_loss_of_the_whole():
    x, y, queue, w = _batch()
    found = _losses(x, y, queue, LABELS, w, 0.3)
    q, k = x @ w, y @ w
    own = torch.arange(9)
    rows, valid = sup_con(q, q, LABELS, LABELS, tau=0.3, exclude=own)
    torch.testing.assert_close(found["two views"], nt_xent(q, k, tau=0.3))
    torch.testing.assert_close(found["both ways"], symmetric_info_nce(q, k, tau=0.3).mean())
    torch.testing.assert_close(found["one view"], rows.sum() / valid.sum())
    torch.testing.assert_close(found["pairs"], sigmoid_contrast(q, k, tau=0.3, bias=-1.0, positive=own).mean())


def test_a_batch_of_one_is_refused_and_no_class_twice_is_nothing():
    z = torch.randn(1, 4)
    for loss in (_contrast.two_views, _contrast.one_way, _contrast.both_ways):
        with pytest.raises(NotanError, match="a batch of one row has no negatives"):
            loss(z, z, tau=0.1)
    z = torch.randn(3, 1, 4, requires_grad=True)
    loss = _contrast.same_class(z, torch.arange(3), tau=0.1)
    assert loss == 0 and not torch.autograd.grad(loss, z)[0].any()
