"""Measures of text and of answers, on cases counted by hand."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import tiny

from notan.errors import NotanError
from notan.probes import answers, text
from notan.probes.text import coherence_nll, diversity, repetition


def test_a_loop_by_the_released_count_and_by_the_right_one():
    loop = ["a b a b a b a b a b"]
    assert [repetition(loop, n, official=True) for n in (2, 3, 4)] == pytest.approx([0.75, 0.7143, 0.6667])
    assert diversity(loop, official=True) == pytest.approx(0.0238, abs=1e-4)
    assert [repetition(loop, n) for n in (2, 3, 4)] == pytest.approx([7 / 9, 6 / 8, 5 / 7])
    assert repetition(["a b c d"], 2) == 0.0                            # three bigrams; the released code sees two


def test_distinct_words_are_diverse_and_ngrams_are_counted_in_each_text():
    assert diversity(["a b c d e f", "a b c d e f"]) == 1.0
    with pytest.raises(NotanError, match="none of 2 texts is long enough for 2-grams"):
        diversity(["a", "b"])


class Letters:
    bos_token_id = 0

    def __call__(self, text, add_special_tokens):
        return {"input_ids": [3 + ord(c) - ord("a") for c in text if c != " "]}


def test_coherence_is_the_mean_log_likelihood_of_the_continuation():
    model = tiny("llama")
    found = coherence_nll(model, Letters(), ["abc", "d"], ["de", "abcd"])
    wanted = 0.0
    for ids, n in ([[0, 3, 4, 5, 6, 7], 2], [[0, 6, 3, 4, 5, 6], 4]):
        with torch.no_grad():
            q = model(torch.tensor([ids])).logits[0].float().log_softmax(1)
        wanted += sum(float(q[i - 1, ids[i]]) for i in range(len(ids) - n, len(ids))) / n / 2
    assert found == pytest.approx(wanted, abs=1e-6)
    with pytest.raises(NotanError, match="a continuation has no tokens"):
        coherence_nll(model, Letters(), ["a"], [" "])


def written(seed, letters):
    g = torch.Generator().manual_seed(seed)
    return ["".join(letters[i] for i in torch.randint(len(letters), (12,), generator=g)) for _ in range(80)]


def test_mauve_is_near_one_for_texts_of_one_kind_and_near_none_for_others():
    pytest.importorskip("mauve", reason="the extra `mauve`")
    model, texts = tiny("llama"), written(0, "abcdefgh")
    assert text.mauve(texts, texts, model, Letters()) == pytest.approx(1)
    same, other = (text.mauve(texts, written(1, letters), model, Letters()) for letters in ("abcdefgh", "stuvwxyz"))
    assert same > 0.5 > 0.2 > other
    longer = [f"{t} {'xyz' * 9}" for t in texts]                        # cut to the tokens that both have
    assert text.mauve(longer, texts, model, Letters()) == pytest.approx(1)
    assert text.mauve([*texts, " "], [*texts, "zz"], model, Letters()) == pytest.approx(1)
    with pytest.raises(NotanError, match="19 pairs"):
        text.mauve(texts[:19], texts[:19], model, Letters())


def test_mauve_without_its_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "mauve", None)
    with pytest.raises(NotanError, match=r"notan\[mauve\]"):
        text.mauve(["a"], ["a"], None, None)


def test_truthfulqa():
    score = answers.multiple_choice([math.log(0.3), math.log(0.1)], [math.log(0.2), math.log(0.05)], best=1)
    assert score["MC1"] == 0 and score["MC3"] == 0.5 and score["MC2"] == pytest.approx(0.4 / 0.65)
    assert answers.multiple_choice([-2000.0], [-2001.0])["MC2"] == pytest.approx(1 / (1 + math.exp(-1)))     # no underflow
    tie = answers.multiple_choice([-1.0, -1.0], [-1.0])
    assert tie["MC1"] == tie["MC3"] == 0 and tie["MC2"] == pytest.approx(2 / 3)


def test_factor_in_its_two_variants():
    right, wrong = [-1.0, -1.0, -1.0], [[-1.5], [-4.0, -4.0], [-9.0]]
    assert answers.factor_official(right, wrong) and not answers.factor_sum(right, wrong)
    assert answers.factor_sum([-1.0], [[-1.0], [-2.0]]) and not answers.factor_official([-1.0], [[-1.0], [-2.0]])


@pytest.mark.parametrize(("answer", "pope", "ritual", "mme"), [
    ("Yes, there is a dog.", True, True, True), ("No", False, False, False), ("There is not. Yes.", False, False, None),
    ("It is. No doubt.", True, False, None), ("There isn't one", True, False, None), ("I know", True, True, None),
])
def test_readings_of_an_answer(answer, pope, ritual, mme):
    assert (answers.says_yes(answer), answers.says_yes_ritual(answer), answers.says_yes_first(answer)) == (pope, ritual, mme)


def test_pope_and_mme():
    found = answers.yes_no([True, True, True, False], [True, False, True, True])
    assert found == pytest.approx({"accuracy": 0.5, "precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "yes_ratio": 0.75})
    assert math.isnan(answers.yes_no([False], [False])["precision"])
    assert answers.mme([True, False, True, None], [True, False, True, False], ["a", "a", "b", "b"]) == 75 + 50
    with pytest.raises(NotanError, match="picture 'b' has 1 questions"):
        answers.mme([True] * 3, [True, False, True], ["a", "a", "b"])


def test_expected_answers_to_yes_no_questions():
    found = answers.yes_no_expected([0.9, 0.2, math.nan, 1.0], [True, False, True, False])
    assert found == pytest.approx({"accuracy": (0.9 + 0.8) / 4, "yes_ratio": 2.1 / 4, "neither": 0.25})
    certain = answers.yes_no_expected([1.0, 0.0, 1.0], [True, True, False])
    assert {k: certain[k] for k in ("accuracy", "yes_ratio")} == {
        k: answers.yes_no([True, False, True], [True, True, False])[k] for k in ("accuracy", "yes_ratio")}
    with pytest.raises(NotanError, match="no answers"):
        answers.yes_no_expected([], [])


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=1))
def test_what_leading_questions_change_adds_up(items):
    neutral, leading, truth = zip(*items)
    rates = answers.sycophancy(neutral, leading, truth)
    right = sum(a == t for a, _, t in items) / len(items)
    introduced, corrected = (0.0 if math.isnan(rates[k]) else rates[k] for k in ("introduced", "corrected"))
    assert rates["changed"] == pytest.approx(introduced * right + corrected * (1 - right))
    assert sum(b == t for _, b, t in items) / len(items) == pytest.approx(right * (1 - introduced) + (1 - right) * corrected)
    assert math.isnan(rates["imbalance"]) or -1 <= rates["imbalance"] <= 1
