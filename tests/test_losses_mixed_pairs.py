"""Pairs mixed from a batch's own rows: by mixtures that are really made, with gradients, golden numbers and the paper's rules."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from test_losses_supcon import wave
from test_losses_tiles import same, z

from notan.errors import NotanError
from notan.losses import mixed_pairs as room
from notan.losses.mixed_pairs import Batch, Mixing, mixed_pairs, triples
from notan.losses.supcon import sup_con

LABELS = torch.tensor([20.0, 22, 23, 30] * 2, dtype=torch.float64)
WEIGHTS = {"linear": lambda gap: gap + 1, "squared": lambda gap: gap**2 + 1, "none": torch.ones_like}


def mixtures(f, t, i, lam, how):
    """Every mixture of anchor i as (row, label, whether it is a positive): made, one by one."""
    found = []
    for k in range(len(t)):
        if lam is not None and t[k] != t[i]:
            found.append((lam[i, k] * f[i] + (1 - lam[i, k]) * f[k], lam[i, k] * t[i] + (1 - lam[i, k]) * t[k], False))
    for j in range(len(t)):
        for k in range(len(t)):
            if t[j] < t[i] < t[k] and t[i] - t[j] < how.window and t[k] - t[i] < how.window:
                a = (t[k] - t[i]) / (t[k] - t[j])
                found.append((a * f[j] + (1 - a) * f[k], a * t[j] + (1 - a) * t[k], True))
    return [(x.detach() if how.detach else x, label, positive) for x, label, positive in found]


def dense(z, t, tau, lam, how):
    """The loss of every anchor, from rows and mixtures that are all there."""
    f, rows = F.normalize(z, dim=1), []
    for i in range(len(t)):
        others = [(f[j], t[j], bool(t[j] == t[i])) for j in range(len(t)) if j != i] + mixtures(f, t, i, lam, how)
        s = torch.stack([f[i] @ x / tau for x, _, _ in others])
        w = WEIGHTS[how.weight](torch.stack([(t[i] - label).abs() for _, label, _ in others]))
        positive = torch.tensor([p for _, _, p in others])
        w = torch.where(positive, 1.0, w)                               # to the last bit
        rows.append(-(s - (w * s.exp()).sum().log())[positive].mean() if positive.any() else s.sum() * 0)
    return torch.stack(rows)


def of(z, t, *, lam=None, how=Mixing(), tau=0.3, tile=room.TILE):
    return mixed_pairs(z, z, t, t, tau=tau, exclude=torch.arange(len(t)), share=lam, how=how, tile=tile)


def shares(n, seed=3):
    return torch.rand(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ------------------------------------------------------------------------------------------------- value and gradient

def test_golden_number():
    f = F.normalize(wave(8, 4, a=.37), dim=1)
    loss, real, mixed = of(f, LABELS, lam=torch.full((8, 8), 0.2, dtype=torch.float64), how=Mixing(5.0))
    assert loss.mean().item() == pytest.approx(2.9919848128, abs=1e-10)
    assert mixed.tolist() == [0, 4, 0, 0, 0, 4, 0, 0] and real.tolist() == [1] * 8


@pytest.mark.parametrize("tile", [room.TILE, 30, 7, 1])
@pytest.mark.parametrize("how", [Mixing(9.0), Mixing(3.0, "squared"), Mixing(9.0, detach=False), Mixing(0.0, "none")])
@pytest.mark.parametrize("negatives", [True, False])
def test_lists_of_triples_equal_mixtures_that_are_made(tile, how, negatives):
    x, t = z(10, 4), torch.tensor([3.0, 3, 5, 7.5, 7.5, 1, 8, 40, 41, 3], dtype=torch.float64)
    lam = shares(10) if negatives else None
    given_as = lam if tile > 10 or lam is None else lambda rows, columns: lam[rows, columns]
    same(lambda: of(x, t, lam=given_as, how=how, tile=tile)[0], lambda: dense(x, t, 0.3, lam, how), (x,))


def test_anchors_of_one_rank_among_the_keys_of_all():
    x, t, lam = z(9, 4), torch.tensor([1.0, 2, 3, 4, 5, 6, 2, 2, 9], dtype=torch.float64), shares(9)
    whole = of(x, t, lam=lam, how=Mixing(3.0))
    own = torch.tensor([4, 1, 7])
    part = mixed_pairs(x[own], x, t[own], t, tau=0.3, exclude=own, share=lam[own], how=Mixing(3.0))
    for a, b in zip(whole, part):
        torch.testing.assert_close(a[own], b)


def test_no_more_than_a_tile_is_held(monkeypatch):
    """Neither the triples, of which there are M^3 / 24 here, nor the cosines of all anchors."""
    held = []

    def counted(*given):
        found = triples(*given)
        held.append(len(found[0]))
        return found

    monkeypatch.setattr(room, "triples", counted)
    x, t = z(48, 4), torch.arange(48.0, dtype=torch.float64)
    loss, _, mixed = of(x, t, lam=shares(48), how=Mixing(100.0), tile=200)
    assert mixed.sum() > 10_000 and max(held) <= 200 and sum(held) == mixed.sum()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda s: saved.append(s.numel()) or s, lambda s: s):
        loss = of(x, t, lam=lambda rows, columns: shares(48)[rows, columns], how=Mixing(100.0), tile=200)[0]
    assert max(saved, default=0) <= 200
    loss.sum().backward()
    assert sum(held) == 4 * mixed.sum()                                 # made again for the gradient: with the block, and alone


# ------------------------------------------------------------------------------------------------------ the paper's rules

@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=2, max_size=12), st.integers(0, 6))
def test_a_mixed_positive_has_the_anchors_label(numbers, window):
    t = torch.tensor(numbers, dtype=torch.float64)
    batch = Batch(t[:, None], t, *t.sort())
    low, high, below, above = room._windows(t, batch.ranked, window)
    count = below * above
    i, j, k = triples(batch.order, (low, high, above, count.cumsum(0) - count), slice(0, int(count.sum())))
    lam = (t[k] - t[i]) / (t[k] - t[j])
    torch.testing.assert_close(lam * t[j] + (1 - lam) * t[k], t[i])
    assert ((lam > 0) & (lam < 1) & (t[j] < t[i]) & (t[i] < t[k]) & (t[i] - t[j] < window) & (t[k] - t[i] < window)).all()
    gap = t[:, None] - t
    every = ((gap > 0) & (gap < window)).sum(1) * ((gap < 0) & (gap > -window)).sum(1)
    assert len({*zip(i.tolist(), j.tolist(), k.tolist())}) == len(i) == every.sum()
    assert window > 1 or not len(i)                                     # whole numbers have none between neighbours


def test_a_mixed_negative_lies_between_and_never_shares_a_label():
    t, lam = LABELS[:4], torch.full((4, 4), 0.2, dtype=torch.float64)
    f = F.normalize(wave(4, 4, a=.37), dim=1)
    for i in range(4):
        made = mixtures(f, t, i, lam, Mixing())
        assert len(made) == 3
        for (x, label, _), k in zip(made, [k for k in range(4) if k != i]):
            assert min(t[i], t[k]) < label < max(t[i], t[k]) and x.norm() < 1
            assert F.cosine_similarity(f[i], x, dim=0) >= f[i] @ f[k]
    equal = torch.full((4,), 7.0, dtype=torch.float64)                  # then there is none
    torch.testing.assert_close(of(f, equal, lam=lam)[0], of(f, equal)[0])


def test_without_mixing_and_weight_it_is_supcon():
    x, y = z(9, 4), torch.tensor([0, 1, 1, 2, 5, 2, 2, 0, 9])
    same(lambda: of(x, y.double(), how=Mixing(0.0, "none"))[0],
         lambda: sup_con(x, x, y, y, tau=0.3, exclude=torch.arange(9))[0], (x,))


def test_equal_vectors_give_the_log_of_the_weights():
    x, n = torch.ones(8, 4, dtype=torch.float64), torch.arange(8)
    loss, real, mixed = of(x, LABELS, lam=torch.full((8, 8), 0.2), how=Mixing(5.0, "none"))
    gap = (LABELS[:, None] - LABELS).abs()
    every = 7 + (gap > 0).sum(1) + mixed                                # real, mixed negatives, mixed positives
    torch.testing.assert_close(loss, every.double().log())
    loss = of(x, LABELS, lam=torch.full((8, 8), 0.2, dtype=torch.float64), how=Mixing(5.0))[0]
    w = (gap + 1).sum(1) - 1 + ((0.8 * gap + 1) * (gap > 0)).sum(1) + mixed
    torch.testing.assert_close(loss, w.log())
    assert real[n].eq(1).all()


@pytest.mark.parametrize("weight", ["linear", "squared"])
def test_a_pair_further_apart_is_pushed_more(weight):
    """At equal cosines with the anchor, here 0."""
    x = torch.eye(5, dtype=torch.float64)[[0, 1, 2, 3, 4, 0]].requires_grad_()
    t = torch.tensor([0.0, 1, 4, 9, 16, 0], dtype=torch.float64)
    g, = torch.autograd.grad(mixed_pairs(x[:1], x, t[:1], t, tau=0.3, exclude=torch.zeros(1).long(), share=None,
                                         how=Mixing(0.0, weight))[0].sum(), x)
    push = g[1:5, 0]
    assert (push > 0).all() and (push.diff() > 0).all()


def test_a_mixture_passes_no_gradient_to_its_sources():
    anchor, keys = z(1, 4), z(7, 4, seed=1)
    t = torch.tensor([5.0, 5, 3, 4, 6, 7, 99], dtype=torch.float64)     # the anchor is row 0; the last row is in no mixture

    def gradients(how, lam):
        loss = mixed_pairs(anchor, keys, t[:1], t, tau=0.3, exclude=torch.zeros(1).long(), share=lam, how=how)[0].sum()
        plain = mixed_pairs(anchor, keys.detach(), t[:1], t, tau=0.3, exclude=torch.zeros(1).long(), share=lam, how=how)[0].sum()
        return torch.autograd.grad(loss, (anchor, keys)), torch.autograd.grad(plain, anchor)

    (_, k), (alone,) = gradients(Mixing(4.0), None)
    (_, without), _ = gradients(Mixing(0.0), None)
    assert alone.abs().max() > 0
    u = F.normalize(anchor, dim=1)
    cosine = (u @ F.normalize(keys, dim=1).T / 0.3)[0].detach()
    real = 1 + (t[0] - t).abs()
    mixed = [((t[j] - 5) / (t[j] - t[i]) * cosine[i] + (5 - t[i]) / (t[j] - t[i]) * cosine[j]) for i in (2, 3) for j in (4, 5)]
    total = (real * cosine.exp())[1:].sum() + torch.stack(mixed).exp().sum()
    share = (real * cosine.exp())[2:] / total                           # what a real negative alone is pushed by
    pushed = torch.autograd.grad((share * (u @ F.normalize(keys, dim=1).T / 0.3)[0, 2:]).sum(), keys)[0]
    torch.testing.assert_close(k[2:], pushed[2:])
    assert not torch.allclose(without[2:], k[2:])
    (_, through), _ = gradients(Mixing(4.0, detach=False), None)
    assert not torch.allclose(through[2:6], k[2:6])
    (negative, source), _ = gradients(Mixing(), torch.full((1, 7), 0.2))
    assert negative.abs().max() > 0 and not torch.allclose(source, without)


@settings(max_examples=20, deadline=None)
@given(n=st.integers(2, 9), seed=st.integers(0, 99), shift=st.floats(-50, 50))
def test_order_and_origin_of_labels_do_not_matter(n, seed, shift):
    g = torch.Generator().manual_seed(seed)
    x, t, lam = z(n, 4, seed=seed, grad=False), torch.randint(0, 9, (n,), generator=g).double(), shares(n, seed)
    order = torch.randperm(n, generator=g)
    loss = of(x, t, lam=lam, how=Mixing(3.5))[0]
    torch.testing.assert_close(of(x[order], t[order], lam=lam[order][:, order], how=Mixing(3.5))[0], loss[order])
    torch.testing.assert_close(of(x, t + shift, lam=lam, how=Mixing(3.5))[0], loss)


def test_a_constant_on_all_logits_changes_nothing_and_one_on_mixtures_does():
    """One softmax over both: a shift of a block by itself would be a mistake that this loss notices."""
    f, how, lam = F.normalize(wave(8, 4, a=.37), dim=1), Mixing(5.0), torch.full((8, 8), 0.2, dtype=torch.float64)

    def shifted(everywhere, on_mixtures):
        rows = []
        for i in range(8):
            real = [(f[i] @ f[j] / 0.3 + everywhere, (LABELS[i] - LABELS[j]).abs() + 1, LABELS[i] == LABELS[j])
                    for j in range(8) if j != i]
            made = [(f[i] @ x / 0.3 + everywhere + on_mixtures, (LABELS[i] - label).abs() + 1, positive)
                    for x, label, positive in mixtures(f, LABELS, i, lam, how)]
            s, w, p = (torch.stack([torch.as_tensor(x) for x in column]) for column in zip(*real, *made))
            rows.append(-(s - (w * s.exp()).sum().log())[p].mean())
        return torch.stack(rows).mean()

    loss = of(f, LABELS, lam=lam, how=how)[0].mean()
    for c in (0.0, 1.0, 4.0):
        torch.testing.assert_close(shifted(c, 0.0), loss)
    assert abs(shifted(0.0, 1.0) - loss) > 0.01


# --------------------------------------------------------------------------------------------------------------- limits

def test_anchors_without_a_positive_are_nothing():
    x = z(5, 4)
    loss, real, mixed = of(x, torch.arange(5.0, dtype=torch.float64) * 10, lam=shares(5), how=Mixing(5.0))
    assert not loss.any() and not real.any() and not mixed.any()
    assert not torch.autograd.grad(loss.sum(), x)[0].any()


def test_zero_vectors_small_temperatures_and_half_precision():
    x, t = torch.randn(6, 4), torch.tensor([1.0, 2, 3, 1, 2, 3])
    x[1] = 0
    x.requires_grad_()
    for tau in (0.001, 0.3):                                            # logits of a thousand
        loss = of(x, t, lam=shares(6), how=Mixing(5.0), tau=tau)[0]
        g, = torch.autograd.grad(loss.sum(), x)
        assert loss.isfinite().all() and g.isfinite().all() and not g[1].any()
    half = of(x.detach().bfloat16(), t, lam=shares(6), how=Mixing(5.0))[0]
    assert half.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(of(x, t, lam=shares(6), how=Mixing(5.0), tau=tau)[0], loss)
    bad = x.detach().clone()
    bad[0, 0] = math.nan
    assert of(bad, t, lam=shares(6), how=Mixing(5.0))[0].isnan().any()


def test_what_cannot_be_is_named():
    x, t = z(4, 3), torch.arange(4.0, dtype=torch.float64)
    with pytest.raises(NotanError, match="tau"):
        of(x, t, tau=0.0)
    with pytest.raises(NotanError, match="two keys at least"):
        of(x[:1], t[:1])
    with pytest.raises(NotanError, match="NaN or infinite"):
        of(x, t / 0)
