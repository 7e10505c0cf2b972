"""`--micro-batch`: the gradient of the whole batch, from an encoder that keeps a part of it."""

from __future__ import annotations

import importlib

import pytest
import torch
from test_contracts import HALFWAY, ROWS, TRAINED, _disable_dropout, loss_of
from torch import nn

from notan import catalogue
from notan.errors import NotanError
from notan.methods.simclr import SimCLR
from notan.nets.norm import has_batch_statistics
from notan.nets.vit import ViT
from notan.runs.micro import _counted, estimate, in_parts, parts_of


def made(slug):
    towers = [t.name for t in catalogue.method(slug).towers]
    return *importlib.import_module(f"notan.methods.{slug}").example(ROWS, torch.float64), towers


@pytest.mark.parametrize("slug", TRAINED)
def test_the_gradient_is_the_direct_one(slug):
    grads = []
    for size in (None, 3):
        method, batch, towers = made(slug)
        _disable_dropout(method.train())
        if size is not None:
            if any(has_batch_statistics(getattr(method, name)) for name in towers):
                with pytest.raises(NotanError, match=r"batch norm \(.*\): parts of a batch"):
                    in_parts(method, towers, size)
                return
            in_parts(method, towers, size)
        loss_of(method, batch)["loss"].backward()
        grads.append({n: p.grad for n, p in method.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name, g in grads[0].items():
        torch.testing.assert_close(grads[1][name], g, rtol=1e-6, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


class Dropping(nn.Module):
    """A layer that draws, and counts the rows it is run on."""

    def __init__(self):
        super().__init__()
        self.inner, self.seen = nn.Linear(4, 4), []

    def forward(self, x):
        self.seen.append(len(x))
        return nn.functional.dropout(self.inner(x).tanh(), 0.5)


def test_what_is_drawn_is_drawn_again():
    torch.manual_seed(0)
    net, x = Dropping(), torch.randn(10, 4)
    torch.manual_seed(1)
    out = torch.cat([net(part) for part in x.split(4)])
    out.square().sum().backward()
    direct, net.inner.weight.grad = net.inner.weight.grad, None
    torch.manual_seed(1)
    again = parts_of(net.forward, 4)(x)
    state = torch.get_rng_state()
    again.square().sum().backward()
    assert torch.equal(out, again) and torch.equal(net.inner.weight.grad, direct)
    assert torch.equal(torch.get_rng_state(), state)                    # the backward pass puts back what it drew
    assert net.seen == [4, 4, 2, 4, 4, 2, 2, 4, 4] or net.seen == [4, 4, 2, 4, 4, 2, 4, 4, 2]


def test_a_part_is_all_that_is_kept():
    """Bytes that a ViT keeps for the backward pass of 64 rows, two views each: in parts those of its inputs alone."""
    kept = {}
    for size in (None, 4):
        torch.manual_seed(0)
        method = SimCLR(ViT(image_size=16, patch=4, dim=32, depth=4, heads=2), hidden=32, dim=16, blur=0.0)
        batch = {"image": torch.zeros(64, 3, 16, 16, dtype=torch.uint8), "key": torch.arange(64), "row": torch.arange(64)}
        if size is not None:
            in_parts(method, ["encoder"], size)
        with _counted(method, ["encoder"]) as found:
            method.loss(batch, HALFWAY)
        kept[size] = sum(found.bytes.values())
        assert found.rows == 128
    assert kept[4] == 128 * 3 * 16 * 16 * 4 < kept[None] / 20


def test_the_estimate_is_what_is_kept_and_changes_nothing():
    torch.manual_seed(0)
    method = SimCLR(ViT(image_size=16, patch=4, dim=32, depth=4, heads=2), hidden=32, dim=16, blur=0.0)
    batch = {"image": torch.zeros(64, 3, 16, 16, dtype=torch.uint8), "key": torch.arange(64), "row": torch.arange(64)}
    state, before = torch.get_rng_state(), {k: v.clone() for k, v in method.state_dict().items() if "num_batches" not in k}
    said = estimate(method, ["encoder"], batch, HALFWAY, 4, 64)
    assert "2 passes of each row" in said and "64 rows at once" in said and "in parts of 4" in said
    assert torch.equal(torch.get_rng_state(), state) and "features" not in vars(method.encoder)
    assert all(torch.equal(method.state_dict()[k], v) for k, v in before.items())


def test_bad_sizes_and_methods_without_an_encoder_are_named():
    method, _, towers = made("mae")
    for size in (0, -2):
        with pytest.raises(NotanError, match=f"micro_batch = {size}"):
            in_parts(method, towers, size)
    with pytest.raises(NotanError, match="has no encoder"):
        in_parts(method, [], 4)
