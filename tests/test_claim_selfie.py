"""Selfie's claim: the rule that judges it, and what its arms share."""

from __future__ import annotations

import ast

import numpy as np
import pytest
import torch

from notan import catalogue
from notan.claims import selfie
from notan.data import open_data
from notan.methods._progress import Progress


def values(few: tuple[float, float], full: tuple[float, float], jigsaw: float) -> dict:
    """Two seeds; selfie's gains at 5% and at all labels, with scratch varying between them."""
    arms = {arm: {s: {"accuracy 5%": 0.7 + 0.05 * s, "accuracy 100%": 0.8, "jigsaw": 0.4, "rate": 0.1} for s in (0, 1)}
            for arm in selfie.CLAIM["arms"]}
    for s in (0, 1):
        arms["selfie"][s] = {"accuracy 5%": 0.7 + 0.05 * s + few[s], "accuracy 100%": 0.8 + full[s],
                             "jigsaw": jigsaw, "rate": 0.3}
    return arms


@pytest.mark.parametrize(("few", "full", "jigsaw", "verdict"), [
    ((0.06, 0.0599), (0.01, 0.02), 0.6, "confirmed"),                   # sd 0.0499 after, 0.05 before
    ((0.06, 0.0601), (0.01, 0.02), 0.6, "open"),                        # varies more
    ((0.06, 0.0599), (0.07, 0.08), 0.6, "open"),                        # the gain grows with labels
    ((0.09, 0.01), (0.0, 0.0), 0.6, "open"),                            # the interval holds 0
    ((0.06, 0.0599), (0.01, 0.02), 0.33, "open"),
    ((0.06, 0.0599), (0.01, 0.02), 0.26, "refuted"),
    ((0.02, -0.03), (0.0, 0.0), 0.6, "refuted"),
])
def test_the_rule(few, full, jigsaw, verdict):
    found, sentence = selfie.judge(values(few, full, jigsaw))
    assert found == verdict and "5%" in sentence and "selfie 0.3 (end of the grid), token 0.1, " in sentence


def test_the_claim_is_a_literal():
    tree = ast.parse(catalogue.claims()["selfie"].read_text())
    claim = next(n.value for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == "CLAIM")
    assert ast.literal_eval(claim) == selfie.CLAIM


def test_few_labels_are_balanced():
    labels = np.repeat(np.arange(4), [9, 3, 7, 5])
    index = selfie._few(labels, 3)
    assert np.bincount(labels[index]).tolist() == [3, 3, 3, 3] and (np.diff(index) > 0).all()


def test_every_tap_of_the_tower_learns_from_patches_of_the_claims_size():
    """Patches that shrink to one cell would leave the borders of the later kernels untrained."""
    data = open_data("digits")
    spec = {**selfie.TOWER, "last_group": 3, "image_size": 28}
    method = selfie.built(0, lambda: selfie.Selfie(selfie.build_encoder(spec, data.info), **selfie.RECIPES["small"]["method"]))
    g = torch.Generator().manual_seed(0)
    batch = {"image": torch.randint(256, (16, 1, 28, 28), dtype=torch.uint8, generator=g), "key": torch.arange(16)}
    method.loss(batch, Progress())["loss"].backward()
    for name, p in method.encoder.named_parameters():
        if p.ndim == 4:
            assert (p.grad.abs().amax((0, 1)) > 0).all(), name


def test_arms_differ_only_in_the_first_three_groups():
    data = open_data("digits")
    rows = data.train.select(np.arange(200))
    weights = {arm: selfie.pretrained(arm, 0, data, rows, True)[0].state_dict() for arm in ("scratch", "selfie", "frozen")}
    for name, w in weights["scratch"].items():
        fresh = name.startswith(("layer4", "bn_last"))
        for arm in ("selfie", "frozen"):
            if fresh:
                assert torch.equal(weights[arm][name], w), name
            elif w.ndim == 4:
                assert not torch.equal(weights[arm][name], w), name
