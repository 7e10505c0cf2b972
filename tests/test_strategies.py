"""What every strategy must hold, enumerated: on tiny models of several families, built from their configs."""

from __future__ import annotations

import importlib

import pytest
import torch
from PIL import Image
from tiny_models import CONFIGS, MARKS, SEEING, prompts, repeated, row, tiny
from transformers import CompileConfig

from notan import catalogue
from notan.runs.generation import Combined, open_stream
from notan.runs.reader import layers_of
from notan.strategies._strategy import Context, plausible, weighted, within

COMBINING = [slug for slug, e in catalogue.strategies().items() if "combine" in e.has]
ON = [(slug, family) for slug in COMBINING for family in CONFIGS
      if family in SEEING or "image" not in catalogue.strategy(slug).card["needs"]]
GIVEN = Context("is there a dog?", image=Image.new("RGB", (16, 16)))


def family_of(slug: str, seeing: str = "llava", reading: str = "llama") -> str:
    """A family that the strategy works on."""
    return seeing if "image" in catalogue.strategy(slug).card["needs"] else reading


def made(slug: str, **settings):
    return getattr(importlib.import_module(f"notan.strategies.{slug}"), catalogue.strategy(slug).cls)(**settings)


def run(strategy, model, inputs, *, foreign=None, new=12, emit=None, **how):
    """The strategy's tokens, its other streams reading the same prompts as rows of one batch, or with `foreign`, a model."""
    K = len(strategy.contexts(GIVEN, foreign is not None))
    how = {"max_new_tokens": new, "eos_token_id": None, "suppress_tokens": MARKS, **how}
    if foreign is not None and K:
        streams = [(open_stream(model, inputs, **how), [0]),
                   *((open_stream(foreign, inputs, **how), [i]) for i in range(1, K + 1))]
    else:
        streams = [(open_stream(model, repeated(inputs, 1 + K), **how), range(1 + K))]
    for stream, _ in streams if hasattr(strategy, "layers") else ():
        stream.layers = layers_of(strategy, model)[0]
    return model.generate(**inputs, custom_generate=Combined(strategy, streams, emit), **how)


@pytest.mark.parametrize(("slug", "family"), ON)
def test_no_contrast_and_no_head_is_the_model_token_for_token(slug, family):
    model, inputs = tiny(family), prompts(family)
    strategy = made(slug, **catalogue.strategy(slug).card["off"])
    plain = model.generate(**inputs, max_new_tokens=12, eos_token_id=None, suppress_tokens=MARKS, do_sample=False)
    assert torch.equal(run(strategy, model, inputs, do_sample=False), plain)
    torch.manual_seed(5)
    plain = model.generate(**inputs, max_new_tokens=12, eos_token_id=None, suppress_tokens=MARKS, do_sample=True, top_k=0)
    torch.manual_seed(5)
    assert torch.equal(run(strategy, model, inputs, do_sample=True, top_k=0), plain)


@pytest.mark.parametrize("slug", COMBINING)
def test_rows_of_one_pass_are_separate_passes(slug):
    model, inputs = tiny(family_of(slug)), prompts(family_of(slug))
    together = run(made(slug), model, inputs, do_sample=False)
    apart = run(made(slug), model, inputs, foreign=model, do_sample=False)
    assert torch.equal(together, apart)


@pytest.mark.parametrize(("slug", "family"), ON)
def test_padding_and_company_change_nothing_and_neither_does_the_cache(slug, family):
    model, amateur, inputs = tiny(family), tiny(family, seed=1), prompts(family)
    L = inputs["input_ids"].shape[1]
    both = run(made(slug), model, inputs, foreign=amateur, do_sample=False)[:, L:]
    for b, pad in enumerate((0, 3)):
        assert torch.equal(run(made(slug), model, row(inputs, b, pad), foreign=amateur, do_sample=False)[0, L - pad:], both[b])
    uncached = run(made(slug), model, inputs, foreign=amateur, do_sample=False, use_cache=False)[:, L:]
    assert torch.equal(uncached, both)


@pytest.mark.parametrize("slug", COMBINING)
def test_equal_streams_come_to_the_sum_of_the_weights(slug):
    strategy = made(slug)
    z = torch.randn(3, 11, dtype=torch.float64)
    K = len(strategy.weights(0))
    S = sum(strategy.weights(0))
    head = plausible(z, strategy.beta)
    wanted = within(head, S * z).softmax(1)
    torch.testing.assert_close(strategy.combine([z] * K, 0).softmax(1), wanted)


@pytest.mark.parametrize("slug", COMBINING)
def test_constants_change_nothing_the_likeliest_stays_and_nothing_is_nan(slug):
    strategy = made(slug)
    K = len(strategy.weights(0))
    z = [torch.randn(4, 9, dtype=torch.float64) * 5 for _ in range(K)]
    s = strategy.combine(z, 0)
    moved = strategy.combine([x + c for x, c in zip(z, (3.0, -40.0, 7.0, 0.5))], 0)
    torch.testing.assert_close(moved.softmax(1), s.softmax(1))
    assert s.gather(1, z[0].argmax(1, keepdim=True)).isfinite().all() and not s.isnan().any()
    order = torch.tensor([2, 0, 3, 1])
    assert torch.equal(strategy.combine([x[order] for x in z], 0), s[order])


@pytest.mark.parametrize("slug", COMBINING)
def test_beta_one_is_greedy(slug):
    family = family_of(slug, "qwen2_vl", "gpt2")
    model, amateur, inputs = tiny(family), tiny(family, seed=1), prompts(family)
    plain = model.generate(**inputs, max_new_tokens=12, eos_token_id=None, suppress_tokens=MARKS, do_sample=False)
    for how in ({"do_sample": False}, {"do_sample": True, "top_k": 0}):
        assert torch.equal(run(made(slug, beta=1.0), model, inputs, foreign=amateur, **how), plain)


@pytest.mark.parametrize("slug", COMBINING)
def test_the_same_seed_gives_the_same_text_and_another_one_another(slug):
    family = family_of(slug)
    model, amateur, inputs = tiny(family), tiny(family, seed=1), prompts(family)
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(run(made(slug, beta=0.001), model, inputs, foreign=amateur, do_sample=True, top_k=0, temperature=2.0))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


@pytest.mark.parametrize("slug", catalogue.strategies())
def test_a_strategy_says_what_it_is(slug):
    entry = catalogue.strategy(slug)
    assert entry.card.keys() >= {"title", "arxiv", "year", "needs", "claim", "cost", "sum", "off", "deviations"}
    assert all(f.name in entry.helps for f in entry.flags)
    assert all(f"**{part}.**" in entry.doc for part in ("What it is", "When it helps", "What it costs"))
    for f in entry.flags:
        assert f.default == getattr(made(slug), f.name)                 # kept under its own name


def test_a_stream_of_weight_zero_takes_no_part():
    z = torch.randn(2, 5)
    assert torch.equal(weighted([z, torch.full_like(z, torch.inf)], [1.0, 0.0]), z)


def test_rows_that_have_ended_are_padded_and_the_others_go_on():
    model, inputs = tiny("llama"), prompts()
    plain = model.generate(**inputs, max_new_tokens=12, eos_token_id=None, suppress_tokens=MARKS, do_sample=False)[:, 7:]
    stop = int(plain[0, 4])
    wanted = model.generate(**inputs, max_new_tokens=12, eos_token_id=stop, do_sample=False, suppress_tokens=MARKS)
    strategy = made("contrastive_decoding", c=0.0, beta=0.0)
    assert torch.equal(run(strategy, model, inputs, do_sample=False, eos_token_id=stop), wanted)


def test_processors_and_tokens_as_they_come():
    model, inputs = tiny("llama"), prompts()
    seen: list[torch.Tensor] = []
    strategy = made("contrastive_decoding", c=0.0, beta=0.0)
    how = {"eos_token_id": None, "do_sample": False, "suppress_tokens": MARKS, "repetition_penalty": 1.7,
           "no_repeat_ngram_size": 2}
    ids = run(strategy, model, inputs, emit=seen.append, **how)
    assert torch.equal(ids, model.generate(**inputs, max_new_tokens=12, **how)) and torch.equal(torch.stack(seen, 1), ids[:, 7:])


@pytest.mark.parametrize("slug", ["icd", "vcd"])
def test_a_static_cache_and_compiled_steps_change_nothing(slug):
    family = family_of(slug)
    model, inputs = tiny(family), prompts(family)
    everywhere = CompileConfig(backend="eager", fullgraph=False, mode=None)
    everywhere._compile_all_devices = True                              # `generate` compiles on GPUs only
    how = {"do_sample": False, "cache_implementation": "static", "new": 6}
    wanted = run(made(slug), model, inputs, do_sample=False, new=6)
    assert torch.equal(run(made(slug), model, inputs, **how), wanted) and not hasattr(model, "_compiled_call")
    assert torch.equal(run(made(slug), model, inputs, compile_config=everywhere, **how), wanted)
    assert hasattr(model, "_compiled_call")


def test_the_two_forms_of_contrastive_decoding():
    ze, za = torch.tensor([[2.0, 1.5, -9.0]]), torch.tensor([[3.0, 0.0, -30.0]])
    scaled = made("contrastive_decoding", c=0.5).combine([ze, za], 0)
    torch.testing.assert_close(scaled[0, :2], torch.tensor([1.5 * 2 - 0.5 * 3, 1.5 * 1.5]))
    difference = made("contrastive_decoding", form="difference", c=1.0, tau=0.5).combine([ze, za], 0)
    torch.testing.assert_close(difference[0, :2], torch.tensor([2 - 2 * 3.0, 1.5]))
    assert scaled[0, 2] == difference[0, 2] == -torch.inf and scaled.argmax() == 1      # the head keeps 2 out: its ratio is best
