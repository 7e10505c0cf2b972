"""InfoNCE: written out by hand, chunked, at its limits, and with gradients."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from notan.losses.info_nce import info_nce, nt_xent, pixel_info_nce


def _z(*shape, seed=0, grad=False):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g, dtype=torch.float64).requires_grad_(grad)


def test_nt_xent_is_algorithm_1_of_simclr():
    z1, z2, tau, N = _z(5, 3), _z(5, 3, seed=1), 0.5, 5
    z = torch.stack([z1, z2], 1).flatten(0, 1)                          # the paper's order: 2k - 1 and 2k are a pair
    s = [[float(a @ b / (a.norm() * b.norm())) for b in z] for a in z]

    def ell(i, j):
        return -math.log(math.exp(s[i][j] / tau) / sum(math.exp(s[i][k] / tau) for k in range(2 * N) if k != i))

    expected = sum(ell(2 * k, 2 * k + 1) + ell(2 * k + 1, 2 * k) for k in range(N)) / (2 * N)
    assert nt_xent(z1, z2, tau=tau).item() == pytest.approx(expected, abs=1e-12)


def test_equal_codes_give_the_log_of_the_number_of_candidates():
    z = torch.ones(6, 4, dtype=torch.float64)
    assert nt_xent(z, z, tau=0.1).item() == pytest.approx(math.log(11), abs=1e-12)
    rows = info_nce(z, z, tau=0.1, positive=torch.arange(6))
    torch.testing.assert_close(rows, torch.full_like(rows, math.log(6)))


@settings(max_examples=25, deadline=None)
@given(n=st.integers(2, 9), m=st.integers(9, 12), tile=st.integers(1, 120), exclude=st.booleans())
def test_tiled_equals_direct_in_value_and_gradient(n, m, tile, exclude):
    positive = torch.arange(n)
    without = (positive + 1) % m if exclude else None
    grads = []
    for size in (1 << 20, tile):
        q, k = _z(n, 4, grad=True), _z(m, 4, seed=1, grad=True)
        tau = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
        rows = info_nce(q, k, tau=tau, positive=positive, exclude=without, tile=size)
        (rows * torch.arange(1.0, n + 1)).sum().backward()
        grads.append((rows.detach(), q.grad, k.grad, tau.grad))
    for direct, tiled in zip(*grads):
        torch.testing.assert_close(direct, tiled, rtol=1e-10, atol=1e-12)


def test_gradcheck():
    q, k = _z(4, 3, grad=True), _z(6, 3, seed=1, grad=True)
    tau = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    positive, own = torch.tensor([5, 0, 2, 3]), torch.tensor([0, 1, 3, 2])
    for tile in (1 << 20, 5):
        assert torch.autograd.gradcheck(
            lambda q, k, t, size=tile: info_nce(q, k, tau=t, positive=positive, exclude=own, tile=size), (q, k, tau))
    assert torch.autograd.gradcheck(lambda a, b: nt_xent(a, b, tau=0.2), (q, _z(4, 3, seed=2, grad=True)))


def test_lengths_do_not_matter_and_an_excluded_column_has_no_gradient():
    q, k = _z(4, 3), _z(4, 3, seed=1)
    a = info_nce(q, k, tau=0.2, positive=torch.arange(4))
    b = info_nce(q * 7, k * torch.arange(1.0, 5)[:, None], tau=0.2, positive=torch.arange(4))
    torch.testing.assert_close(a, b)
    k = k.requires_grad_()
    info_nce(q[:1], k, tau=0.2, positive=torch.tensor([0]), exclude=torch.tensor([3])).sum().backward()
    assert k.grad[3].abs().max() == 0 and k.grad[1].abs().max() > 0


def test_float32_agrees_with_float64_and_tiny_temperatures_stay_finite():
    z1, z2 = _z(64, 16), _z(64, 16, seed=1)
    assert nt_xent(z1.float(), z2.float(), tau=0.1).item() == pytest.approx(nt_xent(z1, z2, tau=0.1).item(), abs=1e-5)
    assert nt_xent(z1.float(), z2.float(), tau=1e-3).isfinite()


def test_pixel_info_nce_counts_positives_per_image():
    B, P = 3, 49
    ones = torch.ones(B, P, 5, dtype=torch.float64)
    positive = torch.eye(P, dtype=torch.bool).repeat(B, 1, 1)
    positive[2] = False
    loss, valid = pixel_info_nce(ones, ones, positive, tau=0.3)
    torch.testing.assert_close(loss, torch.tensor([math.log(49), math.log(49), 0.0], dtype=torch.float64))
    assert valid.tolist() == [True, True, False]


def test_pixel_info_nce_by_hand_and_gradcheck():
    q, k = _z(2, 4, 3, grad=True), _z(2, 4, 3, seed=1, grad=True)
    positive = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(3)) < 0.4
    positive[0, 0] = False
    loss, _ = pixel_info_nce(q, k, positive, tau=0.3)
    for n in range(2):
        e = (F.normalize(q[n], dim=1) @ F.normalize(k[n], dim=1).T / 0.3).exp()
        cells = [-((e[i] * positive[n, i]).sum() / e[i].sum()).log() for i in range(4) if positive[n, i].any()]
        torch.testing.assert_close(loss[n], torch.stack(cells).mean())
    assert torch.autograd.gradcheck(lambda q, k: pixel_info_nce(q, k, positive, tau=0.3)[0], (q, k))
    pixel_info_nce(q, k, torch.zeros_like(positive), tau=0.3)[0].sum().backward()
    assert q.grad.abs().max() == 0
