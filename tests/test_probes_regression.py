"""The regression probe against scikit-learn and SciPy, its groups, few targets, and `notan probe` and `compare` of targets."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.linear_model import Ridge

from notan import cli
from notan.errors import NotanError
from notan.probes.features import numbers
from notan.probes.fewshot import label_curve
from notan.probes.regression import MANY, errors, fragmentation, ordering, regression, shots, spearman
from notan.runs import study
from notan.runs.probe import probe
from notan.runs.train import train


def made(n=80, m=40, noise=0.5, seed=0):
    g = torch.Generator().manual_seed(seed)
    x, xt = (torch.randn(k, 6, generator=g) * torch.tensor([1, 10, 0.1, 1, 1, 1]) + 3 for k in (n, m))
    w = torch.tensor([1.0, 0.2, 5, 0, 0, -1])
    return x, x @ w + noise * torch.randn(n, generator=g), xt, xt @ w + noise * torch.randn(m, generator=g)


def test_it_is_ridge_and_its_errors_are_the_usual_ones():
    x, y, xt, yt = made()
    found = regression(x, y, xt, yt)
    mean, std = x.mean(0), x.std(0, correction=0)
    theirs = Ridge(alpha=found["lambda"] * len(x)).fit((x - mean) / std, y).predict((xt - mean) / std)
    theirs, truth = np.clip(theirs, float(y.min()), float(y.max())), yt.numpy()
    error = theirs - truth
    assert found["mae"] == pytest.approx(np.abs(error).mean(), rel=1e-4)
    assert found["rmse"] == pytest.approx(np.sqrt((error**2).mean()), rel=1e-4)
    assert found["r2"] == pytest.approx(1 - (error**2).sum() / ((truth - truth.mean()) ** 2).sum(), rel=1e-4)
    assert found["gm"] == pytest.approx(stats.gmean(np.abs(error)), rel=1e-3)
    assert found["spearman"] == pytest.approx(stats.spearmanr(theirs, truth).statistic, abs=1e-3)
    assert "leave-one-out" in str(found["protocol"]) and found["n"] == 80


def test_units_do_not_matter_and_a_rare_feature_does_no_harm():
    x, y, xt, yt = made()
    a, b = regression(x, y, xt, yt), regression(x * 1000 - 5, 3 * y + 100, xt * 1000 - 5, 3 * yt + 100)
    assert b["mae"] == pytest.approx(3 * a["mae"], rel=1e-3) and b["r2"] == pytest.approx(a["r2"], rel=1e-3)
    rare, rare_test = torch.zeros(80, 1), torch.zeros(40, 1)
    rare[3], rare_test[5] = 1e-3, 1e6
    found = regression(torch.cat([x, rare], 1), y, torch.cat([xt, rare_test], 1), yt)
    assert found["r2"] > 0                                              # one row of 40 is wrong, by no more than the range


def test_rank_correlation_is_scipys():
    g = torch.Generator().manual_seed(0)
    a, b = torch.randint(0, 5, (40,), generator=g).double(), torch.randn(40, generator=g)
    assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)
    assert spearman(a, torch.ones(40)) == 0.0
    assert errors(a, torch.ones(40))["r2"] != errors(a, torch.ones(40))["r2"]        # NaN: there is nothing to explain


def test_groups_are_by_how_many_training_rows_are_near():
    train_y = torch.cat([torch.linspace(0, 10, 900), torch.linspace(10, 99, 100), torch.tensor([100.0])])
    found = shots(train_y, torch.tensor([5.0, 50.0, 99.9, 100.0]))
    assert found.tolist() == [2, 0, 0, 0] and MANY < 1
    x, xt = train_y[:, None], torch.tensor([[5.0], [6.0], [50.0]])
    groups = regression(x, train_y, xt, xt[:, 0])["groups"]
    assert {k: v["n"] for k, v in groups.items()} == {"few": 1, "many": 2}
    even = torch.arange(100.0)
    assert "groups" not in regression(even[:, None], even, even[:, None], even)


def test_order_and_fragments():
    y = torch.arange(30.0)
    line = torch.stack([y, 2 * y], 1)
    assert ordering(line, y) == pytest.approx(1.0) and fragmentation(line, y, k=2) < 0.2
    scattered = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    assert abs(ordering(scattered, y)) < 0.3 and fragmentation(scattered, y) == pytest.approx(1.0, abs=0.25)
    assert ordering(torch.ones(30, 2), y) == 0.0
    d = torch.pdist(scattered.double())
    i, j = torch.triu_indices(30, 30, 1)
    assert ordering(scattered, y) == pytest.approx(stats.spearmanr(d, (y[i] - y[j]).abs()).statistic)
    with pytest.raises(NotanError, match="5 neighbours of 3 rows"):
        fragmentation(scattered[:3], y[:3])


def test_few_targets():
    x = made(n=300)
    curve = label_curve(*x, sizes=(20, 100, 300), probe=regression, metric="mae")
    assert curve[20]["mae"] > curve[300]["mae"] and len(curve[100]["draws"]) == 3


def test_bad_input_is_named():
    x, y, xt, yt = made()
    with pytest.raises(NotanError, match="all 80 training targets are 1"):
        regression(x, torch.ones(80), xt, yt)
    with pytest.raises(NotanError, match="training targets of 1 of 80 rows are NaN"):
        regression(x, y.index_fill(0, torch.tensor([3]), torch.nan), xt, yt)
    with pytest.raises(NotanError, match="test features are"):
        regression(x, y, xt, yt[:-1])
    with pytest.raises(NotanError, match="no test rows"):
        regression(x, y, xt[:0], yt[:0])


def test_raw_numbers():
    batch = {"features": torch.arange(6).view(2, 3)}
    assert numbers(batch).dtype == torch.float32 and torch.equal(numbers(batch), batch["features"].float())
    series = {"series": torch.tensor([[[1.0], [3.0], [99.0]], [[5.0], [0.0], [0.0]]]), "length": torch.tensor([2, 1])}
    assert numbers(series).tolist() == [[2.0, 1.0], [5.0, 0.0]]


# ---------------------------------------------------------------------------------------------------------- through runs

@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "r"
    return train("supervised", "diabetes", out=out, steps=40, batch=32, recipe="table", threads=1)


def test_probe_of_a_run_and_of_its_encoder(run, capsys):
    found = probe(run.path)
    assert {"regression", "100 targets", "300 targets"} <= set(found) and found["regression"]["r2"] > 0
    assert probe(run.path / "encoder", "diabetes", protocols=["regression"])["regression"] == found["regression"]
    assert cli.main(["probe", str(run.path), "--protocol", "regression"]) == 0
    said = capsys.readouterr().out
    assert "MAE" in said and "Spearman" in said and "order of" in said.replace("\n", " ")
    with pytest.raises(NotanError, match="no labels to measure with"):
        probe(run.path, protocols=["ridge"])
    with pytest.raises(NotanError, match="no targets to measure with"):
        probe(run.path, "digits", protocols=["regression"])
    assert any("probe_r2" in r for r in run.metrics())


def test_compare_of_a_table_with_targets(tmp_path):
    out = tmp_path / "c"
    assert cli.main(["compare", "supremix", "--data", "diabetes", "--recipe", "table", "--steps", "3", "--batch", "32", "--seeds",
                     "1", "--threads", "1", "--out", str(out)]) == 0
    found = json.loads((out / "study.json").read_text())
    assert [r["arm"] for r in found["rows"]] == ["raw numbers", "supremix", "supervised", "random weights (table)"]
    assert found["metrics"] == ["R², 354 targets", "R², 100 targets", "Spearman, 354 targets"]
    assert len(found["data"]["classes"]) == 5 and found["data"]["classes"][0].startswith("up to")
    page = (out / "report.html").read_text()
    assert "R² minus that of" in page and "R² against the number of labels" in page


def test_classes_of_targets_are_fifths():
    y = torch.arange(100.0)
    rows = study.Rowset(np.arange(100), np.arange(100), y, y)
    assert torch.bincount(study.classed(rows).test_y).tolist() == [20] * 5
    labelled = study.Rowset(np.arange(3), np.arange(3), torch.arange(3), torch.arange(3))
    assert study.classed(labelled) is labelled
