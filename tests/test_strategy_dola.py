"""DoLa: which layers are asked, which is chosen, and what the released code's divergence is."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from test_strategies import made
from tiny_models import prompts, tiny

from notan.runs.generation import open_stream


@pytest.mark.parametrize(("bucket", "depth", "tied", "wanted"), [
    ("low", 32, False, tuple(range(0, 16, 2))), ("high", 32, False, tuple(range(16, 32, 2))),
    ("low", 30, True, tuple(range(2, 15, 2))), ("low", 48, True, tuple(range(2, 20, 2))),
    ("high", 48, False, tuple(range(28, 48, 2))), ("low", 2, True, (1,)),
])
def test_the_candidates(bucket, depth, tied, wanted):
    assert made("dola", bucket=bucket).layers(depth, tied) == wanted


def test_the_divergences_against_torch():
    g = torch.Generator().manual_seed(0)
    q, q_j = (torch.randn(*shape, generator=g, dtype=torch.float64).log_softmax(-1) for shape in ((3, 7), (2, 3, 7)))
    m = 0.5 * (q.exp() + q_j.exp())
    true = 0.5 * (F.kl_div(m.log(), q.exp().expand_as(m), reduction="none").sum(2)
                  + F.kl_div(m.log(), q_j.exp(), reduction="none").sum(2))
    torch.testing.assert_close(made("dola").divergence(q, q_j), true)
    kl1 = F.kl_div(q.expand_as(m), m, reduction="none").mean(-1)       # KL(M || P), as the released code calls it
    kl2 = F.kl_div(q_j, m, reduction="none").mean(-1)
    official = (0.5 * (kl1 + kl2)).mean(-1)
    torch.testing.assert_close(made("dola", jsd="official").divergence(q, q_j), official[:, None].expand(-1, 3))


def test_each_row_chooses_the_layer_that_differs_most():
    z = torch.tensor([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
    near, far = z * 0.9, torch.tensor([[0.0, 0.0, 2.0], [0.0, 1.7, 0.0]])
    early = [torch.stack([near[0], far[1]]), torch.stack([far[0], near[1]])]
    s = made("dola", beta=0.0).combine([z, *early], 0)
    chosen = torch.stack([far[0], far[1]])
    torch.testing.assert_close(s, z.log_softmax(1) - chosen.log_softmax(1))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_early_logits_are_the_heads_word_on_hidden_states_and_normed_ones_end_at_the_models_own(family):
    model, inputs = tiny(family), prompts(pads=(0, 0))
    stream = open_stream(model, inputs, max_new_tokens=4)
    stream.layers, stream.normed = (0, 1, 2), False
    for _ in range(2):                                                  # prompt, then one token on the cache
        final, *early = stream.logits()
        with torch.no_grad():
            whole = model(stream.ids, output_hidden_states=True)
            for j, z in zip((0, 1), early):
                torch.testing.assert_close(z, model.get_output_embeddings()(whole.hidden_states[j][:, -1]).float())
        torch.testing.assert_close(early[2], final)                     # the last entry is normed already
        stream.append(final.argmax(1))
    normed = open_stream(model, inputs, max_new_tokens=4)
    normed.layers, normed.normed = (1,), True
    norm = getattr(model.base_model, "norm", None) or model.base_model.ln_f
    with torch.no_grad():
        h = model(inputs["input_ids"], output_hidden_states=True).hidden_states[1][:, -1]
        torch.testing.assert_close(normed.logits()[1], model.get_output_embeddings()(norm(h)).float())


def test_a_layer_equal_to_the_last_leaves_every_plausible_token_alike():
    model, inputs = tiny("llama"), prompts()
    stream = open_stream(model, inputs, max_new_tokens=4)
    stream.layers = (2,)
    strategy = made("dola")
    z = stream.logits()
    s = strategy.combine(z, 0)
    assert s[s.isfinite()].abs().max() < 1e-6
