"""Statistics over seeds, the probes of a comparison, and its table."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from made_up_study import made_up_study

from notan.errors import NotanError
from notan.runs import study as studies
from notan.runs.statistics import beyond, leaders, paired, spread, verdict
from notan.runs.table import count, render_table


def test_paired_is_scipys_interval():
    from scipy.stats import ttest_rel

    a, b = [0.8, 0.83, 0.81, 0.86], [0.79, 0.8, 0.82, 0.8]
    m, low, high = paired(a, b)
    theirs = ttest_rel(a, b).confidence_interval(0.95)
    assert (m, low, high) == pytest.approx((np.mean(a) - np.mean(b), theirs.low, theirs.high))


def test_one_seed_has_no_interval_and_seeds_must_match():
    m, low, high = paired([0.5], [0.25])
    assert m == 0.25 and math.isnan(low) and math.isnan(high) and math.isnan(spread([0.5]))
    with pytest.raises(NotanError, match="2 seeds against the baseline's 3"):
        paired([1.0, 2.0], [1.0, 2.0, 3.0])


def test_only_methods_of_one_encoder_are_ranked():
    study = made_up_study()
    metric = "ridge, 10,000 labels"
    assert leaders(study["rows"], metric) == {"vit 128x4/4": "hpm", "resnet10 32": "selfie"}
    assert leaders(study["rows"], metric, across=True) == {"": "hpm"}
    assert sum(line.startswith("Best") for line in verdict(study)) == 1             # only one encoder has two methods
    assert verdict(study)[-1].startswith("Best on vit 128x4/4: ") and verdict(study, across=True)[-1].startswith("Best: hpm by ")


def test_methods_that_learn_from_labels_are_ranked_by_themselves():
    def row(arm, a, **more):
        return {"arm": arm, "kind": "method", "encoder": "vit", "metrics": {"few": [a, a + 0.01]}, **more}

    rows = [row("simclr", 0.5, labels=False), row("mae", 0.4), row("hydra", 0.9, labels=True), row("supcon", 0.8, labels=True)]
    for across, where in ((False, " on vit"), (True, "")):
        assert set(leaders(rows, "few", across).values()) == {"simclr", "hydra"}
        said = verdict({"rows": rows}, across)
        assert f"Best{where}: simclr by few." in said and f"Best{where} from labels: hydra by few." in said
        assert any(line.startswith("hydra and supcon learned from the labels") for line in said)


def test_the_verdict_says_where_a_method_stands_by_each_metric():
    def row(arm, kind, encoder, a, b):
        return {"arm": arm, "kind": kind, "encoder": encoder, "metrics": {"few": a, "all": b}}

    rows = [row("raw pixels", "pixels", "4 pixels", [0.5, 0.51], [0.7, 0.71]),
            row("m", "method", "vit", [0.6, 0.61], [0.69, 0.73]), row("n", "method", "cnn", [0.4, 0.41], [0.6, 0.61]),
            row("r", "random", "vit", [0.3, 0.31], [0.3, 0.31]), row("s", "random", "cnn", [0.41, 0.4], [0.7, 0.71]),
            row("best", "supervised", "vit", [0.9, 0.9], [0.9, 0.9])]
    assert verdict({"rows": rows}) == [
        "m: above raw pixels by few, level with by all; above random weights by all metrics.",
        "n: below raw pixels by all metrics; level with random weights by few, below by all."]
    one = [{**r, "metrics": {k: v[:1] for k, v in r["metrics"].items()}} for r in rows]
    assert verdict({"rows": one})[0] == "m: above raw pixels by few, below by all; above random weights by all metrics."


def test_what_was_measured_differently_is_not_ranked():
    study = made_up_study()
    study["rows"][2]["metrics"] = {"ridge, 500 labels": [0.9, 0.9, 0.9]}
    with pytest.raises(NotanError, match="hpm was measured by ridge, 500 labels"):
        verdict(study)


@pytest.mark.parametrize("width", [80, 200])
@pytest.mark.parametrize("seeds", [1, 3])
def test_the_table_has_every_arm(seeds, width):
    from rich.console import Console

    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    study = made_up_study(seeds)
    study["rows"][0]["arm"] = study["baseline"] = "sim[bold]clr"  # markup in a name is text
    console.print(render_table(study))
    text = console.export_text()
    words = [word for r in study["rows"] for word in r["arm"].split()]
    assert all(word in text for word in words) and "0.8" in text and "…" not in text
    assert max(map(len, text.splitlines())) <= width
    assert ("One seed" in text) == (seeds == 1) and ("95 %" in text) == (seeds > 1)
    assert [count(n) for n in (0, 950, 12_345, 811_000_000)] == ["–", "950", "12 k", "811.00 M"]


class Rows:
    columns = ("image", "label")

    def __init__(self, n, seed):
        g = torch.Generator().manual_seed(seed)
        self.label = torch.arange(n) % 4
        self.image = (torch.rand(n, 1, 6, 6, generator=g) * 120).to(torch.uint8)
        self.image[torch.arange(n), 0, self.label] += 60                    # a bright line in the row of its class

    def __len__(self):
        return len(self.label)

    def take(self, index):
        index = torch.from_numpy(np.asarray(index))
        return {"image": self.image[index], "label": self.label[index], "row": index}

    def values(self, column):
        return self.label.numpy()


class Data:
    train, test = Rows(1500, 0), Rows(300, 1)


def test_a_comparison_measures_the_same_rows_and_labels():
    from notan.probes.features import pixels

    rows = studies.rowset(Data, 1200)
    assert len(rows.train) == len(set(rows.train)) == 1200 and len(rows.test) == 300
    np.testing.assert_array_equal(rows.train, studies.rowset(Data, 1200).train)
    x = studies.embed(pixels, Data, rows)
    out = studies.probe(*x, rows, seed=0)
    assert list(out["values"]) == ["ridge, 1,200 labels", "ridge, 1,000 labels", "ridge, 10 per class", "k-NN, 1,200 labels"]
    assert list(out["fractions"]) == [100, 300, 1000, 1200] and out["fractions"][1200] == out["values"]["ridge, 1,200 labels"]
    assert out == studies.probe(*x, rows, seed=0) != studies.probe(*x, rows, seed=1)
    assert all(v > 0.5 for v in out["values"].values()) and set(out["protocols"]) == set(out["values"])
    assert out["protocols"] == studies.probe(*x, rows, seed=1)["protocols"]  # so that arms and seeds can be ranked


def test_maps_and_neighbours():
    rows = studies.rowset(Data, 400)
    train_x, test_x = studies.embed(lambda b: b["image"].flatten(1).float(), Data, rows)
    found = studies.flat_map(test_x, rows)
    assert found["xy"].shape == (300, 2) and np.isfinite(found["xy"]).all() and len(studies.thumbs(Data, rows)) == 300
    assert studies.flat_map(test_x[:5, :1], rows._replace(test_y=rows.test_y[:5]))["xy"].shape == (5, 2)
    near = studies.neighbours(train_x, test_x, Data, rows)
    assert near["query"].shape == (4, 1, 6, 6) and near["hits"].shape == (4, 8, 1, 6, 6)
    assert torch.equal(near["right"], near["hit_label"] == near["query_label"].unsqueeze(1))
    assert near["query_label"].tolist() == [0, 1, 2, 3]


def test_no_labels_is_said():
    class Bare(Rows):
        columns = ("image",)

    class Unlabelled:
        train = test = Bare(10, 0)

    with pytest.raises(NotanError, match="no labels to measure with; it has image"):
        studies.rowset(Unlabelled)


def test_beyond_the_spread_needs_every_seed_and_both_spreads():
    assert beyond([0.90, 0.91], [0.80, 0.81])
    assert not beyond([0.90, 0.80], [0.79, 0.78])                       # one seed is near
    assert not beyond([0.90, 0.91], [0.80, 0.905])
    assert not beyond([0.9], [0.1])                                     # one seed has no spread
