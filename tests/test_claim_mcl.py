"""MCL's claim: the tint, the shared first stage, what the verdicts need."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from notan.claims import mcl


def values(**accuracy):
    """Three seeds; every arm at 0.5 unless named."""
    arms = {arm: {"accuracy": 0.5, "hue": 0.99, "last stage": 0.5, "purity": 0.8, "knn": 0.5} for arm in mcl.CLAIM["arms"]}
    for arm, row in accuracy.items():
        arms[arm.replace("_", " ")] |= row
    return {arm: {seed: {k: v + 1e-3 * seed for k, v in row.items()} for seed in range(3)} for arm, row in arms.items()}


def test_the_tint_is_of_the_row_and_the_same_in_both_splits_sizes():
    (train, hue), (test, _) = mcl.tinted(True)
    image = train.take(np.arange(50))["image"]
    assert image.shape[1:] == (3, 28, 28) and len(test) == 100 and len(set(hue.tolist())) == mcl.HUES
    rgb = image.float().amax((2, 3))                                    # the brightest pixel has the tint
    for h in set(hue[:50].tolist()):
        shares = (rgb / rgb.amax(1, keepdim=True))[hue[:50] == h]
        assert (shares - shares[0]).abs().max() < 0.02


def test_purity():
    codes, hue = torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([3, 3, 4, 5, 5, 5])
    assert mcl.purity(codes, hue) == pytest.approx(5 / 6)


def test_arms_of_a_seed_share_the_first_stage():
    from notan.nets.build import build_encoder

    state = mcl.first_stage(0, True)
    info = mcl.DataInfo("tinted", 320, ("image", "label"), 28, 3, (0.2,) * 3, (0.3,) * 3)
    two = mcl.MCL(build_encoder(mcl.ENCODER, info), data=info, base=mcl.BASE, extra=1, clusters=10)
    assert state.keys() <= two.state_dict().keys() and any(k.startswith("stages.0.head") for k in state)


def test_verdicts():
    good = {"accuracy": 0.6, "last stage": 0.58}
    assert mcl.judge(values(mcl=good))[0] == "confirmed"
    assert mcl.judge(values(mcl={**good, "purity": 0.5}))[0] == "open"
    assert mcl.judge(values(mcl={**good, "hue": 0.9}))[0] == "open"
    assert mcl.judge(values(mcl={**good, "last stage": 0.4}))[0] == "open"
    assert mcl.judge(values(mcl=good, shuffled={"accuracy": 0.6}))[0] == "refuted"
    assert mcl.judge(values(mcl=good, two_seeds={"accuracy": 0.61}))[0] == "refuted"
