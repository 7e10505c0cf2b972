"""Latent objectives: parity with torch.distributions, and the limits of cMIM's self-contrast."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Bernoulli, Normal

from notan.losses.info_nce import info_nce
from notan.losses.latent import (
    a_mim,
    bernoulli_log_prob,
    normal_log_prob,
    prior_log_prob,
    sample,
    self_contrast,
    vae,
)


def _z(n, d, seed=0, grad=False):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=g, dtype=torch.float64).requires_grad_(grad)


def test_densities_are_those_of_torch_distributions():
    z, mu, log_sigma = _z(6, 4), _z(6, 4, seed=1), _z(6, 4, seed=2)
    torch.testing.assert_close(normal_log_prob(z, mu, log_sigma), Normal(mu, log_sigma.exp()).log_prob(z).sum(1))
    torch.testing.assert_close(prior_log_prob(z), Normal(0.0, 1.0).log_prob(z).sum(1))
    x = (_z(6, 4, seed=3) > 0).double().view(6, 2, 2)
    torch.testing.assert_close(bernoulli_log_prob(mu.view(6, 2, 2), x),
                               Bernoulli(logits=mu).log_prob(x.flatten(1)).sum(1))
    torch.testing.assert_close(sample(mu, log_sigma, z), mu + log_sigma.exp() * z)


def test_flipping_the_sign_of_log_q_and_doubling_turns_a_mim_into_the_vae():
    px, qz, pz = (_z(5, 1, seed=s).squeeze(1) for s in range(3))
    torch.testing.assert_close(a_mim(px, qz, pz), -px - 0.5 * (qz + pz))
    torch.testing.assert_close(a_mim(px, -2 * qz, 2 * pz), vae(px, qz, pz))


def test_clamped_sigma_and_huge_logits_stay_finite():
    z = torch.zeros(2, 3)
    log_sigma = torch.full((2, 3), -1e9).clamp(min=-6)
    assert normal_log_prob(z, z, log_sigma).isfinite().all()
    assert bernoulli_log_prob(torch.full((2, 3), 1e4), torch.zeros(2, 3)).isfinite().all()


@pytest.mark.parametrize("tau", [0.1, 0.5, 1.0])
def test_self_contrast_at_its_limits(tau):
    same, orthogonal = torch.ones(5, 5, dtype=torch.float64), torch.eye(5, dtype=torch.float64)
    assert self_contrast(same, tau=tau).tolist() == pytest.approx([-math.log(2)] * 5, abs=1e-12)
    right_angle = -math.log1p(math.exp(-1 / tau))
    assert self_contrast(orthogonal, tau=tau).tolist() == pytest.approx([right_angle] * 5, abs=1e-12)
    pair = torch.tensor([[1.0, 2.0], [-1.0, -2.0]], dtype=torch.float64)
    assert self_contrast(pair, tau=tau).tolist() == pytest.approx([-math.log1p(math.exp(-2 / tau))] * 2, abs=1e-12)
    assert self_contrast(pair[:1], tau=tau).tolist() == [0.0]


def test_self_contrast_keeps_its_digits_in_float32():
    """At tau = 0.1 the term is five digits below 1/tau, which must not be subtracted from a number of its size."""
    value = self_contrast(torch.eye(6), tau=0.1)
    torch.testing.assert_close(value, torch.full((6,), -math.log1p(math.exp(-10))), rtol=1e-5, atol=0)
    assert value[0].item() == pytest.approx(-4.540e-5, abs=5e-9)


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_self_contrast_in_chunks_is_the_direct_one(chunk):
    bank, own = _z(9, 4, grad=True), torch.tensor([8, 1, 2, 4, 0, 6, 3])
    found = {}
    for size in (1000, chunk):
        value = self_contrast(bank[own], tau=0.5, bank=bank, own=own, tile=size * len(bank))
        found[size] = value, *torch.autograd.grad((value * torch.arange(7)).sum(), bank)
    for a, b in zip(found[1000], found[chunk]):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("size", "batches", "as_a_sum"), [(8, 4000, -0.0048), (64, 300, -0.043), (512, 12, -0.303)])
def test_the_mean_of_the_negatives_does_not_grow_with_the_batch(size, batches, as_a_sum):
    """Random codes of 16 values at tau = 0.1, averaged over batches: one small batch says nothing."""
    g = torch.Generator().manual_seed(0)
    own = torch.arange(size)
    total = torch.zeros(2, dtype=torch.float64)
    for _ in range(batches):
        z = torch.randn(size, 16, generator=g)
        total += torch.stack([self_contrast(z, tau=0.1).mean(), -info_nce(z, z, tau=0.1, positive=own).mean()]).double()
    mean, summed = (total / batches).tolist()
    assert mean == pytest.approx(-0.0007, rel=0.05) and summed == pytest.approx(as_a_sum, rel=0.05)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(2, 8), seed=st.integers(0, 99), tau=st.floats(0.05, 2))
def test_self_contrast_is_bounded_and_blind_to_length_and_order(n, seed, tau):
    z = _z(n, 3, seed)
    value = self_contrast(z, tau=tau)
    assert (value <= 1e-12).all() and (value >= -math.log(2) - 1e-12).all()
    torch.testing.assert_close(self_contrast(z * torch.arange(1.0, n + 1)[:, None], tau=tau), value)
    order = torch.arange(n).flip(0)
    torch.testing.assert_close(self_contrast(z[order], tau=tau), value[order])
    assert self_contrast(z, tau=1e9).tolist() == pytest.approx([-math.log(2)] * n, abs=1e-6)


def test_self_contrast_is_info_nce_with_lowered_negatives():
    z, tau, n = _z(6, 4), 0.3, 6
    unit = z / z.norm(dim=1, keepdim=True)
    logits = unit @ unit.T / tau - math.log(n - 1) * (1 - torch.eye(n))
    torch.testing.assert_close(self_contrast(z, tau=tau), logits.log_softmax(1).diagonal())
    two = z[:2]                                                         # one negative: nothing to lower
    torch.testing.assert_close(self_contrast(two, tau=tau), -info_nce(two, two, tau=tau, positive=torch.arange(2)))


def test_the_number_of_equal_negatives_does_not_matter():
    a, b = _z(2, 4)
    values = [self_contrast(torch.stack([a] + [b] * m), tau=0.5)[0].item() for m in (1, 3, 10)]
    assert values == pytest.approx([values[0]] * 3, abs=1e-12)


def test_gradient_turns_a_code_and_never_stretches_it():
    z = _z(6, 4, grad=True)
    self_contrast(z, tau=0.5).sum().backward()
    assert (z.grad * z).sum(1).abs().max() < 1e-12 and z.grad.abs().max() > 1e-4
    assert torch.autograd.gradcheck(lambda z: self_contrast(z, tau=0.5), (_z(4, 3, grad=True),))


def test_a_part_of_the_rows_against_the_bank_of_all():
    z = _z(7, 4)
    whole = self_contrast(z, tau=0.2)
    torch.testing.assert_close(self_contrast(z[3:5], tau=0.2, bank=z, own=torch.tensor([3, 4])), whole[3:5])
    one = _z(1, 3, grad=True)
    self_contrast(one, tau=0.2).sum().backward()
    assert one.grad.abs().max() == 0
