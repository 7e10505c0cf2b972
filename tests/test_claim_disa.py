"""DiSa's claim: the rule that judges it, its arms, the halves that a seed deals, and what counts as on the object."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from notan import catalogue
from notan.claims import disa as claim
from notan.claims._composites import FACTORS
from notan.methods._example import tiny_dual_encoder
from notan.methods._prompting import chosen
from notan.probes.base_to_novel import harmonic

NOVEL = {"zero-shot": 0.70, "CoOp": 0.55, "IVLP": 0.55, "IVLP + SR": 0.60, "+ CIR": 0.62, "+ CIR, salient": 0.63,
         "+ CIR, nearest": 0.62, "+ CIR, random mask": 0.62, "+ DiR": 0.62, "+ DiR, displacement": 0.6, "DiSa": 0.66}


def values(**changed) -> dict:
    """Every seed has the same differences but for a little; `changed` gives an arm (base, novel)."""
    found: dict = {}
    for arm, novel in NOVEL.items():
        base, novel = changed.get(arm.replace(" + ", "_").replace("zero-", "zero_"), (0.8, novel))
        for s in range(5):
            row = {"base": base + 0.01 * s, "novel": novel + 0.01 * s + 0.001 * s * (arm == "DiSa")}
            found.setdefault(arm, {})[s] = row | {"HM": harmonic(row["base"], row["novel"]), "AUC text_patch": 0.4}
    return found


@pytest.mark.parametrize(("changed", "verdict"), [
    ({}, "confirmed"),
    ({"DiSa": (0.80, 0.605)}, "confirmed"),
    ({"DiSa": (0.795, 0.66)}, "confirmed"),                             # half a point below IVLP on base
    ({"DiSa": (0.78, 0.66)}, "open"),                                   # two points
    ({"IVLP": (0.8, 0.67)}, "open"),                                    # not above IVLP
    ({"IVLP_SR": (0.7, 0.67)}, "open"),                                 # novel not above, HM above
    ({"IVLP_SR": (0.8, 0.67)}, "refuted"),
    ({"DiSa": (0.5, 0.66)}, "refuted"),
    ({"zero_shot": (0.5, 0.3)}, "open"),                                # nothing to keep
    ({"zero_shot": (0.5, 0.3), "IVLP_SR": (0.8, 0.67)}, "open"),
])
def test_the_rule(changed, verdict):
    found, sentence = claim.judge(values(**changed))
    assert found == verdict and "salient mask minus a random one" in sentence and "rated above another in 40%" in sentence
    assert sentence.startswith("Void") is ("zero_shot" in changed)


def test_arms_are_settings_that_differ_in_what_they_say():
    assert set(claim.ARMS) | {"zero-shot", "CoOp"} == set(claim.CLAIM["arms"])
    flags = {f.name: f.default for f in catalogue.method("disa").flags}
    assert {k for settings in claim.ARMS.values() for k in settings} <= set(flags)
    assert claim.ARMS["DiSa"] == {"saliency": "text_patch_neg"}         # the defaults, but for the sign
    full = {arm: {**flags, **settings} for arm, settings in claim.ARMS.items()}
    apart = {name for name in flags if full["+ CIR, salient"][name] != full["+ CIR, random mask"][name]}
    assert apart == {"saliency"}
    assert {name for name in flags if full["DiSa"][name] != full["+ CIR, salient"][name]} == {"direction"}
    assert {name for name in flags if full["IVLP"][name] != full["IVLP + SR"][name]} == {"score"}


def test_a_seed_deals_the_classes_and_learns_from_eight_of_each_base_one():
    order = np.random.default_rng(3).permutation(16)
    rows = claim.labelled(claim.pictures(1, 320), order)
    names = [FACTORS["object"][i] for i in order]
    truth = claim.pictures(1, 320).factors[:, 0]
    assert [names[label] for label in rows.values("label")] == [FACTORS["object"][t] for t in truth]
    info = claim.DataInfo("composites", 320, ("image", "label"), 64, 3, classes=tuple(names))
    for arm in ("CoOp", "+ DiR"):
        learner = claim.learning(arm, tiny_dual_encoder(), info)
        assert learner.names == names[:8] and learner.model.config["texts"] == 4
        taken = learner.batches({"label": rows.values("label")}, 16, 3, 0)
        assert taken.shape == (4, 16) and np.array_equal(np.sort(taken.ravel()), chosen(rows.values("label"), 8, 8, 3))


def test_the_area_is_a_share_of_pairs():
    scores = torch.tensor([[0.9, 0.2, 0.5, 0.2], [1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]])
    inside = torch.tensor([[True, True, False, False], [False, False, True, True], [False] * 4])
    assert claim.auc(scores, inside) == pytest.approx(((2 + 0.5) / 4 + 1) / 2)
    assert claim.auc(-scores, inside) == pytest.approx(((0 + 1 + 0.5) / 4 + 0) / 2)


def test_a_patch_is_on_the_object_when_a_quarter_of_it_is():
    main = np.zeros((1, 16, 16), dtype=bool)
    main[0, :4, 8:12] = True                                            # a quarter of the second patch
    main[0, 8:11, :5] = True                                            # 15 of 64 of the third
    assert claim.on_object(main).tolist() == [[False, True, False, False]]
