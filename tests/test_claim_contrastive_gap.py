"""The contrastive gap's claim: its verdicts, its arithmetic, and what a quick arm measures."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from notan.claims import contrastive_gap as claim
from notan.claims._composites import FACTORS, caption, words


def values(**changed):
    """Five seeds in which everything holds; a change is {metric: value} of an arm, "CUA_128" for "CUA 128"."""
    rows = {arm: {"separability": 1.0, "distance": 0.5, "classes": 0.6, "arithmetic": 0.3, "R@1 to picture": 0.6}
            for arm in claim.CLAIM["arms"]}
    for arm in ("CUA 128", "CUAXU 128"):
        rows[arm] |= {"separability": 0.7, "distance": 0.05, "classes": 0.65}
    rows["CLIP 128 shifted"] |= {"separability": 0.5, "distance": 0.02, "classes": 0.63}
    rows["twins 128"]["separability at start"] = 0.55
    for arm, change in changed.items():
        rows[arm.replace("_", " ")] |= change
    return {arm: {seed: {m: v + 1e-4 * seed * (1 + (m == "classes") * len(arm)) for m, v in row.items()} for seed in range(5)}
            for arm, row in rows.items()}


def test_verdicts():
    assert claim.judge(values())[0] == "confirmed"
    assert claim.judge(values(twins_128={"separability": 0.8}))[0] == "open", "no gap without a second modality"
    assert claim.judge(values(CUAXU_128={"separability": 0.9}))[0] == "open", "one of the two leaves a gap"
    assert claim.judge(values(CUAXU_128={"classes": 0.5}))[0] == "open", "one of the two gains nothing"
    assert claim.judge(values(CUA_128={"classes": 0.5}, CUAXU_128={"classes": 0.5}))[0] == "refuted", "neither gains"
    assert claim.judge(values(CUA_128={"classes": 0.5, "arithmetic": 0.4}))[0] == "confirmed", "arithmetic will do"
    assert claim.judge(values(CLIP_128_shifted={"classes": 0.6 - 1e-3}))[0] == "refuted", "the gap closed, and nothing gained"
    assert claim.judge(values(CLIP_128_shifted={"classes": 0.5, "distance": 0.3}))[0] == "confirmed", "it did not close it"


def space_of(factors, names):
    """A space in which pictures and sentences are the one-hot numbers of some factors."""
    order = list(FACTORS)
    table = {name: torch.eye(len(FACTORS[name]), dtype=torch.float64) for name in names}

    def put(f):
        return torch.nn.functional.normalize(torch.cat([table[name][f[order.index(name)]] for name in names]), dim=0)

    known = {}
    for f in np.ndindex(*[len(v) for v in list(FACTORS.values())[:2]]):
        for g in factors:
            known[caption(words([*f, *g[2:]]))] = put([*f, *g[2:]])
    x = torch.stack([put(f) for f in factors])
    return claim.Space(x, x.clone(), lambda texts: torch.stack([known[t] for t in texts]))


def test_arithmetic_finds_what_differs_in_one_factor_alone():
    factors = np.array([[thing, colour, 0, 0, 0, 15] for thing in range(16) for colour in range(8)])
    assert claim.arithmetic(space_of(factors, ("object", "colour")), factors) == 1.0
    assert claim.arithmetic(space_of(factors, ("colour",)), factors) < 0.2, "a space without objects"


def test_the_gap_of_equal_and_of_opposite_sides():
    x = torch.nn.functional.normalize(torch.randn(60, 8, dtype=torch.float64), dim=1)
    same, apart = claim.gap(claim.Space(x, x, None)), claim.gap(claim.Space(x + 3, x - 3, None))
    assert same["distance"] == 0 and same["R@1 to text"] == 1 and same["separability"] <= 0.5 and apart["separability"] == 1


@pytest.mark.slow
def test_quick_arms_measure_what_the_verdict_needs():
    clip, shifted, twins = (claim.run(arm, 0, True) for arm in ("CLIP 128", "CLIP 128 shifted", "twins 128"))
    assert set(claim.CLAIM["shown"]) <= set(clip) and shifted["distance"] < clip["distance"] / 2
    assert twins["distance at start"] < twins["distance"]
