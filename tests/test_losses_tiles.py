"""Contrast in tiles: equal to all logits at once in value and gradient, at its limits, and never more than a tile."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from notan.errors import NotanError
from notan.losses import tiles
from notan.losses.both_ways import both_ways, own_log_sum_exp
from notan.losses.info_nce import hidden, info_nce, info_nce_bank, nt_xent, symmetric_info_nce
from notan.losses.tiles import cosines, log_sum_exp, pooled, unit


def z(*shape, seed=0, grad=True, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype).requires_grad_(grad)


def scalar(value):
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


def logits(q, k, tau):
    return F.normalize(q, dim=1) @ F.normalize(k, dim=1).T / tau


def same(loss, reference, inputs):
    """Equal values, and equal gradients of a sum, a mean, and a sum that counts rows unequally."""
    a, b = loss(), reference()
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    count = torch.linspace(-1, 2, a.numel(), dtype=a.dtype).view_as(a)
    for reduce in (torch.sum, torch.mean, lambda x: (x * count).sum()):
        for x, y in zip(torch.autograd.grad(reduce(loss()), inputs), torch.autograd.grad(reduce(reference()), inputs)):
            torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-10)


@pytest.fixture(params=[40.0, 0.0], autouse=True)
def mild(request, monkeypatch):
    """Exponentials with and without their maximum taken off."""
    monkeypatch.setattr(tiles, "MILD", request.param)


@pytest.fixture(params=[2048, 5])
def width(request, monkeypatch):
    monkeypatch.setattr(tiles, "WIDTH", request.param)


@pytest.mark.parametrize("tile", [1 << 20, 40, 11, 1])
@pytest.mark.parametrize("left_out", [False, True])
def test_tiles_equal_all_logits_at_once(width, tile, left_out):
    q, k, tau, positive = z(12, 4), z(9, 4, seed=1), scalar(0.3), torch.arange(12) % 9
    column = (positive + 4) % 9

    def s():
        return logits(q, k, tau) + (F.one_hot(column, 9) * -1e9 if left_out else 0)

    same(lambda: log_sum_exp(q, k, tau, positive=positive, edit=hidden(column) if left_out else None, tile=tile),
         lambda: F.cross_entropy(s(), positive, reduction="none"), (q, k, tau))
    same(lambda: log_sum_exp(q, k, tau, tile=tile), lambda: logits(q, k, tau).logsumexp(1), (q, k, tau))


def test_a_second_backward_pass_gives_what_the_first_gave():
    q, k = z(6, 4), z(7, 4, seed=1)
    loss = info_nce(q, k, tau=0.3, positive=torch.arange(6)).mean()
    first = torch.autograd.grad(loss, (q, k), retain_graph=True)
    kept = [x.clone() for x in first]
    for again in (torch.autograd.grad(loss, (q, k), retain_graph=True), torch.autograd.grad(2 * loss, (q, k))):
        scale = again[0].norm() / kept[0].norm()
        assert min(abs(scale - 1), abs(scale - 2)) < 1e-9
        for x, y, z0 in zip(again, kept, first):
            torch.testing.assert_close(x, y * scale)
            assert torch.equal(y, z0)                                   # what was handed out is not written over


def test_weights_and_masks_as_a_matrix_and_as_a_function(width):
    q, k, positive = z(6, 4), z(7, 4, seed=1), torch.arange(6)
    w = z(6, 7, seed=2, grad=False).masked_fill(torch.eye(6, 7, dtype=torch.bool), 0)
    w[0, 3:] = -torch.inf
    for given_as in (w, lambda rows, columns: w[rows, columns]):
        same(lambda w=given_as: info_nce(q, k, tau=0.3, positive=positive, log_weight=w, tile=9),
             lambda: F.cross_entropy(logits(q, k, 0.3) + w, positive, reduction="none"), (q, k))


@pytest.mark.parametrize("tau", [0.024, 0.026])
def test_opposite_vectors_at_the_border_of_what_is_mild(tau):
    q = torch.ones(2, 3)
    k = torch.cat([-q.expand(2, 3), -q]).requires_grad_()
    loss = info_nce(q, k, tau=tau, positive=torch.arange(2))            # every logit -1 / tau
    torch.testing.assert_close(loss, torch.full((2,), math.log(4)), rtol=1e-5, atol=1e-5)
    mixed = info_nce(q, torch.cat([q[:1], k]), tau=tau, positive=torch.tensor([0, 1]))
    torch.testing.assert_close(mixed, torch.tensor([0, 2 / tau]), rtol=1e-5, atol=1e-5)
    assert torch.autograd.grad(mixed.sum() + loss.sum(), k)[0].isfinite().all()


@pytest.mark.parametrize("side", [2048, 5, 3])
def test_both_ways_equal_two_one_sided_ones(side):
    q, k, tau = z(8, 4), z(8, 4, seed=1), scalar(0.2)
    own = torch.arange(8)
    same(lambda: symmetric_info_nce(q, k, tau=tau, side=side),
         lambda: (F.cross_entropy(logits(q, k, tau), own, reduction="none")
                  + F.cross_entropy(logits(k, q, tau), own, reduction="none")) / 2, (q, k, tau))
    same(lambda: torch.cat(both_ways(q, k, tau, side=side)),
         lambda: torch.cat([logits(q, k, tau).logsumexp(i) - logits(q, k, tau).diagonal() for i in (1, 0)]), (q, k, tau))


@pytest.mark.parametrize("side", [2048, 5, 3])
def test_a_set_against_itself_is_half_of_the_tiles(side):
    x, tau = z(11, 4), scalar(0.2)
    same(lambda: own_log_sum_exp(x, tau, side=side), lambda: logits(x, x, tau).logsumexp(1), (x, tau))
    z1, z2 = z(7, 4), z(7, 4, seed=1)
    both, own = lambda: torch.cat([z1, z2]), torch.arange(14)
    same(lambda: nt_xent(z1, z2, tau=tau, side=side),
         lambda: info_nce(both(), both(), tau=tau, positive=(own + 7) % 14, exclude=own).mean(), (z1, z2, tau))


def test_a_bank_is_more_columns(width):
    q, k, bank, tau = z(5, 4), z(5, 4, seed=1), z(12, 4, seed=2), scalar(0.2)
    away = torch.tensor([3, -1, 0, 11, -1])

    def reference():
        s = logits(q, bank, tau)
        s = s.masked_fill(F.one_hot(away.clamp(min=0), 12).bool() & (away >= 0)[:, None], -torch.inf)
        return F.cross_entropy(torch.cat([(unit(q) * unit(k)).sum(1, keepdim=True) / tau, s], 1), torch.zeros(5).long(),
                               reduction="none")

    same(lambda: info_nce_bank(q, k, bank, tau=tau, exclude=away, tile=7), reference, (q, k, bank, tau))


def test_cosines_directions_and_sums_over_pairs(width):
    x, y, pairs = z(6, 4), z(6, 4, seed=1), z(6, 6, seed=2, grad=False) > 0
    same(lambda: cosines(x, y), lambda: F.cosine_similarity(x, y), (x, y))
    same(lambda: unit(x), lambda: F.normalize(x, dim=1), (x,))
    for given_as in (pairs, lambda i, j: pairs[i, j]):
        same(lambda p=given_as: pooled(x, p, 6), lambda: pairs.to(x.dtype) @ x, (x,))
    weights = z(3, 6, seed=3, grad=False)
    same(lambda: pooled(x, weights, 3), lambda: weights @ x, (x,))


def test_gradcheck(width):
    q, k, tau = z(4, 3), z(6, 3, seed=1), scalar(0.4)
    for tile in (1 << 20, 5):
        assert torch.autograd.gradcheck(lambda q, k, t, n=tile: log_sum_exp(q, k, t, tile=n), (q, k, tau))
    assert torch.autograd.gradcheck(lambda q, k, t: both_ways(q, k, t, side=3), (q, k[:4], tau))
    assert torch.autograd.gradcheck(lambda q, t: own_log_sum_exp(q, t, side=2), (q, tau))


@settings(max_examples=20, deadline=None)
@given(n=st.integers(2, 9), seed=st.integers(0, 99), tau=st.floats(0.05, 2))
def test_the_order_of_rows_is_carried_along(n, seed, tau):
    q, k = z(n, 4, seed=seed, grad=False), z(n, 4, seed=seed + 1, grad=False)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    own = torch.arange(n)
    torch.testing.assert_close(info_nce(q, k, tau=tau, positive=own)[order],
                               info_nce(q[order], k[order], tau=tau, positive=own))
    torch.testing.assert_close(nt_xent(q, k, tau=tau), nt_xent(q[order], k[order], tau=tau))
    torch.testing.assert_close(symmetric_info_nce(q, k, tau=tau)[order], symmetric_info_nce(k[order], q[order], tau=tau))


# ------------------------------------------------------------------------------------------------------------------ limits

@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("tile", [1 << 20, 100])
def test_half_precision_is_computed_in_float32(dtype, tile):
    q, k, own = z(40, 16, dtype=dtype), z(40, 16, seed=1, dtype=dtype), torch.arange(40)
    exact = [x.detach().double().requires_grad_() for x in (q, k)]
    a, b = info_nce(q, k, tau=0.02, positive=own, tile=tile), info_nce(*exact, tau=0.02, positive=own)
    assert a.dtype == torch.float32
    torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4)
    for x, y in zip(torch.autograd.grad(a.mean(), (q, k)), torch.autograd.grad(b.mean(), exact)):
        assert x.dtype == dtype and (x.double() - y).abs().max() < 0.01 * y.abs().max()
    assert nt_xent(q, k, tau=0.02).dtype == symmetric_info_nce(q, k, tau=0.02).dtype == torch.float32


def test_autocast_changes_nothing():
    q, k, own = z(8, 16, dtype=torch.float32), z(8, 16, seed=1, dtype=torch.float32), torch.arange(8)
    plain = torch.autograd.grad(info_nce(q, k, tau=0.1, positive=own).sum() + nt_xent(q, k, tau=0.1), (q, k))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = info_nce(q, k, tau=0.1, positive=own).sum() + nt_xent(q, k, tau=0.1)
        cast = torch.autograd.grad(loss, (q, k))
    assert all(torch.equal(a, b) for a, b in zip(plain, cast))


def test_zero_vectors_and_equal_ones_have_finite_gradients():
    q = z(5, 4, grad=False)
    q[2] = 0
    q.requires_grad_()
    for loss in (lambda: info_nce(q, q, tau=0.1, positive=torch.arange(5)).mean(), lambda: nt_xent(q, q.detach(), tau=0.1),
                 lambda: symmetric_info_nce(q, q, tau=0.1).mean(), lambda: info_nce_bank(q, q, q, tau=0.1).mean()):
        g, = torch.autograd.grad(loss(), q)
        assert loss().isfinite() and g.isfinite().all() and g[2].abs().max() == 0 and g[1].abs().max() > 0
    ones = torch.ones(5, 4, dtype=torch.float64, requires_grad=True)
    g, = torch.autograd.grad(nt_xent(ones, ones * 2, tau=0.1), ones)
    assert g.abs().max() < 1e-12


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_is_not_hidden(bad):
    q, k = z(4, 3, grad=False), z(4, 3, seed=1, grad=False)
    q[1, 0] = bad
    for tile in (1 << 20, 3):
        rows = info_nce(q, k, tau=0.1, positive=torch.arange(4), tile=tile)
        assert rows.isnan().tolist() == [False, True, False, False]
        assert info_nce(k, q, tau=0.1, positive=torch.arange(4), tile=tile).isnan().all()
    assert nt_xent(q, k, tau=0.1).isnan() and symmetric_info_nce(q, k, tau=0.1).isnan().all()


def test_bad_settings_are_named():
    q = z(4, 3)
    for tau in (0, -1.0, float("nan"), torch.tensor(-0.1), torch.ones(2)):
        with pytest.raises(NotanError, match=r"tau = .*above 0"):
            info_nce(q, q, tau=tau, positive=torch.arange(4))
        with pytest.raises(NotanError, match="tau = "):
            nt_xent(q, q, tau=tau)
    with pytest.raises(NotanError, match="1 key"):
        info_nce(q[:1], q[:1], tau=0.1, positive=torch.arange(1))
    with pytest.raises(NotanError, match="1 and 1 rows"):
        symmetric_info_nce(q[:1], q[:1], tau=0.1)
    with pytest.raises(NotanError, match="empty bank"):
        info_nce_bank(q, q, q[:0], tau=0.1)
    with pytest.raises(NotanError, match="1 and 1 rows"):
        nt_xent(q[:1], q[:1], tau=0.1)


def test_a_row_without_any_pair_gives_minus_infinity_and_no_gradient(width):
    q, k = z(3, 4), z(5, 4, seed=1)
    for tile in (1 << 20, 3):
        lse = log_sum_exp(q, k, 0.1, edit=lambda s, i, j: s[1 - i.start if i.start <= 1 < i.stop else slice(0, 0)]
                          .fill_(-torch.inf), tile=tile)
        assert lse.isfinite().tolist() == [True, False, True] and lse[1] == -torch.inf
        for g in torch.autograd.grad(torch.where(lse.isfinite(), lse, 0).sum(), (q, k)):
            assert g.isfinite().all()


def test_no_more_than_a_tile_is_held():
    """The largest tensor of a step on 3,000 rows of 8 is a tile, where all logits are 9 million."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        most = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            for x in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(x, torch.Tensor):
                    self.most = max(self.most, x.untyped_storage().nbytes())
            return out

    q, k, own = z(3000, 8, dtype=torch.float32), z(3000, 8, seed=1, dtype=torch.float32), torch.arange(3000)
    for loss in (lambda: info_nce(q, k, tau=0.1, positive=own, tile=200_000), lambda: symmetric_info_nce(q, k, tau=0.1, side=400),
                 lambda: info_nce(q, k, tau=0.1, positive=own, tile=100_000), lambda: nt_xent(q, k, tau=0.1, side=400)):
        with Largest() as seen:
            loss().mean().backward()
        assert seen.most <= 4 * 200_000
