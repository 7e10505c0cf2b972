"""The temperature claim: its arms are the method's losses, and what the verdicts need."""

from __future__ import annotations

import pytest

from notan.claims import temperature as claim


def values(**changed):
    """Three seeds in which everything holds; a change is (metric, value) of an arm, "hard_1.0" for "hard 1.0"."""
    tau = {arm: float(arm.split()[1]) for arm in claim.CLAIM["arms"] if " " in arm}
    rows = {arm: {"uniformity": -3 + (t if arm.startswith("soft") else 0), "tolerance": 0.2 + 0.3 * t, "accuracy": 0.8}
            for arm, t in tau.items()}
    rows |= {"random": {"uniformity": 0.0, "tolerance": 1.0, "accuracy": 0.7},
             "simple": {"uniformity": -1.0, "tolerance": 0.4, "accuracy": 0.7},
             "hard-simple": {"uniformity": -3.0, "tolerance": 0.2, "accuracy": 0.8}}
    for arm, (metric, value) in changed.items():
        rows[arm.replace("_", " ")][metric] = value
    return {arm: {seed: {m: v + 1e-3 * seed for m, v in row.items()} for seed in range(3)} for arm, row in rows.items()}


def test_verdicts():
    assert claim.judge(values())[0] == "confirmed"
    assert claim.judge(values(**{"hard_1.0": ("uniformity", -2.5)}))[0] == "open", "hard arms that differ"
    assert claim.judge(values(**{"soft_1.0": ("uniformity", -0.5)}))[0] == "open", "another arm is the least uniform"
    assert claim.judge(values(**{"soft_0.07": ("tolerance", 0.31)}))[0] == "open", "one temperature out of order"
    assert claim.judge(values(simple=("accuracy", 0.8)))[0] == "refuted"
    assert claim.judge(values(**{"hard-simple": ("accuracy", 0.7)}))[0] == "refuted"


def test_rank_correlation():
    assert claim.rank_correlation([1.0, 2.0, 5.0]) == pytest.approx(1)
    assert claim.rank_correlation([3.0, 2.0, 1.0]) == pytest.approx(-1)


def test_measures_of_a_quick_arm():
    found = claim.run("hard 0.3", 0, True)
    assert {"uniformity", "tolerance", "separation", "accuracy", "knn"} <= set(found) and found["uniformity"] < 0
