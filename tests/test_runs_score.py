"""Scores of given answers: log-probabilities without a contrast, their differences with one, and what follows of it."""

from __future__ import annotations

import pytest
import torch
from test_runs_decode import saved
from test_strategies import made
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import MambaConfig, MambaForCausalLM, PreTrainedTokenizerFast

from notan import catalogue
from notan.errors import NotanError
from notan.probes.answers import multiple_choice
from notan.runs.generation import heads_word
from notan.runs.prompts import contexts_of, given_with, rows_of
from notan.runs.reader import layers_of, load
from notan.runs.score import answer_scores

COMBINING = [slug for slug, e in catalogue.strategies().items() if "combine" in e.has and "image" not in e.card["needs"]]
PROMPT, ANSWERS = "w1 w2 w3", ["w4 w5", "w6", "w7 w8 w9"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return load(saved(folder / "large")), load(saved(folder / "small", seed=1))[0]


def log_probabilities(model, tokenizer, answer, prompt=PROMPT):
    before, after = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, answer))
    with torch.no_grad():
        q = model(torch.tensor([before + after])).logits[0, len(before) - 1: -1].float().log_softmax(1)
    return q[torch.arange(len(after)), after]


@pytest.mark.parametrize("slug", COMBINING)
def test_without_a_contrast_they_are_log_probabilities(models, slug):
    (model, tokenizer), amateur = models
    settings = catalogue.strategy(slug).card["off"] | ({"truth": ""} if slug == "lol" else {})
    for renormalise in (False, True):
        found = answer_scores(made(slug, **settings), model, tokenizer, PROMPT, ANSWERS, amateur=amateur, renormalise=renormalise)
        for scores, answer in zip(found, ANSWERS):
            torch.testing.assert_close(torch.tensor(scores), log_probabilities(model, tokenizer, answer), atol=1e-5, rtol=0)


def one_by_one(strategy, reader, amateur, tokenizer, answer):
    """The same scores with nothing shared: prompt and answer read anew, without a cache, and all tokens combined at once."""
    ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
    models, last, early = {"main": reader, "amateur": amateur}, [], []
    contexts = contexts_of(strategy, given_with([PROMPT], None, 0), True)[0]
    for name, model in models.items():
        layers, normed = layers_of(strategy, model)
        said = []
        for c in (c for c in contexts if c.model == name):
            before = rows_of((model, tokenizer), [c], None, len(ids))["input_ids"]
            out = model(torch.cat([before, torch.tensor([ids])], dim=1), use_cache=False, output_hidden_states=True)
            last.append(out.logits[0, -len(ids) - 1: -1])
            said.append(heads_word(model, [out.hidden_states[j][0, -len(ids) - 1: -1] for j in layers], normed))
        early += [z[j] for j in range(len(layers)) for z in said]
    s = strategy.combine([z.float().log_softmax(1) for z in (*last, *early)], 0)
    return s.gather(1, torch.tensor(ids)[:, None])[:, 0].clamp(min=-1000)


@pytest.mark.parametrize("slug", COMBINING)
def test_sharing_the_prompt_changes_nothing_and_each_stream_reads_it_once(models, slug):
    (model, tokenizer), amateur = models
    calls = []
    handles = [m.register_forward_hook(lambda *a: calls.append(1)) for m in (model, amateur)]
    strategy = made(slug)
    found = answer_scores(strategy, model, tokenizer, PROMPT, ANSWERS, amateur=amateur)
    for handle in handles:
        handle.remove()
    contexts = contexts_of(strategy, given_with([PROMPT], None, 0), True)[0]
    assert len(calls) == 2 * len(contexts)                              # the prompt, then all answers
    for scores, answer in zip(found, ANSWERS):
        with torch.no_grad():
            wanted = one_by_one(strategy, model, amateur, tokenizer, answer)
        torch.testing.assert_close(torch.tensor(scores), wanted, atol=1e-5, rtol=0)


def test_company_changes_nothing_whatever_the_layers_are_chosen_by(models):
    (model, tokenizer), _ = models
    for jsd in ("true", "official"):                                    # the official one averages over the rows of a batch
        strategy = made("dola", jsd=jsd, beta=0.0)
        together = answer_scores(strategy, model, tokenizer, PROMPT, ANSWERS)
        for scores, answer in zip(together, ANSWERS):
            assert scores == pytest.approx(answer_scores(strategy, model, tokenizer, PROMPT, [answer])[0], abs=1e-5)


def test_no_space_is_put_before_an_answer(models):
    (model, _), _ = models
    words = ["<s>", "</s>", "<pad>", "▁", "▁a", "▁b", "▁c", "c", "b"]
    inner = Tokenizer(WordLevel({w: i for i, w in enumerate(words)}, unk_token="<s>"))
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])         # as Llama 2's
    inner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(":", "isolated"),
                                                   pre_tokenizers.Split("▁", "merged_with_next")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>")
    assert tokenizer(" b", add_special_tokens=False)["input_ids"] == [3, 5]                 # two spaces
    spaced, close = answer_scores(made("dola", c=0.0, beta=0.0), model, tokenizer, "a:", [" b", "b"])
    with torch.no_grad():
        q = model(torch.tensor([tokenizer("a:", add_special_tokens=False)["input_ids"]])).logits[0, -1].log_softmax(0)
    assert [len(spaced), len(close)] == [1, 1]
    assert [*spaced, *close] == pytest.approx([float(q[5]), float(q[8])], abs=1e-5)


class Growing:
    """A strategy whose contrast grows with the tokens."""

    def contexts(self, main, amateur):
        return []

    def combine(self, z, t):
        return (1 + t) * z[0]


def test_each_token_is_combined_at_its_own_step(models):
    (model, tokenizer), _ = models
    scores = answer_scores(Growing(), model, tokenizer, PROMPT, ["w7 w8 w9"])[0]
    wanted = log_probabilities(model, tokenizer, "w7 w8 w9") * torch.tensor([1, 2, 3])
    torch.testing.assert_close(torch.tensor(scores), wanted, atol=1e-5, rtol=0)


def test_a_model_without_a_cache_that_can_be_repeated_reads_the_prompt_again(models):
    (_, tokenizer), _ = models
    torch.manual_seed(0)
    model = MambaForCausalLM(MambaConfig(vocab_size=61, hidden_size=16, num_hidden_layers=2, state_size=4)).eval()
    found = answer_scores(made("contrastive_decoding", c=0.0, beta=0.0), model, tokenizer, PROMPT, ANSWERS, amateur=model)
    for scores, answer in zip(found, ANSWERS):
        torch.testing.assert_close(torch.tensor(scores), log_probabilities(model, tokenizer, answer), atol=1e-5, rtol=0)


def test_icd_is_the_difference_and_renormalised_it_is_a_distribution(models):
    (model, tokenizer), amateur = models
    found = answer_scores(made("icd", beta=0.0), model, tokenizer, PROMPT, ANSWERS, amateur=amateur)
    for scores, answer in zip(found, ANSWERS):
        wanted = log_probabilities(model, tokenizer, answer) - log_probabilities(amateur, tokenizer, answer)
        torch.testing.assert_close(torch.tensor(scores), wanted, atol=1e-5, rtol=0)
    every = [f"w{i}" for i in range(58)] + ["<s>", "</s>", "<pad>"]
    shares = answer_scores(made("icd", beta=0.0), model, tokenizer, PROMPT, every, amateur=amateur, renormalise=True)
    assert sum(torch.tensor(s).exp().item() for s in shares) == pytest.approx(1, abs=1e-4)


def test_a_copy_that_is_the_model_makes_every_answer_tie(models):
    (model, tokenizer), _ = models
    strategy = made("lol", beta=0.0, truth="")
    scores = [sum(s) for s in answer_scores(strategy, model, tokenizer, PROMPT, ANSWERS, amateur=model)]
    assert max(map(abs, scores)) < 1e-5
    assert multiple_choice([0.0, 0.0], [0.0]) == {"MC1": 0.0, "MC2": pytest.approx(2 / 3), "MC3": 0.0}


def test_tokens_outside_the_head_and_answers_without_tokens(models):
    (model, tokenizer), amateur = models
    found = answer_scores(made("icd", beta=1.0), model, tokenizer, PROMPT, [f"w{i}" for i in range(58)], amateur=amateur)
    assert sum(s[0] == -1000 for s in found) >= 56
    with pytest.raises(NotanError, match="has no tokens"):
        answer_scores(made("icd"), model, tokenizer, PROMPT, [""])
    with pytest.raises(NotanError, match="looking ahead"):
        answer_scores(made("contrastive_search"), model, tokenizer, PROMPT, ANSWERS)
