"""Hydra's claim: the rule that judges it, its arms, its 20 classes, and what is read off the gates."""

from __future__ import annotations

import ast

import numpy as np
import pytest
import torch

from notan import catalogue
from notan.claims import hydra
from notan.nets.gate import PairGate

SEEDS = (0, 1, 2, 3, 4)


def values(gain: float = 0.04, **changed: float) -> dict:
    """Made-up values: open arms at 0.77 with a deviation of 0.0016, gates `gain` above; `changed` shifts a space or an arm."""
    arms = {}
    for arm in hydra.CLAIM["arms"]:
        level = {"random": 0.76, "supervised": 0.82}.get(arm, 0.77 + gain * arm.endswith(", gate"))
        arms[arm] = {s: {"backbone": level, "projector": level - 0.02, "backbone rank": 60, "projector rank": 20,
                         "overlap": 0.5, "width": 0.2} for s in SEEDS}
        for s in SEEDS:
            for space in ("backbone", "projector"):
                noise = 0.001 * (s - 2) * (1 if "open" in arm else -1)
                arms[arm][s][space] += noise + changed.get(arm.split(",")[0], 0) * (arm.endswith(", gate") or arm == "random")
                arms[arm][s][space] += changed.get(space, 0) * arm.endswith(", gate")
    return arms


@pytest.mark.parametrize(("found", "verdict"), [
    (values(), "confirmed"),
    (values(0.0), "refuted"),
    (values(-0.04), "refuted"),
    (values(0.001), "refuted"),                                         # within one pooled deviation of 0.0016
    (values(0.0025), "open"),                                           # within two
    (values(distinct=-0.04), "open"),                                   # in one mode alone
    (values(projector=-0.04), "open"),                                  # in one space alone
    (values(random=0.06), "open"),                                      # no better than random weights
])
def test_the_rule(found, verdict):
    said, sentence = hydra.judge(found)
    assert said == verdict and sentence.endswith(".") and "supcon" in sentence and "overlap +0.50" in sentence


def test_the_claim_is_a_literal_and_its_arms_are_settings():
    tree = ast.parse(catalogue.claims()["hydra"].read_text())
    claim = next(n.value for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == "CLAIM")
    assert ast.literal_eval(claim) == hydra.CLAIM
    assert {*hydra.ARMS, "supervised", "supcon"} == set(hydra.CLAIM["arms"])
    assert {k for arm in hydra.ARMS.values() for k in arm} <= {f.name for f in catalogue.method("hydra").flags}


def test_arms_of_a_seed_begin_with_one_encoder_and_one_projector():
    info = hydra.filled(True)[1]
    first = {arm: hydra.built(3, lambda a=arm: hydra.made(a, info)) for arm in hydra.CLAIM["arms"]}
    for arm, method in first.items():
        for name in ("encoder", "projector") if arm != "supervised" else ("encoder",):
            one, other = (m.get_submodule(name).state_dict() for m in (first["random"], method))
            assert all(torch.equal(a, b) for a, b in zip(one.values(), other.values(), strict=True)), arm


def test_the_other_gate_is_given_anothers_pair():
    gate = hydra.made("arbitrary, other gate", hydra.filled(True)[1]).gate.eval()
    a, b = torch.tensor([0, 1, 2]), torch.tensor([3, 4, 5])
    torch.testing.assert_close(gate(a, b)[[1, 2, 0]], PairGate.forward(gate, a, b))


def test_the_twenty_classes_are_all_there_and_look_as_they_are_called():
    rows, info = hydra.filled(True)
    image, label = rows.stores["image"][:, 0].astype(float), rows.values("label")
    assert len(info.classes) == 20 and set(label.tolist()) == set(range(20)) and len(rows) == 400
    assert info.classes[4 * 2 + 1] == "coat, stripes across"
    bag = {f: image[label == 12 + f] for f in range(4)}
    across, down = ({f: np.abs(np.diff(x[:, 8:20, 8:20], axis=a)).mean() for f, x in bag.items()} for a in (1, 2))
    assert across[1] > 1.3 * down[1] and down[2] > 1.3 * across[2] and across[3] > across[0] and down[3] > down[0]


def test_relations_are_those_that_were_planted():
    """Gates that open a dimension for each kind and each fill of a pair overlap where classes share one."""
    class Planted(PairGate):
        def forward(self, a, b):
            g = torch.zeros(len(a), 9)
            for c in (a, b):
                g[torch.arange(len(a)), c // 4] += 0.5
                g[torch.arange(len(a)), 5 + c % 4] += 0.5
            return g if self.knows else torch.rand(len(a), 9, generator=torch.Generator().manual_seed(0))

    gate = Planted(20, 9, embed=4, hidden=8)
    gate.knows = True
    found = hydra.relations(gate)
    assert found["overlap"] == pytest.approx(1) and found["width"] == pytest.approx(-1)     # three are open, and not four
    gate.knows = False
    assert abs(hydra.relations(gate)["width"]) < 0.2
