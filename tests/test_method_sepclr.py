"""SepCLR and its supervised variant: which term reaches which network, what batches hold, what each space is probed for."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_contracts import HALFWAY, ROWS, loss_of, rows_of
from torch import nn

from notan import cli
from notan.data import Rows, open_data
from notan.errors import NotanError
from notan.methods import sepclr, sepclr_supervised
from notan.methods.sepclr import SepCLR, salient_term, stratified
from notan.methods.sepclr_supervised import tied
from notan.nets.vit import ViT
from notan.probes.attributes import attribute_pairs


def made(**options):
    method, batch = sepclr.example(ROWS, torch.float64)
    for name, value in options.items():
        setattr(method, name, value)
    return method.eval(), batch


def grads(method, batch):
    method.zero_grad()
    loss_of(method, batch)["loss"].backward()
    return {name: any(p.grad is not None and bool(p.grad.abs().max() > 0) for p in getattr(method, name).parameters())
            for name in ("encoder", "salient", "common_head", "salient_head")}


class Kept(nn.Module):
    """A head whose output keeps its gradient."""

    def __init__(self, head, scale=1.0):
        super().__init__()
        self.head, self.scale = head, scale

    def forward(self, x):
        self.out = self.head(x) * self.scale
        self.out.retain_grad()
        return self.out


# --------------------------------------------------------------------------------------------------------------- terms

def test_what_reaches_which_network():
    assert grads(*made(salience=0.0, nothing=0.0, lam=0.0)) == {
        "encoder": True, "common_head": True, "salient": False, "salient_head": False}
    method, batch = made(lam=0.0)
    without = {n: p.grad.clone() for n, p in method.encoder.named_parameters()} if grads(method, batch) else {}
    method.salience = method.nothing = 0.0
    grads(method, batch)
    assert all(torch.equal(p.grad, without[n]) for n, p in method.encoder.named_parameters()), "salient terms leave it alone"
    assert grads(*made(salience=0.0, nothing=0.0)) == dict.fromkeys(("encoder", "salient", "common_head", "salient_head"), True)


def test_background_has_a_salient_gradient_from_nothing_alone():
    for nothing in (0.0, 10.0):
        method, batch = made(nothing=nothing)
        method.salient_head = Kept(method.salient_head)
        loss_of(method, batch)["loss"].backward()
        g = method.salient_head.out.grad                                # (2B, d)
        background = (batch["group"] == 0).repeat(2)
        assert bool((g[background] != 0).any()) is (nothing > 0) and (g[~background] != 0).any(1).all()


def test_the_common_space_has_no_length_and_the_salient_one_has():
    method, batch = made()
    before = loss_of(method, batch)
    method.common_head = Kept(method.common_head, 7.0)
    torch.testing.assert_close(loss_of(method, batch)["loss"], before["loss"])
    method.salient_head = Kept(method.salient_head, 7.0)
    assert not torch.isclose(loss_of(method, batch)["salient"], before["salient"])


def test_views_may_change_places(monkeypatch):
    method, batch = made()
    a = loss_of(method, batch)["loss"]
    view = SepCLR.view
    monkeypatch.setattr(SepCLR, "view", lambda self, batch, which: view(self, batch, 3 - which))
    torch.testing.assert_close(loss_of(method, batch)["loss"], a)


def test_salient_numbers_of_background_are_0_exactly_when_the_term_is():
    method, batch = made()
    method.salient_head = Kept(method.salient_head, 0.0)
    assert float(loss_of(method, batch)["background"]) == 0


@pytest.mark.parametrize("group", [0, 1])
def test_a_batch_of_one_group_is_finite(group):
    method, batch = made()
    batch = {**batch, "group": torch.full((ROWS,), group)}
    out = loss_of(method, batch)
    out["loss"].backward()
    assert all(torch.isfinite(v).all() for v in out.values())
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in method.parameters())
    assert float(out["salient" if group == 0 else "background"]) == pytest.approx(0, abs=1e-12)


def test_targets_that_are_far_apart_lie_as_evenly_as_background_lets_them():
    """Half a batch at 0: -1.4023 for 64 rows, however far the targets go."""
    target = torch.arange(64) % 2 == 1
    s = torch.where(target[:, None], 1e3 * torch.arange(64.0)[:, None], 0).double()
    assert float(salient_term((s, s), [s, s], target)) == pytest.approx(2 * -1.4023, abs=1e-3)


def test_other_groups_are_named():
    method, batch = made()
    with pytest.raises(NotanError, match=r"group holds \[0, 1, 2\]"):
        loss_of(method, {**batch, "group": torch.arange(ROWS) % 3})


# ------------------------------------------------------------------------------------------------------------- batches

@settings(max_examples=40, deadline=None)
@given(st.integers(2, 60), st.integers(2, 60), st.integers(4, 16), st.integers(0, 3))
def test_every_batch_holds_both_groups(zeros, ones, size, epoch):
    group = np.random.default_rng(0).permutation(np.repeat([0, 1], [zeros, ones]))
    plan = stratified(group, size, 0, epoch)
    if not len(plan):
        return                                                          # the loader says that there is no batch
    held = group[plan].sum(1)
    assert plan.shape[1] == size and len(np.unique(plan)) == plan.size
    assert (held == held[0]).all() and 2 <= held[0] <= size - 2
    assert abs(held[0] - size * ones / (zeros + ones)) <= 2
    assert np.array_equal(plan, stratified(group, size, 0, epoch)) and plan.shape == stratified(group, size, 0, epoch + 1).shape


@pytest.mark.parametrize("group,size", [([0] * 9, 4), ([1] * 9, 4), ([0] * 8 + [1], 4), ([0, 1] * 9, 3)])
def test_one_group_or_a_tiny_batch_is_named(group, size):
    with pytest.raises(NotanError, match="two rows of each group"):
        stratified(np.array(group), size, 0, 0)


def test_one_group_stops_a_run_before_it_begins(tmp_path):
    from dataclasses import replace

    from notan.runs.train import train
    data = open_data("overlay")
    rows = Rows({**data.train.stores, "group": np.zeros(len(data.train), dtype=np.int64)}, data.train.index)
    with pytest.raises(NotanError, match="10,000 background and 0 target rows"):
        train("sepclr", replace(data, train=rows), out=tmp_path / "r", steps=1)


# -------------------------------------------------------------------------------------------------- supervised variant

def test_golden_value_of_ties():
    s, a = (torch.sin(w * torch.arange(1, 6, dtype=torch.float64)) for w in (0.37, 0.9))
    assert float(tied(s, a + 2, 0.025)) == pytest.approx(0.0070065183, abs=1e-9)           # attributes from 0 up


def test_attributes_tie_by_their_distance():
    s = torch.tensor([0.0, 1.0], dtype=torch.float64)
    for gap, weight in ((0, 1.0), (1, math.exp(-20))):
        assert float(tied(s, torch.tensor([3, 3 + gap]), 0.025)) == pytest.approx(weight)
    assert float(tied(s, torch.tensor([3, -1]), 0.025)) == 0, "unknown ties nothing"
    for few in (0, 1):
        assert float(tied(s[:few], torch.full((few,), 3), 0.025)) == 0


def test_the_supervised_variant_wants_as_many_attributes_as_factors():
    method, batch = sepclr_supervised.example(ROWS, torch.float64)
    with pytest.raises(NotanError, match="3 attributes for 2 factors"):
        method.loss({**batch, "attributes": torch.zeros(ROWS, 3, dtype=torch.int64)}, HALFWAY)
    for group in (0, 1):
        out = loss_of(method, {**batch, "group": torch.full((ROWS,), group)})
        assert torch.isfinite(out["loss"])
    assert method.eval().encode(batch)["salient"].shape == (ROWS, 2)


def test_each_number_follows_its_attribute():
    """A few steps on made-up pictures whose brightness and stripe are the attributes."""
    torch.manual_seed(0)
    n = 64
    a = torch.stack([torch.arange(n) // 2 % 2, torch.arange(n) // 4 % 2], 1)
    image = torch.randint(0, 40, (n, 1, 8, 8), dtype=torch.uint8)
    image[:, :, :4] += (100 * a[:, 0])[:, None, None, None].to(torch.uint8)
    image[:, :, 4:] += (100 * a[:, 1])[:, None, None, None].to(torch.uint8)
    batch = {"image": image, "attributes": a, "group": torch.arange(n) % 2, "key": torch.arange(n), "row": torch.arange(n)}
    towers = [ViT(image_size=8, channels=1, patch=4, dim=16, depth=1, heads=2) for _ in range(2)]
    method = sepclr_supervised.SepCLRSupervised(*towers, hidden=16, dim=8)
    optimiser = torch.optim.AdamW(method.parameters(), lr=3e-3)
    for _ in range(80):
        optimiser.zero_grad()
        method.loss(batch, HALFWAY)["loss"].backward()
        optimiser.step()
    s = method.eval().encode(batch)["salient"].detach()
    target = batch["group"] == 1
    for i in range(2):
        of = [s[target & (a[:, i] == value), i] for value in (0, 1)]
        assert (of[0].mean() - of[1].mean()).abs() > 3 * max(of[0].std(), of[1].std()), i
    assert s[~target].abs().mean() < 0.5 * s[target].abs().mean()


# -------------------------------------------------------------------------------------------------------------- probes

def test_attribute_pairs_know_their_lines():
    g = torch.Generator().manual_seed(0)
    y = torch.stack([torch.arange(400) % 4, (torch.arange(400) % 10 == 0).long(), torch.zeros(400).long()], 1)
    y[:7, 0] = -1
    x = {"tells": torch.nn.functional.one_hot(y[:, 0].clamp(min=0), 4).float(), "blind": torch.randn(400, 4, generator=g)}
    found = attribute_pairs({k: v[:300] for k, v in x.items()}, y[:300], {k: v[300:] for k, v in x.items()}, y[300:], ("a", "b"))
    assert set(found) == {f"{a} from {s}" for a in "ab" for s in x}, "an attribute of one class is left out"
    assert found["a from tells"]["accuracy"] == 1 and found["a from blind"]["accuracy"] < 0.5
    assert found["a from tells"]["chance"] == 0.25 and found["b from blind"]["majority"] == pytest.approx(0.9)
    with pytest.raises(NotanError, match="none of 1 attributes"):
        attribute_pairs(x, y[:, 2:], x, y[:, 2:])


def test_the_command_probes_each_space_on_target_rows(tmp_path, capsys):
    run = str(tmp_path / "run")
    tower = "convnet:widths=(4,8),strides=(4,2)"
    command = ["train", "sepclr", "--data", "overlay", "--steps", "2", "--batch", "16", "--out", run, "--encoder", tower]
    assert cli.main(command) == 0
    assert cli.main(["probe", run, "--protocol", "attributes", "--rows", "300"]) == 0
    out = capsys.readouterr().out
    assert all(f"attribute {a} from {s}" in out for a in (0, 1) for s in ("common", "salient"))
    assert "chance 0.100" in out and "300 labelled rows" in out
    assert cli.main(["probe", run, "--data", "digits", "--protocol", "attributes"]) == 1
    assert "a column `attributes`" in capsys.readouterr().err


def test_the_overlay_is_half_of_each_and_digits_do_not_repeat_over_splits():
    data = open_data("overlay")
    for rows in (data.train, data.test):
        batch = rows.take(np.arange(200))
        assert batch["image"][batch["group"] == 0].max() <= 127 < batch["image"][batch["group"] == 1].max()
        assert (batch["attributes"][batch["group"] == 0, 1] == -1).all() and (batch["attributes"][:, 0] == batch["label"]).all()
        assert set(batch["attributes"][batch["group"] == 1, 1].tolist()) == set(range(10))


def test_rows_in_another_order_and_of_two_ranks():
    """The contracts enumerate both; here the uneven case where a rank holds no target."""
    method, batch = made()
    order = torch.argsort(batch["group"], stable=True)
    torch.testing.assert_close(loss_of(method, rows_of(batch, order))["loss"], loss_of(method, batch)["loss"])
