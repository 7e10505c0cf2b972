"""Similarity distribution matching: its formula, its limits, its parts, and its gradient."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from notan.errors import NotanError
from notan.losses.sdm import sdm
from notan.methods._contrast import by_identity


def vectors(n, seed=0, grad=True):
    x = torch.randn(n, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return x.requires_grad_(grad)


def same_as(a, b):
    return a[:, None] == b


def by_hand(q, k, identity, tau):
    """Both directions, summed over numbers one by one."""
    total = 0.0
    s = F.normalize(q, dim=1) @ F.normalize(k, dim=1).T / tau
    for logits, right in ((s, same_as(identity, identity)), (s.T, same_as(identity, identity).T)):
        for i in range(len(logits)):
            p = logits[i].exp() / logits[i].exp().sum()
            for j in range(len(logits)):
                share = float(right[i, j]) / float(right[i].sum())
                total = total + p[j] * (p[j].log() - math.log(share + 1e-8)) / len(logits)
    return total


@pytest.mark.parametrize("identity", [[0, 1, 2, 3, 4, 5, 6], [0, 0, 1, 2, 1, 0, 3], [4, 4, 4, 4, 4, 4, 4]])
def test_it_is_its_formula_also_where_identities_repeat(identity):
    q, k, identity = vectors(7), vectors(7, 1), torch.tensor(identity)
    ours, reference = by_identity(q, k, identity, tau=0.1), by_hand(q, k, identity, 0.1)
    torch.testing.assert_close(ours, reference, rtol=1e-9, atol=1e-9)
    for a, b in zip(torch.autograd.grad(ours, (q, k)), torch.autograd.grad(reference, (q, k))):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_equal_features():
    ones, own = torch.ones(8, 3, dtype=torch.float64), torch.arange(8)
    assert by_identity(ones, ones, own, tau=0.02).item() == pytest.approx(28.0773, abs=1e-4)
    assert by_identity(ones, ones, own, tau=0.02).item() == pytest.approx(2 * (-math.log(8) - 7 / 8 * math.log(1e-8)), abs=1e-6)
    assert abs(by_identity(ones, ones, own * 0, tau=0.02).item()) < 1e-6


@settings(max_examples=25, deadline=None)
@given(n=st.integers(2, 9), classes=st.integers(1, 4), seed=st.integers(0, 99), tau=st.sampled_from([0.02, 0.1, 1.0]))
def test_it_lies_between_nothing_and_twice_the_log_of_epsilon(n, classes, seed, tau):
    found = by_identity(vectors(n, seed), vectors(n, seed + 1), torch.arange(n) % classes, tau=tau).item()
    assert -1e-6 <= found <= 2 * -math.log(1e-8)


def test_confidence_in_what_does_not_belong_is_dear_and_one_of_several_right_ones_is_cheap():
    eye = torch.eye(4, dtype=torch.float64)
    wrong = sdm(eye, eye.roll(1, 0), torch.eye(4).bool(), tau=0.02)
    assert wrong.tolist() == pytest.approx([-math.log(1e-8)] * 4, abs=1e-6)
    assert sdm(eye, eye, torch.eye(4).bool(), tau=0.02).abs().max() < 1e-6
    one_of_four = sdm(eye[:1], eye, torch.ones(1, 4).bool(), tau=0.02)
    assert one_of_four.item() == pytest.approx(math.log(4), abs=1e-6)      # a cross-entropy would ask for all four: 50 here


@pytest.mark.parametrize("tile", [1, 5, 12, 1000])
def test_parts_are_the_whole(tile):
    q, k, y, yk, tau = vectors(5), vectors(6, 1), torch.tensor([0, 1, 2, 1, 0]), torch.tensor([0, 1, 2, 0, 1, 1]), torch.tensor(
        0.2, dtype=torch.float64, requires_grad=True)
    whole, part = (sdm(q, k, pairs, tau=tau, tile=size) for pairs, size in
                   ((same_as(y, yk), 1 << 22), (lambda i, j: same_as(y[i], yk[j]), tile)))
    torch.testing.assert_close(part, whole, rtol=1e-12, atol=1e-12)
    weight = torch.arange(5.0, dtype=torch.float64)
    grads = [torch.autograd.grad((rows * weight).sum(), (q, k, tau)) for rows in (part, whole)]
    for a, b in zip(*grads):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_parts_keep_no_logits():
    kept = []

    def pack(x):
        kept.append(x.numel())
        return x

    q, k = vectors(64), vectors(64, 1)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        sdm(q, k, lambda i, j: same_as(torch.arange(64)[i], torch.arange(64)[j]), tau=0.1, tile=256)
    assert max(kept) < 64 * 64


def test_half_precision_is_computed_in_float32_and_a_zero_vector_is_finite():
    q, k = vectors(6, grad=False), vectors(6, 1, grad=False)
    q[2] = 0
    eye = torch.eye(6).bool()
    half = sdm(q.bfloat16(), k.bfloat16(), eye, tau=0.02)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, sdm(q.bfloat16().float(), k.bfloat16().float(), eye, tau=0.02))
    q.requires_grad_()
    sdm(q, k, eye, tau=0.02).sum().backward()
    assert q.grad.isfinite().all() and not q.grad[2].any()


def test_bad_input_is_named():
    q = vectors(3)
    with pytest.raises(NotanError, match="1 of 3 rows have no key that belongs to them"):
        sdm(q, q, torch.eye(3).bool() & torch.tensor([True, True, False]), tau=0.1)
    with pytest.raises(NotanError, match="tau = 0"):
        sdm(q, q, torch.eye(3).bool(), tau=0)
