"""Regression losses: golden numbers of HPM's official code, range, and gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from notan.losses.regression import cosine_regression, masked_mse, normalise_patches
from notan.nets.pixels import patchify

MASK = torch.tensor([True, False, True, True])


def _sin(a, b, n):
    return torch.sin(a * torch.arange(n, dtype=torch.float64) + b)


def test_golden_numbers_of_masked_pixels():
    patches = patchify(_sin(0.01, 0, 768).view(1, 3, 16, 16), 8)[:, MASK]
    pred = _sin(0.02, 0.5, 768)[:576].view(1, 3, 192)
    raw, normed = masked_mse(pred, patches), masked_mse(pred, normalise_patches(patches))
    assert raw[0].tolist() == pytest.approx([0.865960, 1.250416, 1.372153], abs=1e-5)
    assert raw.mean().item() == pytest.approx(1.162843, abs=1e-5)
    assert normed[0].tolist() == pytest.approx([1.661593, 1.540777, 1.540821], abs=1e-5)
    assert normed.mean().item() == pytest.approx(1.581064, abs=1e-5)


def test_golden_numbers_of_masked_features():
    pred = _sin(0.02, 0.5, 768)[:576].view(1, 3, 192)
    target = _sin(0.03, 0.1, 768).view(1, 4, 192)[:, MASK]
    loss = cosine_regression(pred, target)
    assert loss[0].tolist() == pytest.approx([0.374160, 2.731146, 3.101172], abs=1e-5)
    assert loss.mean().item() == pytest.approx(2.068826, abs=1e-5)


@settings(max_examples=20, deadline=None)
@given(scale=st.floats(0.1, 10), seed=st.integers(0, 99))
def test_cosine_regression_is_the_distance_of_directions(scale, seed):
    g = torch.Generator().manual_seed(seed)
    p, t = torch.randn(2, 5, 3, generator=g, dtype=torch.float64)
    loss = cosine_regression(p * scale, t)
    units = p / p.norm(dim=1, keepdim=True) - t / t.norm(dim=1, keepdim=True)
    torch.testing.assert_close(loss, units.square().sum(1))
    assert loss.shape == (5,) and (loss >= 0).all() and (loss <= 4).all()


def test_gradcheck():
    g = torch.Generator().manual_seed(0)
    p, t = torch.randn(2, 2, 3, 4, generator=g, dtype=torch.float64)
    p.requires_grad_()
    assert torch.autograd.gradcheck(lambda p: cosine_regression(p, t), (p,))
    assert torch.autograd.gradcheck(lambda p: masked_mse(p, t), (p,))


def test_flat_patches_stay_finite():
    out = normalise_patches(torch.full((1, 2, 12), 0.5))
    assert out.abs().max() == 0
