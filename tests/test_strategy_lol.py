"""LOL: what it comes to without its parts, and that both depths are of the same two streams."""

from __future__ import annotations

import pytest
import torch
from test_strategies import made, run
from tiny_models import prompts, tiny

from notan.strategies._strategy import Context


@pytest.mark.parametrize("apart", [True, False])
def test_without_the_lower_layer_it_is_icd(apart):
    model, amateur, inputs = tiny("llama"), tiny("llama", seed=1) if apart else None, prompts()
    wanted = run(made("icd"), model, inputs, foreign=amateur, do_sample=False)
    assert torch.equal(run(made("lol", omega=0.0), model, inputs, foreign=amateur, do_sample=False), wanted)


def test_the_lower_contrast_is_added_in_proportion():
    g = torch.Generator().manual_seed(0)
    z = [torch.randn(2, 9, generator=g, dtype=torch.float64) for _ in range(4)]
    q = [x.log_softmax(1) for x in z]
    zero, half = (made("lol", omega=w, beta=0.0).combine(z, 0) for w in (0.0, 0.5))
    torch.testing.assert_close(half - zero, 0.5 * (q[2] - q[3]))
    torch.testing.assert_close(zero, q[0] - q[1])


def test_a_copy_that_is_the_model_says_nothing_and_one_with_equal_lower_layers_is_icd():
    model, inputs = tiny("llama"), prompts()
    z = [torch.randn(2, 9) for _ in range(2)]
    s = made("lol").combine([z[0], z[0], z[1], z[1]], 0)
    assert s[s.isfinite()].abs().max() < 1e-6
    tuned = tiny("llama")
    with torch.no_grad():
        for p in tuned.base_model.layers[1].parameters():
            p.mul_(1.3)                                                 # only above the lower layer, which is 1 of 2
    wanted = run(made("icd"), model, inputs, foreign=tuned, do_sample=False)
    assert torch.equal(run(made("lol", omega=3.0), model, inputs, foreign=tuned, do_sample=False), wanted)


def test_the_model_is_told_to_be_truthful_and_its_copy_is_not():
    strategy = made("lol", truth="T", instruction="U")
    assert strategy.main(Context("x")) == Context("x", "T")
    assert strategy.contexts(Context("x"), True) == [Context("x", "", "amateur")]
    assert strategy.contexts(Context("x"), False) == [Context("x", "U")]
    assert made("lol", truth="").main(Context("x")) == Context("x")
    assert made("lol").layers(32, False) == (8,) and made("lol").layers(2, True) == (1,)
