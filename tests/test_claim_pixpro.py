"""PixPro's claim: the rule that judges it, and its arms."""

from __future__ import annotations

import ast

import pytest

from notan import catalogue
from notan.claims import pixpro

MIOU = {"random": 0.2, "instance": 0.3, "pixcontrast": 0.35, "pixpro": 0.4, "pixpro+instance": 0.4, "no propagation": 0.3}


def values(**changed: dict[str, float]) -> dict:
    arms = {arm: {s: {"miou": m + 0.01 * s, "accuracy": 0.5 + 0.01 * s, "spread": 0.7} for s in (0, 1, 2)}
            for arm, m in MIOU.items()}
    for s in (0, 1, 2):
        arms["no propagation"][s]["spread"] = 0.1
        arms["pixpro+instance"][s]["accuracy"] += 0.1
    for arm, metrics in changed.items():
        for s in (0, 1, 2):
            arms[arm.replace("_", " ")][s].update({k: v + 0.01 * s for k, v in metrics.items()})
    return arms


@pytest.mark.parametrize(("changed", "verdict"), [
    ({}, "confirmed"),
    ({"instance": {"miou": 0.395}}, "open"),                            # within the pooled sd of 0.01
    ({"pixcontrast": {"miou": 0.41}}, "open"),
    ({"no_propagation": {"spread": 0.4}}, "open"),
    ({"no_propagation": {"spread": 0.6}}, "refuted"),
    ({"instance": {"miou": 0.4}}, "refuted"),
    ({"random": {"miou": 0.45}}, "open"),
    ({"pixpro": {"spread": 0.4}}, "open"),                              # nearly collapsed itself
    ({"pixpro+instance": {"accuracy": 0.45}}, "open"),                  # below pixpro's
    ({"instance": {"accuracy": 0.7}}, "open"),                          # not recovered
])
def test_the_rule(changed, verdict):
    found, sentence = pixpro.judge(values(**changed))
    assert found == verdict and "propagation" in sentence


def test_the_claim_is_a_literal_and_its_arms_are_settings():
    entry = catalogue.method("pixpro")
    tree = ast.parse(catalogue.claims()["pixpro"].read_text())
    claim = next(n.value for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == "CLAIM")
    assert ast.literal_eval(claim) == pixpro.CLAIM and set(pixpro.ARMS) == set(pixpro.CLAIM["arms"])
    assert {k for arm in pixpro.ARMS.values() for k in arm} <= {f.name for f in entry.flags}
