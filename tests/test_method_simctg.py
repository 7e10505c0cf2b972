"""SimCTG: golden numbers, what must hold of the contrast, padding, and the run folder as `transformers` reads it."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from notan import catalogue
from notan.errors import NotanError
from notan.losses.token_contrast import token_contrast, token_cosines
from notan.methods._example import texts, tiny_language_model
from notan.methods._progress import Progress
from notan.methods.simctg import SimCTG, example

START = Progress()


def contrast(h: Tensor, pad: Tensor, rho: float) -> Tensor:
    s, pairs = token_cosines(h, pad)
    return token_contrast(s, pairs, rho).sum() / pairs.sum()


def states(B: int = 3, T: int = 6, D: int = 5) -> tuple[Tensor, Tensor]:
    """Random states, all somewhat alike, and texts of T, T - 2 and 1 tokens."""
    h = torch.randn(B, T, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.7
    return h, torch.arange(T) >= torch.tensor([T, T - 2, 1])[:, None]


def by_hand(h: Tensor, pad: Tensor, rho: float) -> float:
    """Equation 2, pair by pair."""
    total, count = 0.0, 0
    for text, hidden in zip(h, pad):
        real = [x for x, gone in zip(text, hidden) if not gone]
        for i, a in enumerate(real):
            for j, b in enumerate(real):
                if i != j:
                    cos = float(a @ b / (a.norm() * b.norm()))
                    total, count = total + max(0.0, rho - 1.0 + cos), count + 1
    return total / count


# ---- the contrast ----------------------------------------------------------------------------------------------------

def test_golden_numbers():
    """Three states at 0, 60 and 90 degrees: cosines 1/2, 0 and sqrt(3)/2, each of two pairs."""
    angles = torch.tensor([0.0, 60.0, 90.0], dtype=torch.float64).deg2rad()
    h, pad = torch.stack([angles.cos(), angles.sin()], dim=1)[None], torch.zeros(1, 3, dtype=torch.bool)
    assert float(contrast(h, pad, 0.5)) == pytest.approx((math.sqrt(3) / 2 - 0.5) / 3)
    assert float(contrast(h, pad, 0.7)) == pytest.approx((0.2 + math.sqrt(3) / 2 - 0.3) / 3)


@pytest.mark.parametrize("rho", [0.1, 0.5, 1.0, 2.0])
def test_it_is_equation_2(rho):
    h, pad = states()
    assert float(contrast(h, pad, rho)) == pytest.approx(by_hand(h, pad, rho), rel=1e-12)


def test_texts_count_by_their_pairs():
    """30 pairs of one text and 12 of another, averaged together: not the mean of two means, which differs here."""
    h, pad = states()
    both, one, two = (float(contrast(h[i], pad[i], 0.5)) for i in (slice(0, 2), slice(0, 1), slice(1, 2)))
    assert both == pytest.approx((30 * one + 12 * two) / 42) and abs(both - (one + two) / 2) > 1e-3


def test_bounds():
    h, pad = states()
    same, none = torch.ones(1, 4, 3), torch.zeros(1, 4, dtype=torch.bool)
    assert float(contrast(h, pad, 0.0)) == 0 and float(contrast(same, none, 0.0)) == 0
    assert float(contrast(torch.eye(4)[None], none, 0.5)) == 0         # cosines of 0, and 1 - rho = 0.5
    assert float(contrast(same, none, 0.5)) == pytest.approx(0.5, abs=1e-6)


def test_padding_and_scale_change_nothing():
    h, pad = states()
    whole = contrast(h, pad, 0.5)
    wider = torch.cat([h, torch.randn(3, 4, 5, dtype=torch.float64)], dim=1)
    torch.testing.assert_close(contrast(wider, F.pad(pad, (0, 4), value=True), 0.5), whole)
    torch.testing.assert_close(contrast(h * torch.rand(3, 6, 1, dtype=torch.float64).add(0.1), pad, 0.5), whole)


def test_the_gradient_is_at_right_angles_to_every_state():
    h, pad = states()
    h.requires_grad_()
    contrast(h, pad, 0.5).backward()
    assert (h.grad * h).sum(2).abs().max() < 1e-12 and h.grad.abs().max() > 1e-3
    assert (h.grad[pad] == 0).all() and (h.grad[2] == 0).all()         # padding, and a text of one token


def test_cosines_are_float32_under_bfloat16():
    h, pad = states()
    with torch.autocast("cpu", torch.bfloat16):
        s, _ = token_cosines(h.bfloat16(), pad)
    assert s.dtype == torch.float32
    torch.testing.assert_close(s, token_cosines(h.bfloat16().double(), pad)[0].float(), rtol=1e-6, atol=1e-6)


# ---- the method ------------------------------------------------------------------------------------------------------

def test_the_loss_is_of_the_next_token_and_of_the_states_that_were_read():
    """Text by text with `transformers`' own forward pass, no padding anywhere."""
    method, batch = example(4, torch.float64)
    method, nll, tokens, sums, pairs = method.requires_grad_(False), 0.0, 0, 0.0, 0
    for text in batch["text"]:
        ids = torch.tensor(method.model.tokenizer(text)["input_ids"])
        out = method.model.model(input_ids=ids[None, :-1], output_hidden_states=True)
        nll, tokens = nll + float(F.cross_entropy(out.logits[0], ids[1:], reduction="sum")), tokens + len(ids) - 1
        h, n = out.hidden_states[-1], len(ids) - 1
        sums, pairs = sums + n * (n - 1) * by_hand(h, torch.zeros(1, n, dtype=torch.bool), 1.0), pairs + n * (n - 1)
    found = method.eval().loss(batch, START)
    assert float(found["mle"]) == pytest.approx(nll / tokens, rel=1e-9)
    assert float(found["contrast"]) == pytest.approx(sums / pairs, rel=1e-9) and float(found["contrast"]) > 0.01
    assert float(found["loss"]) == pytest.approx(float(found["mle"] + found["contrast"]), rel=1e-12)


def test_without_a_margin_it_is_plain_training():
    model = tiny_language_model().double()
    found = SimCTG(model, rho=0.0).loss(texts(4), START)
    assert float(found["contrast"].detach()) == 0 and torch.equal(found["loss"], found["mle"])


def test_an_end_inside_a_text_is_a_token_and_not_padding():
    """Padding and end-of-text have one number in GPT-2's tokenizers."""
    model = tiny_language_model()
    assert model.tokenizer.pad_token_id == model.tokenizer.eos_token_id
    ids, pad = model.tokens(["a cat<|endoftext|>a dog", "a"])
    inside = (ids[0] == model.tokenizer.eos_token_id).nonzero()
    assert len(inside) == 1 and not pad[0].any() and pad[1, 1:].all()


def test_features_are_the_mean_of_real_states_in_any_company():
    method, batch = example(6, torch.float64)
    z = method.eval().encode(batch)
    one = torch.cat([method.encode({"text": [text]}) for text in batch["text"]])
    torch.testing.assert_close(z, one, rtol=1e-9, atol=1e-9)
    assert torch.equal(method.encode({"text": ["", "a cat"]})[0], torch.zeros(32, dtype=torch.float64))


def test_only_so_many_tokens_are_read():
    method, batch = example(4, torch.float64)
    method.length = 4
    cut = {"text": [method.model.tokenizer.decode(method.model.tokenizer(t)["input_ids"][:4]) for t in batch["text"]]}
    assert torch.equal(method.loss(batch, START)["loss"], method.loss(cut, START)["loss"])


def test_texts_of_nothing_give_nothing():
    method, _ = example(2, torch.float32)
    found = method.loss({"text": ["", "x"]}, START)
    assert float(found["loss"]) == 0 and found["loss"].requires_grad


@pytest.mark.parametrize(("settings", "said"), [
    ({"rho": -0.1}, "rho = -0.1"), ({"rho": 3.0}, "rho = 3"), ({"length": 1}, "length = 1")])
def test_settings_out_of_range_are_named(settings, said):
    with pytest.raises(NotanError, match=said):
        SimCTG(tiny_language_model(), **settings)


def test_defaults_are_the_papers():
    assert {f.name: f.default for f in catalogue.method("simctg").flags} == {"rho": 0.5, "length": 256}
    paper = catalogue.method("simctg").recipes["paper"]
    assert paper["optimiser"]["lr"] == 2e-5 and paper["batch"] == 128 and paper["warmup"] == 0.1 and paper["clip"] == 1.0
