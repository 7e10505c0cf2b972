"""Ridge, logistic and few-shot probes against scikit-learn, brute force and their own words."""

from __future__ import annotations

import time
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from notan.errors import NotanError
from notan.probes.fewshot import few_shot, label_curve, per_class, some
from notan.probes.logistic import logistic
from notan.probes.protocol import Protocol, rank, same
from notan.probes.ridge import GRID, fit, ridge, scores


@cache
def digits():
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = torch.from_numpy(x[order]).float(), torch.from_numpy(y[order])
    return x[:1000], y[:1000], x[1000:], y[1000:]


def made_up(n=40, d=6, classes=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % classes
    return torch.randn(n, d, generator=g, dtype=torch.float64) + y.unsqueeze(1), y


def test_ridge_agrees_with_sklearn():
    from sklearn.linear_model import RidgeClassifier
    from sklearn.preprocessing import StandardScaler

    train_x, train_y, test_x, test_y = digits()
    ours = ridge(train_x, train_y, test_x, test_y)
    scaler = StandardScaler().fit(train_x.double().numpy())
    theirs = RidgeClassifier(alpha=ours["lambda"] * len(train_x)).fit(
        scaler.transform(train_x.double().numpy()), train_y
    )
    assert ours["accuracy"] == pytest.approx(theirs.score(scaler.transform(test_x.double().numpy()), test_y), abs=1e-12)
    assert ours["accuracy"] > 0.9 and ours["n"] == 1000


def test_ridge_scores_are_sklearns_ridge():
    from sklearn.linear_model import Ridge

    x, y = made_up()
    targets = torch.nn.functional.one_hot(y).double()
    ours = fit(x, targets)
    z = ((x - x.mean(0)) / x.std(0, correction=0)).numpy()
    theirs = Ridge(alpha=ours.penalty * len(x)).fit(z, targets.numpy())
    np.testing.assert_allclose(scores(ours, x).numpy(), theirs.predict(z), atol=1e-10)


@pytest.mark.parametrize("shape", [(40, 6), (20, 50), (30, 30)])
def test_leave_one_out_equals_brute_force(shape):
    """The closed form against n refits without row i, features standardised once; tall, wide and square."""
    x, y = made_up(*shape)
    targets = torch.nn.functional.one_hot(y).double()
    ours = fit(x, targets).errors
    z = (x - x.mean(0)) / x.std(0, correction=0)
    for at, penalty in enumerate(GRID):
        if penalty < 1e-5:
            continue
        total = 0.0
        for i in range(len(x)):
            kept = torch.arange(len(x)) != i
            a, b = z[kept], targets[kept]
            ones = torch.cat([a, torch.ones(len(a), 1, dtype=a.dtype)], 1)
            weight = torch.eye(ones.shape[1], dtype=a.dtype) * penalty * len(x)
            weight[-1, -1] = 0
            w = torch.linalg.solve(ones.T @ ones + weight, ones.T @ b)
            total += float((targets[i] - torch.cat([z[i], torch.ones(1, dtype=a.dtype)]) @ w).square().sum())
        assert float(ours[at]) == pytest.approx(total / targets.numel(), rel=1e-5)


def test_penalty_comes_from_the_training_rows_only():
    train_x, train_y, test_x, test_y = digits()
    a, b = ridge(train_x, train_y, test_x, test_y), ridge(train_x, train_y, test_x[:5] * 100, test_y[:5])
    assert a["lambda"] == b["lambda"]


@settings(deadline=None, max_examples=20)
@given(scale=st.floats(1e-3, 1e3), shift=st.floats(-10, 10))
def test_ridge_ignores_scale_and_shift_of_features(scale, shift):
    x, y = made_up(60)
    plain, moved = (
        ridge(x[:40], y[:40], x[40:], y[40:]),
        ridge(x[:40] * scale + shift, y[:40], x[40:] * scale + shift, y[40:]),
    )
    assert plain["accuracy"] == moved["accuracy"] and plain["lambda"] == moved["lambda"]


def test_collapsed_features_give_chance():
    """Features constant up to float32 rounding must not be blown up by standardisation."""
    y = torch.arange(200) % 4
    x = 3 + torch.randn(200, 8) * 1e-7
    assert ridge(x[:100], y[:100], x[100:], y[100:])["accuracy"] == pytest.approx(0.25)


def test_ridge_is_fast():
    x, y = torch.randn(10_000, 192), torch.arange(10_000) % 10
    best = []
    for _ in range(3):
        start = time.perf_counter()
        ridge(x, y, x, y)
        best.append(time.perf_counter() - start)
    assert min(best) < 2  # 0.2 s on a free core


def test_more_features_than_rows():
    g = torch.Generator().manual_seed(1)
    y = torch.arange(60) % 3
    x = torch.randn(60, 500, generator=g) + 0.7 * torch.randn(3, 500, generator=g)[y]
    assert ridge(x[:30], y[:30], x[30:], y[30:])["accuracy"] > 0.9


@pytest.mark.parametrize("probe", [ridge, logistic])
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda x, y: (x, y * 0), "all 40 training labels are class 0"),
        (
            lambda x, y: (x.index_fill(0, torch.tensor([3]), torch.nan), y),
            "1 of 40 rows are NaN or infinite (first: row 3)",
        ),
        (lambda x, y: (x, y - 1), "labels are negative"),
        (lambda x, y: (x[:0], y[:0]), "no training rows"),
        (lambda x, y: (x[:7], y), "(7, 6)"),
    ],
)
def test_bad_input_is_named(probe, spoil, words):
    x, y = made_up()
    with pytest.raises(NotanError) as e:
        probe(*spoil(x, y), x, y)
    assert words in str(e.value)


def test_nan_in_the_test_rows_is_named():
    x, y = made_up()
    with pytest.raises(NotanError, match="test features of 40 of 40"):
        ridge(x, y, x * torch.nan, y)


def test_a_class_unseen_in_training_counts_as_wrong():
    x, y = made_up(60)
    seen = y[:40] < 2
    out = ridge(x[:40][seen], y[:40][seen], x[40:], y[40:])
    assert 0 < out["accuracy"] <= float((y[40:] < 2).double().mean())


def test_balanced_accuracy_averages_classes():
    x = torch.tensor([[0.0], [1.0]] * 20)
    y = torch.tensor([0, 1] * 20)
    out = ridge(x, y, torch.zeros(10, 1), torch.tensor([0] * 8 + [1] * 2))
    assert (out["accuracy"], out["balanced"]) == (pytest.approx(0.8), pytest.approx(0.5))


def test_logistic_agrees_with_sklearn_on_digits():
    from sklearn.linear_model import LogisticRegression

    train_x, train_y, test_x, test_y = (t[:300] for t in digits())
    out = logistic(train_x, train_y, test_x, test_y)
    mean, std = train_x.double().mean(0), train_x.double().std(0, correction=0)
    std[std == 0] = torch.inf
    model = LogisticRegression(C=out["C"], max_iter=2000).fit((train_x.double() - mean) / std, train_y)
    assert out["accuracy"] == pytest.approx(model.score((test_x.double() - mean) / std, test_y), abs=0.011)
    assert "held" in str(out["protocol"]) or "fifth" in str(out["protocol"])


def test_logistic_with_singletons():
    x, y = made_up(40)
    y = y.clone()
    y[0] = 7
    assert logistic(x, y, x, y)["accuracy"] > 0.5


# ---------------------------------------------------------------------------------------------------------- few labels

labels = st.lists(st.integers(0, 3), min_size=12, max_size=60).map(np.array)


@settings(deadline=None, max_examples=50)
@given(y=labels, seed=st.integers(0, 2**31), draw=st.integers(0, 5))
def test_draws_are_exact_keyed_and_nested(y, seed, draw):
    most = min(np.bincount(y)[np.unique(y)])
    large = per_class(y, most, seed=seed, draw=draw)
    assert len(set(large)) == len(large) and (np.bincount(y[large])[np.unique(y)] == most).all()
    small = per_class(y, max(1, most - 1), seed=seed, draw=draw)
    assert set(small) <= set(large)
    np.testing.assert_array_equal(large, per_class(y, most, seed=seed, draw=draw))
    assert set(some(y, 5, seed=seed, draw=draw)) <= set(some(y, 9, seed=seed, draw=draw))


def test_draws_differ():
    y = np.arange(1000) % 10
    a, b, c = per_class(y, 5, seed=0, draw=0), per_class(y, 5, seed=0, draw=1), per_class(y, 5, seed=1, draw=0)
    assert set(a) != set(b) and set(a) != set(c)


def test_too_few_labels_name_the_class():
    with pytest.raises(NotanError, match=r"class 2 has 1 labelled rows\. Wanted: 10 per class"):
        per_class(np.array([0] * 20 + [1] * 20 + [2]), 10, seed=0)
    with pytest.raises(NotanError, match="50 labels were asked of 3 rows"):
        some(np.arange(3), 50, seed=0)


def test_few_shot_is_the_mean_of_its_draws():
    data = digits()
    out = few_shot(*data, n=10, draws=3, seed=4)
    index = torch.from_numpy(per_class(data[1].numpy(), 10, seed=4, draw=1))
    assert out["draws"][1] == ridge(data[0][index], data[1][index], *data[2:])["accuracy"]
    assert out["accuracy"] == pytest.approx(np.mean(out["draws"])) and out["n"] == 100
    assert "10 labels per class, mean of 3 draws keyed by the seed" in str(out["protocol"])


def test_label_curve_rises_and_leaves_out_what_is_not_there():
    curve = label_curve(*digits(), sizes=(50, 300, 1000, 5000))
    assert list(curve) == [50, 300, 1000] and len(curve[1000]["draws"]) == 1
    assert curve[50]["accuracy"] < curve[300]["accuracy"] < curve[1000]["accuracy"]


# ------------------------------------------------------------------------------------------------------------ protocol


def test_a_protocol_prints_itself():
    p = Protocol("k-NN on cosine", "the test split", 10_000, 2_000, 20, (0, 1), "raw features")
    assert str(p) == (
        "k-NN on cosine (k=20), fitted on 10,000 labelled rows, scored on 2,000 rows of the test split, "
        "seeds 0, 1; raw features."
    )


def test_different_protocols_refuse_to_be_ranked():
    p, q = Protocol("ridge", "test", 100, 50), Protocol("ridge", "test", 1000, 50)
    assert rank([("a", 0.1, p), ("b", 0.3, p)]) == [("b", 0.3), ("a", 0.1)]
    with pytest.raises(NotanError, match="n_train is 100 in one and 1000 in another"):
        rank([("a", 0.1, p), ("b", 0.3, q)])
    with pytest.raises(NotanError):
        same([])
    with pytest.raises(AttributeError):
        p.k = 3
