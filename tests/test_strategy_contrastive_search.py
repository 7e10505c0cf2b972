"""Contrastive search: against a slow form that reads everything again, in both ways of reading candidates."""

from __future__ import annotations

import pytest
import torch
from test_strategies import made
from tiny_models import CONFIGS, IMAGE, MARKS, prompts, row, tiny

from notan.runs.lookahead import Searched, last_states, unit


def slow(model, inputs, *, k, alpha, new):
    """The definition, one prompt (1, L) and perhaps its picture, no cache."""
    ids, inputs = inputs["input_ids"], {n: x for n, x in inputs.items() if n in ("pixel_values", "image_grid_thw")}

    def read(ids):
        kinds = {"mm_token_type_ids": (ids == IMAGE).long()} if "image_grid_thw" in inputs else {}
        return model(ids, **inputs, **kinds).logits[:, -1]

    for _ in range(new):
        with torch.no_grad(), last_states(model) as states:
            z = read(ids).float()
            z[:, MARKS] = -torch.inf
            p = z.softmax(1)[0]
            H = unit(states[-1])[0]
            scores = []
            for v in p.topk(k).indices:
                read(torch.cat([ids, v.view(1, 1)], 1))
                scores.append((1 - alpha) * p[v] - alpha * (H @ unit(states[-1])[0, -1]).max())
        ids = torch.cat([ids, p.topk(k).indices[torch.stack(scores).argmax()].view(1, 1)], 1)
    return ids


def search(model, inputs, *, one_row=None, new=10, emit=None, **settings):
    method = Searched(made("contrastive_search", **settings), emit, one_row)
    ids = model.generate(**inputs, custom_generate=method, max_new_tokens=new, eos_token_id=None, suppress_tokens=MARKS)
    return ids, method


@pytest.mark.parametrize("one_row", [True, False, None])
@pytest.mark.parametrize("family", CONFIGS)
def test_it_is_the_definition_whatever_the_padding(family, one_row):
    model, inputs = tiny(family, dtype=torch.float32), prompts(family, dtype=torch.float32)
    ids, method = search(model, inputs, one_row=one_row, k=4, alpha=0.6)
    for b, pad in enumerate((0, 3)):
        wanted = slow(model, row(inputs, b, pad), k=4, alpha=0.6, new=10)
        assert torch.equal(ids[b, pad:], wanted[0])
    assert method.used_one_row is (one_row is not False)                # these models let candidates share a row


@pytest.mark.parametrize("settings", [{"alpha": 0.0}, {"k": 1}])
def test_without_similarity_or_choice_it_is_greedy(settings):
    model, inputs = tiny("llama"), prompts()
    plain = model.generate(**inputs, max_new_tokens=10, eos_token_id=None, suppress_tokens=MARKS, do_sample=False)
    assert torch.equal(search(model, inputs, **settings)[0], plain)


def test_the_score():
    search = made("contrastive_search", alpha=0.6)
    g = torch.Generator().manual_seed(0)
    h, H = (unit(torch.randn(2, n, 8, generator=g)) for n in (3, 5))
    p = torch.rand(2, 3, generator=g) / 3
    h[0, 1] = H[0, 2]                                                   # said before
    seen = torch.ones(2, 5, dtype=torch.bool)
    score = search.score(p, h, H, seen)
    torch.testing.assert_close(score[0, 1], 0.4 * p[0, 1] - 0.6)
    assert ((score >= -0.6 - 1e-6) & (score <= 1)).all()
    seen[0, 2] = False                                                  # but that was padding
    assert search.score(p, h, H, seen)[0, 1] > score[0, 1] + 0.1
    only = made("contrastive_search", alpha=1.0)
    assert torch.equal(only.rerank(p, h, H, seen), only.rerank(torch.flip(p, (1,)), h, H, seen))


def test_the_diverse_form_draws_its_first_tokens():
    model, inputs = tiny("gpt2"), prompts()
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(search(model, inputs, diverse=3)[0])
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0][:, 7:10], found[2][:, 7:10])


def test_the_end_stops_it_and_tokens_are_given_as_they_come():
    model, inputs, seen = tiny("llama"), prompts(), []
    ids, _ = search(model, inputs, emit=seen.append)
    assert torch.equal(torch.stack(seen, 1), ids[:, 7:])
    stop = int(ids[0, 9])
    method = Searched(made("contrastive_search"))
    ended = model.generate(**inputs, custom_generate=method, max_new_tokens=10, eos_token_id=stop, pad_token_id=2)
    assert (ended[0, 10:] == 2).all() and ended[0, 9] == stop
