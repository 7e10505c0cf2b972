"""Measures of captions: numbers by hand, and those of COCO's own code."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from notan.errors import NotanError
from notan.probes.captions import bleu, caption_scores, cider_d, rouge_l, words_of

SAID = ["two dogs run on the beach", "a red car", "a cat sits"]
TRUTH = [["two dogs run on the sand", "dogs are running at the beach"], ["a blue car parked"],
         ["a cat sits on a mat", "the cat sits down", "a cat"]]


def of(texts):
    return [words_of(t) for t in texts] if isinstance(texts[0], str) else [[words_of(t) for t in every] for every in texts]


def test_words_are_runs_of_letters_and_digits():
    assert words_of("A dog's x-ray, No. 5!") == ("a", "dog", "s", "x", "ray", "no", "5")
    assert words_of("ein Bär_klein") == ("ein", "bär", "klein") and words_of(" ...") == ()


def test_cocos_numbers():
    """Of its released code, on these captions."""
    found = caption_scores(SAID, 6.0, 4, TRUTH)
    assert found["cider"] == pytest.approx(3.070130297608625, abs=1e-12)
    assert found["rouge_l"] == pytest.approx((0.8333333333333334 + 0.5570776255707762 + 1) / 3, abs=1e-12)
    for n, value in enumerate([0.9166666665138891, 0.8443713417125811, 0.7804143326223713, 0.7502761009260188], start=1):
        assert bleu(of(SAID), of(TRUTH), n) == pytest.approx(value, abs=1e-8)                   # it adds 1e-9 here and there
    assert found["bleu4"] == bleu(of(SAID), of(TRUTH)) and found["exact"] == 0 and found["n"] == 3
    assert found["ce"] == 1.5 and found["perplexity"] == pytest.approx(math.exp(1.5))


def test_bleu_by_hand():
    """Papineni's own example: seven times `the` counts twice; and a short caption pays."""
    assert bleu(of(["the the the the the the the"]), of([["the cat is on the mat", "there is a cat on the mat"]]), 1) == 2 / 7
    assert bleu(of(["a b c"]), of([["a b c d e f"]]), 2) == pytest.approx(math.exp(1 - 6 / 3))
    assert bleu(of(["a b c d"]), of([["a b c d e", "a b c"]]), 1) == 1  # of 5 and 3 words, as near, the shorter counts
    assert bleu(of(["a b c"]), of([["a b c"]])) == 0                    # no 4-grams
    both = bleu(of(["a b", "x y z w"]), of([["a b"], ["x y q q"]]), 2)  # counts are added over pictures, not averaged
    assert both == pytest.approx(math.sqrt(4 / 6 * 2 / 4))


def test_rouge_by_hand():
    """`a b d` in `a b c d`: precision 1, recall 3/4. Over several captions the best of each, of whichever they are."""
    f = (1 + 1.44) * 0.75 / (0.75 + 1.44)
    assert rouge_l(of(["a b d"]), of([["a b c d"]])) == pytest.approx(f)
    assert rouge_l(of(["d b a"]), of([["a b c d"]])) == pytest.approx((1 + 1.44) / 12 / (1 / 4 + 1.44 / 3))
    assert rouge_l(of(["a b d"]), of([["a b c d", "a b"]])) == 1        # precision of the first, recall of the second
    assert rouge_l(of(["x"]), of([["a"]])) == 0 and rouge_l(of([""]), of([["a"]])) == 0


def test_cider_by_hand():
    """Two pictures, one word each: `a` is of both and weighs 0, `x` and `y` weigh log 2."""
    assert cider_d(of(["x", "y"]), of([["x"], ["y"]]), 1) == pytest.approx(10)
    assert cider_d(of(["x", "x"]), of([["x"], ["y"]]), 1) == pytest.approx(5)
    assert cider_d(of(["a x", "a y"]), of([["a x"], ["a y"]]), 1) == pytest.approx(10)          # `a` counts for nothing
    assert cider_d(of(["x x x", "y"]), of([["x"], ["y"]]), 1) == pytest.approx((10 / 3 * math.exp(-4 / 72) + 10) / 2)
    assert cider_d(of(["x", "y"]), of([["x"], ["y"]])) == pytest.approx(10 / 4)                 # no longer n-grams
    assert cider_d(of(["x"]), of([["x"]])) == 0                         # nothing is rare among one
    one, two = (cider_d(of(["x p", "y q"]), of([refs, ["y q"]]), 1) for refs in (["x p"], ["x p", "z r"]))
    assert one == pytest.approx(10) and two == pytest.approx(7.5)       # the mean over a picture's captions


def test_what_is_true_is_best_and_order_matters_where_it_should():
    truth = ["one small dog on the left beside one key", "two large cats at the top beside one bell", "three red fish in a cup"]
    found = caption_scores(truth, 0.0, 1, [[t] for t in truth])
    assert found["bleu4"] == found["rouge_l"] == found["exact"] == found["perplexity"] == 1
    assert found["cider"] == pytest.approx(10)
    turned = [" ".join(reversed(t.split())) for t in truth]
    shorter = [t.rsplit(" ", 1)[0] for t in truth]
    scores = [caption_scores(said, 0.0, 1, [[t] for t in truth]) for said in (truth, shorter, turned)]
    for name in ("bleu4", "rouge_l", "cider"):
        assert all(a[name] > b[name] for a, b in pairwise(scores)), name
    assert caption_scores(["A dog!", "no"], 0.0, 1, [["x", "a dog"], ["yes"]])["exact"] == 0.5


def test_nothing_to_measure_is_refused():
    with pytest.raises(NotanError, match="0 captions for 0 pictures"):
        caption_scores([], 0.0, 1, [])
    with pytest.raises(NotanError, match="2 captions for 1 pictures"):
        caption_scores(["a", "b"], 0.0, 1, [["a"]])
    with pytest.raises(NotanError, match="1 of 2 pictures have no caption"):
        caption_scores(["a", "b"], 0.0, 1, [["a"], []])
