"""moco, supcon and temperature: what they contrast, what they remember, what gets no gradient."""

from __future__ import annotations

import importlib
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from test_contracts import HALFWAY, ROWS, loss_of
from torch import nn

from notan.data import DataInfo
from notan.errors import NotanError
from notan.methods.moco import MoCo
from notan.methods.supcon import SupCon
from notan.methods.temperature import Temperature
from notan.nets.queue import Bank, Queue
from notan.nets.vit import ViT
from notan.runs import train as training

DATA = DataInfo("example", ROWS, ("image", "label"), 16, 3, classes=("a", "b", "c"))


def vit():
    return ViT(image_size=16, patch=4, dim=32, depth=2, heads=2)


def made(slug):
    return importlib.import_module(f"notan.methods.{slug}").example(ROWS, torch.float64)


# ------------------------------------------------------------------------------------------------------ queue and bank

def test_the_queue_is_first_in_first_out_at_unit_length():
    queue = Queue(5, 2)
    keys = torch.tensor([[float(i), 1.0] for i in range(1, 9)])
    random = queue.keys.clone()
    queue.push(keys[:2])
    assert torch.equal(queue.keys[:2], F.normalize(keys[:2], dim=1)) and torch.equal(queue.keys[2:], random[2:])
    queue.push(keys[2:6])                                               # 3, 4, 5 fill it, 6 takes the place of 1
    assert torch.equal(queue.keys, F.normalize(keys[[5, 1, 2, 3, 4]], dim=1)) and queue.place == 1
    queue.push(keys)                                                    # more than there is room for: the last five stay
    kept = {tuple(k.tolist()) for k in queue.keys}
    assert kept == {tuple(k.tolist()) for k in F.normalize(keys[3:], dim=1)} and queue.place == 4
    queue.push(keys[:1])
    assert torch.equal(queue.keys[4], F.normalize(keys[:1], dim=1)[0])
    oldest = F.normalize(keys[3:4], dim=1)[0]
    assert not (queue.keys == oldest).all(1).any()                      # and the oldest went


def test_the_bank_follows_the_rows_that_were_seen():
    bank = Bank(6, 3)
    before, z = bank.keys.clone(), torch.randn(2, 3)
    bank.update(torch.tensor([4, 1]), z, 0.5)
    for i, row in ((0, 4), (1, 1)):
        torch.testing.assert_close(bank.keys[row], F.normalize((before[row] + F.normalize(z[i], dim=0)) / 2, dim=0))
    torch.testing.assert_close(bank.keys.norm(dim=1), torch.ones(6))
    rest = [0, 2, 3, 5]
    assert torch.equal(bank.keys[rest], before[rest]) and not bank.keys.requires_grad


# ----------------------------------------------------------------------------------------------------------------- moco

def test_moco_is_a_softmax_over_its_key_and_the_queue():
    method, batch = made("moco")
    out = loss_of(method, batch)
    q = F.normalize(method.projector(method.encoder.features(method.view(batch, 1))), dim=1)
    k = F.normalize(method.key_projector(method.key_encoder.features(method.view(batch, 2))), dim=1)
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ method.queue.keys.T], 1) / method.tau
    torch.testing.assert_close(out["loss"], F.cross_entropy(logits, torch.zeros(ROWS).long()))
    out["loss"].backward()
    assert all(p.grad is None for part in (method.key_encoder, method.key_projector) for p in part.parameters())
    assert all(p.grad is not None for p in method.projector.parameters())


def test_moco_remembers_after_the_step_and_not_before():
    method, batch = made("moco")
    queue = method.queue.keys.clone()
    out = loss_of(method, batch)
    assert torch.equal(method.queue.keys, queue)
    with torch.no_grad():
        method.projector[0].weight.add_(1)
    old = method.key_projector[0].weight.clone()
    method.after_step(out["keep"], HALFWAY)
    torch.testing.assert_close(method.queue.keys[:ROWS], F.normalize(out["keep"]["k"], dim=1))
    torch.testing.assert_close(method.key_projector[0].weight, 0.999 * old + 0.001 * method.projector[0].weight)
    for wrong in ({"tau": 0.0}, {"queue": 0}, {"momentum": 1.0}):
        with pytest.raises(NotanError, match=next(iter(wrong))):
            MoCo(vit(), **wrong)


# --------------------------------------------------------------------------------------------------------------- supcon

def test_supcon_is_the_paper_s_equation_over_all_views():
    method, batch = made("supcon")
    batch = {**batch, "label": torch.tensor([0, 1, 0, 2, -1, 1, 0, -1])}
    z = method.projector(method.encoder.features(torch.cat([method.view(batch, 1), method.view(batch, 2)])))
    z, y = F.normalize(z, dim=1), batch["label"].repeat(2)
    s, rows = z @ z.T / method.tau, []
    for i in range(2 * ROWS):
        others = [a for a in range(2 * ROWS) if a != i]
        mine = [p for p in others if y[p] == y[i]]
        if y[i] >= 0:
            rows.append(-torch.stack([s[i, p] - s[i, others].logsumexp(0) for p in mine]).mean())
    torch.testing.assert_close(loss_of(method, batch)["loss"], torch.stack(rows).mean())


def test_supcon_wants_two_classes():
    with pytest.raises(NotanError, match="example has 1 classes"):
        SupCon(vit(), data=replace(DATA, classes=("a",)))
    with pytest.raises(NotanError, match="tau = 0"):
        SupCon(vit(), data=DATA, tau=0)


# ---------------------------------------------------------------------------------------------------------- temperature

@pytest.mark.parametrize("negatives", ["bank", "batch", "queue"])
@pytest.mark.parametrize("objective", ["soft", "hard", "simple", "hard-simple"])
def test_every_objective_learns_from_every_source_of_negatives(objective, negatives):
    torch.manual_seed(0)
    method = Temperature(vit(), data=DATA, objective=objective, negatives=negatives, queue=12, dim=8).double()
    _, batch = made("temperature")
    out = loss_of(method, batch)
    out["loss"].backward()
    assert out["loss"].isfinite() and any(p.grad.abs().max() > 0 for p in method.encoder.parameters())
    state = {k: v.clone() for k, v in method.state_dict().items()}
    method.after_step(out.get("keep", {}), HALFWAY)
    changed = {k for k, v in method.state_dict().items() if not torch.equal(v, state[k])}
    assert changed == {"bank": {"bank.keys"}, "batch": set(), "queue": {"queue.keys", "queue.place"}}[negatives]


def test_the_bank_s_positive_is_the_row_itself():
    method, batch = made("temperature")
    batch = {**batch, "row": batch["row"].flip(0)}
    z = F.normalize(method.head(method.encoder.features(method.view(batch, 1))), dim=1)
    torch.testing.assert_close(loss_of(method, batch)["loss"], F.cross_entropy(z @ method.bank.keys.T / 0.3, batch["row"]))


def test_bad_settings_are_named():
    for wrong in ({"tau": -1.0}, {"share": 0.0}, {"keep": 1.0}):
        with pytest.raises(NotanError, match=next(iter(wrong))):
            Temperature(vit(), data=DATA, **wrong)
    method, _ = made("temperature")
    with pytest.raises(NotanError, match="a batch of one row"):
        method.contrast(torch.ones(1, 4), torch.ones(2, 4), torch.zeros(1).long(), torch.ones(1).long())


def test_a_queue_lets_parts_of_a_batch_be_accumulated(tmp_path):
    """moco's rows do not meet, so with an encoder and a head without batch norm parts give the whole batch's gradient."""
    from types import SimpleNamespace

    method, batch = made("moco")
    for part in list(method.projector.modules()) + list(method.key_projector.modules()):
        for name, child in list(part.named_children()):
            if isinstance(child, nn.modules.batchnorm._BatchNorm):
                setattr(part, name, nn.Identity())
    training._check_accumulation(SimpleNamespace(method="moco", accumulate=2, batch=ROWS), method)
    whole = torch.autograd.grad(loss_of(method, batch)["loss"], list(method.projector.parameters()))
    halves = [loss_of(method, {k: v[i] for k, v in batch.items()})["loss"] / 2 for i in (slice(0, 4), slice(4, 8))]
    for a, b in zip(whole, torch.autograd.grad(sum(halves), list(method.projector.parameters()))):
        torch.testing.assert_close(a, b)
