"""HPM's loss prediction: golden numbers, ties, limits, and equality with binary cross-entropy over pairs."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from notan.losses.ranking import absolute_ranking, pairwise_ranking, stable_pairwise_ranking

FORMS = [pairwise_ranking, stable_pairwise_ranking]


def _golden():
    b, i = torch.arange(2, dtype=torch.float64)[:, None], torch.arange(12, dtype=torch.float64)[None]
    return torch.sin(0.37 * i + b), torch.cos(0.53 * i + 0.2 * b) + 2


def _mean(form, t, l):
    total, count = form(t, l)
    return (total / count).item()


def test_golden_numbers_of_the_official_code():
    t, l = _golden()
    assert _mean(pairwise_ranking, t, l) == pytest.approx(0.919214, abs=1e-5)
    assert absolute_ranking(t, l).mean().item() == pytest.approx(1.822565, abs=1e-5)
    assert pairwise_ranking(t, l)[1] == 2 * 12 * 11                     # both orders of each pair


def test_equals_binary_cross_entropy_over_untied_pairs():
    t, l = _golden()
    l[0, :3] = 1.0                                                      # a tie of three
    untied = l[:, :, None] != l[:, None, :]
    d, y = (t[:, :, None] - t[:, None, :])[untied], (l[:, :, None] > l[:, None, :])[untied].double()
    expected = F.binary_cross_entropy_with_logits(d, y).item()
    assert _mean(stable_pairwise_ranking, t, l) == pytest.approx(expected, abs=1e-12)
    assert _mean(pairwise_ranking, t, l) == pytest.approx(expected, abs=1e-4)
    assert pairwise_ranking(t, l)[1] == 2 * 12 * 11 - 3 * 2


def test_constant_predictions_cost_log_2():
    _, l = _golden()
    assert _mean(pairwise_ranking, torch.zeros_like(l), l) == pytest.approx(0.693145, abs=1e-6)
    assert _mean(stable_pairwise_ranking, torch.zeros_like(l), l) == pytest.approx(math.log(2), abs=1e-12)


@settings(max_examples=20, deadline=None)
@given(shift=st.floats(-5, 5), power=st.sampled_from([1, 3, 5]))
def test_only_the_order_of_losses_and_differences_of_predictions_count(shift, power):
    t, l = _golden()
    for form in FORMS:
        assert _mean(form, t + shift, l) == pytest.approx(_mean(form, t, l), abs=1e-9)
        assert _mean(form, t, l**power + 1) == pytest.approx(_mean(form, t, l), abs=1e-12)


def test_margins_at_both_ends():
    l = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    right, wrong = torch.tensor([[0.0, 50.0]], dtype=torch.float64), torch.tensor([[50.0, 0.0]], dtype=torch.float64)
    assert abs(_mean(pairwise_ranking, right, l)) < 2e-6
    assert _mean(pairwise_ranking, wrong, l) == pytest.approx(13.8, abs=0.05)
    assert _mean(stable_pairwise_ranking, wrong, l) == pytest.approx(50, abs=1e-6)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", FORMS)
def test_half_precision_is_compared_in_float32(form, half):
    """In bfloat16 1 - sigmoid(7) is 0, which costs 13.8; what it should cost is 7.0."""
    t, l = torch.tensor([[7.0, 0.0]], dtype=half, requires_grad=True), torch.tensor([[1.0, 2.0]], dtype=half)
    total, count = form(t, l)
    total.backward()
    assert total.dtype == torch.float32 and count == 2 and t.grad.dtype == half
    assert (total / count).item() == pytest.approx(7.0, abs=0.01)


def test_half_precision_is_standardised_in_float32():
    l = torch.arange(1.0, 400.0)[None].to(torch.bfloat16)
    t = torch.zeros_like(l)
    found = absolute_ranking(t, l)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, absolute_ranking(t.float(), l.float()))


@pytest.mark.parametrize("form", FORMS)
def test_ties_everywhere_have_no_pairs_and_no_nan(form):
    t = torch.zeros(2, 5, requires_grad=True)
    total, count = form(t, torch.ones(2, 5))
    total.backward()
    assert total == 0 and count == 0 and t.grad.isfinite().all()


@pytest.mark.parametrize("form", FORMS)
def test_gradient_reaches_predictions_only(form):
    t, l = _golden()
    t, l = t.requires_grad_(), l.requires_grad_()
    assert torch.autograd.gradcheck(lambda t: form(t, l)[0], (t,))
    form(t, l)[0].backward()
    assert l.grad is None
    assert torch.autograd.gradcheck(lambda t: absolute_ranking(t, l), (t,))
