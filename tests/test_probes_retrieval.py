"""Retrieval and zero-shot: by hand, by scikit-learn, with ties, and what must be refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from notan.errors import NotanError
from notan.probes.retrieval import retrieval
from notan.probes.zero_shot import class_features, zero_shot

OWN = torch.arange(6)[:, None].expand(-1, 2)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_by_hand():
    gallery = torch.eye(4)
    queries = torch.tensor([[1.0, 0.5, 0.2, 0.1], [1.0, 0.5, 0.2, 0.1]])
    found = retrieval(queries, gallery, torch.tensor([[0, 1], [0, 3], [1, 0]]))
    assert (found["r1"], found["r5"]) == (0.5, 1.0)                     # ranks 2 and 4 of the first, 1 of the second
    assert found["map"] == pytest.approx(((1 / 2 + 2 / 4) / 2 + 1) / 2)
    assert found["minp"] == pytest.approx((2 / 4 + 1) / 2) and found["chance"] == pytest.approx((2 / 4 + 1 / 4) / 2)
    assert found["n"] == 2 and "cosine" in str(found["protocol"])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), n=st.integers(1, 7), m=st.integers(2, 9))
def test_the_average_precision_is_scikit_learns(seed, n, m):
    queries, gallery = randn(n, 5, seed=seed), randn(m, 5, seed=seed + 1)
    own = torch.rand(n, m, generator=torch.Generator().manual_seed(seed)) < 0.4
    own[:, seed % m] = True
    found = retrieval(queries, gallery, own.nonzero())
    s = torch.nn.functional.normalize(queries.double(), dim=1) @ torch.nn.functional.normalize(gallery.double(), dim=1).T
    assert found["map"] == pytest.approx(np.mean([average_precision_score(own[i], s[i]) for i in range(n)]))


def test_features_that_are_all_equal_find_nothing():
    found = retrieval(torch.ones(6, 3), torch.ones(6, 3), OWN)
    assert found["r1"] == 0 and found["r5"] == 0 and found["median"] == 6


def test_more_queries_than_fit_at_once(monkeypatch):
    from notan.probes import retrieval as module

    q, k, pairs = randn(40, 6), randn(40, 6, seed=1), torch.arange(40)[:, None].expand(-1, 2)
    whole = retrieval(q, k, pairs)
    monkeypatch.setattr(module, "ROWS", 7)
    assert retrieval(q, k, pairs) == whole


def test_a_query_without_an_answer_and_features_that_are_not_finite_are_refused():
    with pytest.raises(NotanError, match="1 of 7 queries"):
        retrieval(randn(7, 3), randn(6, 3), OWN)
    bad = randn(6, 3)
    bad[2, 1] = torch.nan
    with pytest.raises(NotanError, match="gallery features of 1 of 6"):
        retrieval(randn(6, 3), bad, OWN)


def test_zero_shot_takes_the_mean_direction_over_prompts():
    table = {"red": [1.0, 0], "a red": [0, 3.0], "blue": [-1.0, 0], "a blue": [-2.0, 0]}
    classes = class_features(lambda texts: torch.tensor([table[t] for t in texts]), ["red", "blue"], ["{}", "a {}"])
    torch.testing.assert_close(classes, torch.tensor([[0.5**0.5, 0.5**0.5], [-1, 0]], dtype=torch.float64))
    found = zero_shot(torch.tensor([[1.0, 1.0], [-1.0, 0.1], [-1.0, 3.0]]), torch.tensor([0, 1, 1]), classes)
    assert found["accuracy"] == pytest.approx(2 / 3) and found["n"] == 3
    with pytest.raises(NotanError, match="prompt 'a thing'"):
        class_features(lambda texts: torch.zeros(len(texts), 2), ["red"], ["a thing"])
