"""Alignment, uniformity, tolerance, entropies by kernels, ranks: values, gradients, fixed memory."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from notan.errors import NotanError
from notan.losses.geometry import (
    alignment,
    effective_rank,
    kernel_log_sums,
    rank_me,
    spread,
    tolerance,
    uniformity,
    uniformity_between,
)


def waves(*shape: int, a: float, b: float = 0.0) -> Tensor:
    return torch.sin(a * torch.arange(1, math.prod(shape) + 1, dtype=torch.float64) + b).view(shape)


def drawn(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain(x, y, t):
    return (-t * (x[:, None] - y[None]).square().sum(2)).exp()


def test_golden_values():
    x, z, s = waves(6, 4, a=0.37), waves(6, 4, a=0.53, b=1), waves(6, 3, a=0.29)
    s[:3] = 0
    assert float(alignment(x, z).mean()) == pytest.approx(5.7230901527, abs=1e-9)
    assert float(uniformity(x, t=1)) == pytest.approx(-1.5773277783, abs=1e-9)
    assert float(uniformity(s, t=1)) == pytest.approx(-0.7220793252, abs=1e-9)
    both = torch.cat([F.normalize(x, dim=1), s], 1)                     # the product of two kernels is one of both
    assert float(kernel_log_sums(both, both, t=1).mean() - math.log(6)) == pytest.approx(-1.2967398544, abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 12), st.integers(1, 5), st.floats(0.1, 4), st.integers(1, 50), st.integers(0, 99))
def test_all_pairs_in_tiles_of_any_size(n, d, t, tile, seed):
    x, y = drawn(n, d, seed), drawn(n + 1, d, seed + 1)
    kernel = plain(x, x, t)
    off = kernel[~torch.eye(n, dtype=torch.bool)]
    torch.testing.assert_close(uniformity(x, t=t, tile=tile), off.mean().log())
    torch.testing.assert_close(uniformity_between(x, y, t=t, tile=tile), plain(x, y, t).mean().log())
    torch.testing.assert_close(kernel_log_sums(x, y, t=t, tile=tile), plain(x, y, t).sum(1).log())
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(uniformity(x[order], t=t), uniformity(x, t=t))


def test_gradients_also_where_vectors_are_equal():
    x, y = drawn(5, 3).requires_grad_(), drawn(4, 3, 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: uniformity(x, tile=7), (x,))
    assert torch.autograd.gradcheck(lambda x, y: kernel_log_sums(x, y, t=0.5, tile=5), (x, y))
    assert torch.autograd.gradcheck(alignment, (x[:4].detach().requires_grad_(), y))
    assert torch.autograd.gradcheck(lambda x: tolerance(x, torch.tensor([0, 1, 0, 1, 1])), (x,))
    same = torch.ones(4, 3, dtype=torch.float64, requires_grad=True)
    (uniformity(same) + alignment(same, same.detach()).sum()).backward()
    assert torch.equal(same.grad, torch.zeros_like(same))


def test_uniformity_of_what_is_equal_even_or_half_at_one_point():
    assert float(uniformity(torch.ones(5, 3))) == 0
    u = F.normalize(drawn(3000, 128), dim=1)
    assert float(uniformity(u)) == pytest.approx(-(4 - 8 / 128), abs=0.01)
    assert float(uniformity(F.normalize(drawn(3000, 32), dim=1), t=1)) == pytest.approx(-2 + 2 / 32, abs=0.01)
    turn = torch.linalg.qr(drawn(128, 128, 1))[0]
    torch.testing.assert_close(uniformity(u[:200] @ turn), uniformity(u[:200]))
    half = torch.cat([torch.zeros(32, 4), 1e3 * torch.eye(32)[:, :4] + torch.arange(32)[:, None] * 1e3])
    assert float(uniformity(half, t=1)) == pytest.approx(math.log(math.comb(32, 2) / math.comb(64, 2)), abs=1e-6)
    far = 1e3 * torch.eye(64)
    assert float(kernel_log_sums(far, far, t=1).mean()) - math.log(64) == pytest.approx(-4.159, abs=1e-3)


def test_far_from_the_origin_nothing_drowns():
    x = drawn(50, 4).float()
    torch.testing.assert_close(uniformity(x + 1e3), uniformity(x + 1e3 - 1e3), rtol=1e-6, atol=1e-6)


def test_half_precision_is_computed_in_single():
    x = F.normalize(drawn(64, 16), dim=1)
    for dtype in (torch.float16, torch.bfloat16):
        assert uniformity(x.to(dtype)).dtype == torch.float32
        torch.testing.assert_close(uniformity(x.to(dtype)).double(), uniformity(x), atol=0.02, rtol=0)


def test_tolerance_is_the_mean_over_pairs_of_a_class():
    x, y = drawn(30, 5), torch.arange(30) % 4
    y[:3] = -1                                                          # unknown
    u = F.normalize(x, dim=1)
    pairs = (y[:, None] == y) & (y >= 0) & ~torch.eye(30, dtype=torch.bool)
    torch.testing.assert_close(tolerance(x, y), (u @ u.T)[pairs].mean())
    for classes in (2, 50):                                             # more classes do not dilute it
        y = torch.arange(100) % classes
        torch.testing.assert_close(tolerance(F.one_hot(y, classes), y), torch.ones(()))
    assert abs(float(tolerance(drawn(2000, 64), torch.arange(2000) % 10))) < 0.01
    with pytest.raises(NotanError, match="no two of one class"):
        tolerance(x, torch.arange(30))


def test_ranks():
    assert effective_rank(torch.eye(9)[:, :4] @ drawn(4, 20).float()) <= 4.001
    assert effective_rank(torch.ones(5, 3)) == 0 and rank_me(torch.ones(5, 3)) == pytest.approx(1)
    assert rank_me(torch.zeros(5, 3)) == 0 and rank_me(torch.eye(6)) == pytest.approx(6)
    assert spread(torch.ones(5, 3)) == 0 and spread(drawn(5000, 16)) == pytest.approx(1, abs=0.02)


def test_one_row_has_no_pairs():
    with pytest.raises(NotanError, match="uniformity of 1 rows"):
        uniformity(torch.ones(1, 3))
