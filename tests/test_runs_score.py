"""Scores of given answers: log-probabilities without a contrast, their differences with one, and what follows of it."""

from __future__ import annotations

import pytest
import torch
from test_runs_decode import saved
from test_strategies import made

from notan import catalogue
from notan.errors import NotanError
from notan.probes.answers import multiple_choice
from notan.runs.reader import load
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
