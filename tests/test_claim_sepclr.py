"""SepCLR's claim: the control's two encoders, and what the verdicts need."""

from __future__ import annotations

import torch

from notan.claims import sepclr as claim
from notan.methods._progress import Progress
from notan.nets.build import build_encoder


def values(**changed):
    """Three seeds in which everything holds; changed: metrics of an arm."""
    rows = {arm: {"C garment": 0.7, "C digit": 0.84, "S garment": 0.7, "S digit": 0.82} for arm in claim.CLAIM["arms"]}
    rows["sepclr"] |= {"S garment": 0.66, "C digit": 0.8}
    for arm, row in changed.items():
        rows[arm] |= row
    return {arm: {seed: {m: v + 1e-3 * seed for m, v in row.items()} for seed in range(3)} for arm, row in rows.items()}


def test_verdicts():
    assert claim.judge(values())[0] == "confirmed"
    assert claim.judge(values(sepclr={"S garment": 0.71}))[0] == "refuted"
    assert claim.judge(values(sepclr={"C digit": 0.85}))[0] == "refuted"
    assert claim.judge(values(sepclr={"S digit": 0.79}))[0] == "open"
    assert claim.judge(values(sepclr={"C garment": 0.67}))[0] == "open"


def test_the_control_trains_both_encoders_and_heads_on_all_rows():
    info = claim.open_overlay().info
    torch.manual_seed(0)
    twins = claim.Twins(*(build_encoder(claim.ENCODER, info) for _ in range(2)), **claim.VIEW)
    batch = claim.open_overlay().train.take(torch.arange(8).numpy()) | {"key": torch.arange(8)}
    twins.loss(batch, Progress())["loss"].backward()
    assert all(p.grad is not None and bool(p.grad.abs().max() > 0) for n, p in twins.named_parameters() if n.endswith("weight"))
