"""Several right keys, each pair by itself, and the nearest negatives: by hand, with gradients, at their limits."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from test_losses_tiles import logits, same, scalar, width, z  # noqa: F401

from notan.errors import NotanError
from notan.losses.hardness import hard, hard_simple, hardest_triplet, nearest, simple
from notan.losses.info_nce import info_nce
from notan.losses.sigmoid import sigmoid_contrast
from notan.losses.supcon import multi_positive, multi_positive_in, sup_con


def wave(*shape, a, b=0.0):
    """sin(a (i + 1) + b), i the place in the flattened array."""
    return (a * (torch.arange(math.prod(shape), dtype=torch.float64) + 1) + b).sin().view(shape)


# ------------------------------------------------------------------------------------------------------- several positives

def out_by_hand(q, k, positive, tau, counted):
    """Equation 2 of SupCon, a row at a time."""
    s, rows = logits(q, k, tau), []
    for i in range(len(q)):
        p = positive[i].nonzero()[:, 0]
        rows.append(-(s[i, p] - s[i, counted[i]].logsumexp(0)).mean() if len(p) else s[i, 0] * 0)
    return torch.stack(rows)


def in_by_hand(q, k, positive, tau, counted):
    """Equation 3: the logarithm outside of the mean over positives."""
    s, rows = logits(q, k, tau), []
    for i in range(len(q)):
        p = positive[i].nonzero()[:, 0]
        rows.append(-((s[i, p] - s[i, counted[i]].logsumexp(0)).exp().mean()).log() if len(p) else s[i, 0] * 0)
    return torch.stack(rows)


def test_supcon_by_labels_by_pairs_and_by_hand(width):  # noqa: F811
    q, k, tau = z(7, 4), z(9, 4, seed=1), scalar(0.3)
    y, yk = torch.tensor([0, 1, 2, 0, -1, 5, 3]), torch.tensor([0, 0, 1, 3, 3, -1, 2, 0, 3])
    own = torch.tensor([0, 2, 6, 1, 5, 8, 4])
    every = torch.ones(7, 9, dtype=torch.bool)
    positive = (y[:, None] == yk) & (y[:, None] >= 0)
    for exclude in (None, own):
        away = every if exclude is None else every & ~F.one_hot(own, 9).bool()
        here = positive & away
        reference = lambda p=here, c=away: out_by_hand(q, k, p, tau, c)  # noqa: E731
        same(lambda e=exclude: sup_con(q, k, y, yk, tau=tau, exclude=e, tile=40)[0], reference, (q, k, tau))
        same(lambda p=here, c=away: multi_positive(q, k, p, counted=c, tau=tau, tile=40)[0], reference, (q, k, tau))
        assert sup_con(q, k, y, yk, tau=tau, exclude=exclude)[1].tolist() == here.any(1).tolist()
        same(lambda p=here, c=away: multi_positive_in(q, k, lambda i, j: p[i, j], counted=c, tau=tau, tile=40)[0],
             lambda p=here, c=away: in_by_hand(q, k, p, tau, c), (q, k, tau))


def test_supcon_with_one_positive_is_info_nce():
    q, k, y = z(5, 4), z(5, 4, seed=1), torch.arange(5)
    torch.testing.assert_close(sup_con(q, k, y, y, tau=0.2)[0], info_nce(q, k, tau=0.2, positive=y))
    torch.testing.assert_close(multi_positive_in(q, k, torch.eye(5).bool(), tau=0.2)[0], info_nce(q, k, tau=0.2, positive=y))


@settings(max_examples=20, deadline=None)
@given(n=st.integers(3, 9), seed=st.integers(0, 99), classes=st.integers(1, 4))
def test_supcon_carries_the_order_along_and_out_is_above_in(n, seed, classes):
    x, y = z(n, 4, seed=seed, grad=False), torch.arange(n) % classes
    own, order = torch.arange(n), torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    rows, valid = sup_con(x, x, y, y, tau=0.3, exclude=own)
    again, _ = sup_con(x[order], x[order], y[order], y[order], tau=0.3, exclude=own)
    torch.testing.assert_close(rows[order], again)
    pairs = (y[:, None] == y) & ~torch.eye(n).bool()
    low, _ = multi_positive_in(x, x, pairs, counted=~torch.eye(n).bool(), tau=0.3)
    assert (rows[valid] >= low[valid] - 1e-12).all()


def test_equal_vectors_one_class_and_rows_without_a_positive():
    ones, own = torch.ones(6, 4, dtype=torch.float64, requires_grad=True), torch.arange(6)
    rows, valid = sup_con(ones, ones, own * 0, own * 0, tau=0.1, exclude=own)
    assert valid.all() and torch.allclose(rows, torch.full_like(rows, math.log(5)))
    q = z(6, 4)
    rows, valid = sup_con(q, q, own, own, tau=0.1, exclude=own)
    assert not valid.any() and not rows.any() and not torch.autograd.grad(rows.sum(), q)[0].any()
    rows, valid = multi_positive(q, q, torch.zeros(6, 6).bool(), tau=0.1)
    assert not valid.any() and not torch.autograd.grad(rows.sum(), q)[0].any()
    rows, valid = multi_positive_in(q, q, torch.zeros(6, 6).bool(), tau=0.1)
    assert not valid.any() and not torch.autograd.grad(rows.sum(), q)[0].any()
    with pytest.raises(NotanError, match="5 and 6 labels"):
        sup_con(q, q, own[:5], own, tau=0.1)
    with pytest.raises(NotanError, match="tau"):
        multi_positive(q, q, torch.eye(6).bool(), tau=0)


# --------------------------------------------------------------------------------------------------------- each pair alone

def test_sigmoid_by_hand_in_parts_and_with_gradients(width):  # noqa: F811
    q, k, tau, bias = z(5, 4), z(7, 4, seed=1), scalar(0.3), scalar(-2.0)
    positive = torch.tensor([6, 0, -1, 2, 3])
    sign = 2.0 * F.one_hot(positive.clamp(min=0), 7).double() * (positive >= 0)[:, None] - 1
    same(lambda: sigmoid_contrast(q, k, tau=tau, bias=bias, positive=positive),
         lambda: -F.logsigmoid(sign * (logits(q, k, tau) + bias)).sum(1), (q, k, tau, bias))
    first = torch.where(positive < 3, positive, -1)
    second = torch.where(positive >= 3, positive - 3, -1)
    torch.testing.assert_close(
        sigmoid_contrast(q, k[:3], tau=tau, bias=bias, positive=first)
        + sigmoid_contrast(q, k[3:], tau=tau, bias=bias, positive=second),
        sigmoid_contrast(q, k, tau=tau, bias=bias, positive=positive))


def test_sigmoid_limits():
    q, own = z(4, 3, dtype=torch.float32), torch.arange(4)
    rows = sigmoid_contrast(q, q, tau=0.001, bias=0.0, positive=own)    # logits of a thousand
    assert rows.isfinite().all() and torch.autograd.grad(rows.sum(), q)[0].isfinite().all()
    apart = sigmoid_contrast(torch.eye(4), torch.eye(4), tau=0.1, bias=-5.0, positive=own)
    assert apart.tolist() == pytest.approx([math.log1p(math.exp(-5)) * 4] * 4)
    zero = torch.zeros(4, 3, requires_grad=True)
    assert not torch.autograd.grad(sigmoid_contrast(zero, q, tau=0.1, bias=-1.0, positive=own).sum(), zero)[0].any()
    with pytest.raises(NotanError, match="tau"):
        sigmoid_contrast(q, q, tau=0.0, bias=0.0, positive=own)


# ----------------------------------------------------------------------------------------------------------- hard negatives

BANK, POINTS, RIGHT = wave(12, 4, a=.53, b=1), wave(3, 4, a=.37), torch.tensor([0, 5, 7])


def test_golden_numbers():
    assert info_nce(POINTS, BANK, tau=0.1, positive=RIGHT).mean().item() == pytest.approx(4.8716847269, abs=1e-10)
    assert hard(POINTS, BANK, tau=0.1, positive=RIGHT, top=4).mean().item() == pytest.approx(4.8513720627, abs=1e-10)


@pytest.mark.parametrize("exclude", [None, torch.tensor([1, 1, -1])])
def test_all_negatives_are_the_soft_loss(exclude):
    left = 11 if exclude is None else 10
    q, k = POINTS[:2].clone().requires_grad_(), BANK.clone().requires_grad_()
    away = exclude if exclude is None else exclude[:2]
    same(lambda: hard(q, k, tau=0.2, positive=RIGHT[:2], top=left, exclude=away, tile=12),
         lambda: info_nce(q, k, tau=0.2, positive=RIGHT[:2], exclude=away), (q, k))


def test_negatives_that_are_not_chosen_have_no_gradient_and_fewer_are_easier():
    q, k = z(5, 4), z(20, 4, seed=1)
    positive = torch.arange(5)
    soft, few = info_nce(q, k, tau=0.2, positive=positive), hard(q, k, tau=0.2, positive=positive, top=3)
    assert (few > 0).all() and (few <= soft).all()
    g, = torch.autograd.grad(hard(q[:1], k, tau=0.2, positive=positive[:1], top=3).sum(), k)
    assert (g.abs().sum(1) > 0).sum() == 4
    assert torch.autograd.gradcheck(lambda q, k: hard(q, k, tau=0.3, positive=positive, top=3, tile=40), (q, k))
    assert torch.autograd.gradcheck(lambda q, k: hard_simple(q, k, positive=positive, top=3, tile=40), (q, k))
    own, near = nearest(q, k, positive, 3)
    assert (near[:, 0] >= near[:, 1]).all() and torch.allclose(own, F.cosine_similarity(q, k[:5]))


def test_the_simple_loss_pushes_all_negatives_alike():
    q, k = F.normalize(z(4, 6, grad=False), dim=1).requires_grad_(), z(9, 6, seed=1)
    rows = simple(q, k, positive=torch.arange(4), exclude=torch.tensor([5, -1, 7, -1]))
    s = logits(q, k, 1.0).requires_grad_()
    weights = torch.full((4, 9), 1 / 8, dtype=torch.float64)
    weights[0], weights[2] = 1 / 7, 1 / 7
    weights[0, 5], weights[2, 7] = 0, 0
    weights[torch.arange(4), torch.arange(4)] = -1
    torch.testing.assert_close(rows, (s * weights).sum(1))
    same(lambda: simple(q, k, positive=torch.arange(4)), lambda: hard_simple(q, k, positive=torch.arange(4), top=8), (q, k))


def test_the_limits_of_the_temperature():
    """tau L goes to the triplet of the hardest negative, and for large tau to the simple loss, with a rest of 1 / tau^2."""
    q, k = z(6, 8, grad=False), z(6, 8, seed=1, grad=False)
    own = torch.arange(6)
    torch.testing.assert_close(1e-4 * info_nce(q, k, tau=1e-4, positive=own), hardest_triplet(q, k, positive=own), atol=1e-3,
                               rtol=0)
    rest = []
    for tau in (10.0, 100.0, 1000.0):
        linear = math.log(6) + 5 / 6 * simple(q, k, positive=own) / tau
        rest.append((info_nce(q, k, tau=tau, positive=own) - linear).abs().max().item())
    assert rest[0] / rest[1] == pytest.approx(100, rel=0.1) and rest[1] / rest[2] == pytest.approx(100, rel=0.1)


def test_the_pull_equals_the_push():
    """dL/ds of the negatives sums to that of the positive; each is its share of the softmax over tau."""
    s = z(5, 9)
    row = F.cross_entropy(s / 0.1, torch.zeros(5).long(), reduction="none")
    g, = torch.autograd.grad(row.sum(), s)
    torch.testing.assert_close(-g[:, 0], g[:, 1:].sum(1))
    q = torch.eye(9, dtype=torch.float64)[:1].requires_grad_()
    k = F.normalize(z(9, 9, seed=4, grad=False), dim=1)
    d, = torch.autograd.grad(info_nce(q, k, tau=0.1, positive=torch.zeros(1).long()).sum(), q)
    p = (q @ k.T / 0.1).softmax(1)
    pushed = (p - F.one_hot(torch.zeros(1).long(), 9)) @ k / 0.1
    torch.testing.assert_close(d, pushed - q * (q * pushed).sum(1, keepdim=True))


def test_too_few_negatives_and_bad_temperatures_are_named():
    q, own = z(4, 3), torch.arange(4)
    for top in (0, 4):
        with pytest.raises(NotanError, match=f"the {top} nearest of 3 negatives"):
            hard(q, q, tau=0.1, positive=own, top=top)
    with pytest.raises(NotanError, match="the 1 nearest of 0"):
        hardest_triplet(q[:1], q[:1], positive=own[:1])
    with pytest.raises(NotanError, match="1 keys"):
        simple(q[:1], q[:1], positive=own[:1])
    with pytest.raises(NotanError, match="tau"):
        hard(q, q, tau=-1, positive=own, top=2)
