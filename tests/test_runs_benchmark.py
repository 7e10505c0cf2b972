"""A strategy on files of questions: rows of figures that are the measures of its scores, and exact yes and no."""

from __future__ import annotations

import csv
import math

import pytest
import torch
from test_runs_decode import WORDS, saved
from test_strategies import made

from notan.errors import NotanError
from notan.probes import benchmarks
from notan.probes.answers import factor_official, factor_sum, multiple_choice, yes_no_tokens, yes_share
from notan.probes.benchmarks import Choice
from notan.runs.benchmark import factor_rows, means, truthfulqa_rows
from notan.runs.reader import load
from notan.runs.score import answer_scores

ITEMS = [Choice("w1 w2", (" w3 w4", " w5"), (" w6",), 1), Choice("w9", (" w8",), (" w7 w7", " w1 w2 w3", " w2"))]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return load(saved(folder / "large")), load(saved(folder / "small", seed=1))[0]


def scores(strategy, models, item, renormalise):
    (model, tokenizer), amateur = models
    found = answer_scores(strategy, model, tokenizer, item.prompt, [*item.true, *item.false], amateur=amateur, chat=False,
                          renormalise=renormalise)
    return found[: len(item.true)], found[len(item.true):]


def test_rows_are_the_measures_of_the_scores(models):
    (model, tokenizer), amateur = models
    strategy = made("icd", beta=0.0)
    for rows, items in ((truthfulqa_rows, ITEMS), (factor_rows, ITEMS[1:])):
        found = rows(strategy, model, tokenizer, items, amateur=amateur)
        assert len(found) == len(items) and means(found) == {k: sum(r[k] for r in found) / len(found) for k in found[0]}
        for item, row in zip(items, found):
            for again, name in ((False, ""), (True, " renormalised")):
                true, false = scores(strategy, models, item, again)
                wanted = (multiple_choice([sum(s) for s in true], [sum(s) for s in false], item.best) if rows is truthfulqa_rows
                          else {"mean": factor_official(true[0], false), "sum": factor_sum(true[0], false)})
                assert {k: row[k + name] for k in wanted} == pytest.approx({k: float(v) for k, v in wanted.items()})


def test_without_a_contrast_renormalising_changes_nothing(models):
    (model, tokenizer), amateur = models
    for row in truthfulqa_rows(made("icd", c=0.0, beta=0.0), model, tokenizer, ITEMS, amateur=amateur):
        for name in ("MC1", "MC2", "MC3"):
            assert row[name] == pytest.approx(row[f"{name} renormalised"], abs=1e-5)


def test_from_a_file_and_with_the_number_of_what_cannot_be_scored(models, tmp_path):
    (model, tokenizer), _ = models
    with (tmp_path / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["Question", "Best Answer", "Correct Answers", "Incorrect Answers"],
                                    ["w1 w2", "w3", "w3; w4", "w5"], ["w6", "w7", "w7", "w8; w9"]])
    items = benchmarks.truthfulqa(tmp_path / "t.csv", "w1 w2 w3")
    assert set(means(truthfulqa_rows(made("dola"), model, tokenizer, items))) >= {"MC1", "MC2 renormalised"}
    with pytest.raises(NotanError, match=r"question 2: .*has no tokens"):
        truthfulqa_rows(made("dola"), model, tokenizer, [items[0], Choice("w1", ("w2",), ("",))])
    with pytest.raises(NotanError, match=r"question 1: .*looking ahead"):
        factor_rows(made("contrastive_search"), model, tokenizer, items)
    with pytest.raises(NotanError, match="no questions"):
        means([])


def test_yes_and_no_exactly():
    p = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.0, 0.0, 0.5, 0.5], [0.6, 0.0, 0.0, 0.4]])
    shares = yes_share(p.log(), [0, 1], [2])
    assert shares[:2].tolist() == pytest.approx([0.5, 0.0]) and float(shares[2]) == 1
    assert yes_share(p.log() + 40, [0, 1], [2])[:2].tolist() == pytest.approx([0.5, 0.0])
    assert math.isnan(float(yes_share(p.log(), [1], [2])[2]))
    sharp = torch.tensor([[-1000.0, -1001.0]])                          # no underflow
    assert float(yes_share(sharp, [0], [1])) == pytest.approx(1 / (1 + math.exp(-1)))


def test_tokens_that_say_yes_and_no(tmp_path):
    words = [*WORDS[:3], "Yes", "no", "yes", "NO", *WORDS[7:]]
    _, tokenizer = load(saved(tmp_path / "model", words=words))
    assert yes_no_tokens(tokenizer) == ([3, 5], [4, 6])
    _, plain = load(saved(tmp_path / "plain"))
    with pytest.raises(NotanError, match="no token that says 'yes'"):
        yes_no_tokens(plain)
