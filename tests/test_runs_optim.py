"""Parameter groups, the rate over a run, LARS."""

from __future__ import annotations

import math

import pytest
import torch
import toy
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from notan.errors import NotanError
from notan.nets.attention_pool import AttentionPool
from notan.nets.build import build_encoder
from notan.runs import optim

toy.register()


def method(encoder: str = "vit:patch=2,dim=16,depth=2,heads=2,positions=learned") -> nn.Module:
    built = nn.Module()
    built.encoder, built.head = build_encoder(encoder, toy.data().info), nn.Linear(16, 4)
    return built


def group_of(groups: list[dict], name: str) -> dict:
    return next(g for g in groups if name in g["names"])


def test_every_trainable_parameter_is_in_exactly_one_group():
    m = method()
    m.head.weight.requires_grad_(False)
    names = [n for g in optim.parameter_groups(m, weight_decay=0.1) for n in g["names"]]
    assert sorted(names) == sorted(n for n, p in m.named_parameters() if p.requires_grad) and "head.weight" not in names


@pytest.mark.parametrize(("name", "decayed"), [
    ("encoder.cls_token", False), ("encoder.pos_embed", False), ("encoder.norm.weight", False), ("head.bias", False),
    ("encoder.blocks.0.attn.qkv.bias", False), ("encoder.blocks.0.attn.qkv.weight", True),
    ("encoder.patch_embed.proj.weight", True), ("head.weight", True)])
def test_vectors_biases_tokens_and_positions_are_not_decayed(name, decayed):
    group = group_of(optim.parameter_groups(method(), weight_decay=0.1), name)
    assert group["weight_decay"] == (0.1 if decayed else 0.0) and group["decayed"] is decayed


def test_the_first_token_of_an_attention_pool_is_not_decayed():
    m = nn.Module()
    m.pool = AttentionPool(8, 1, 2, 16)
    assert group_of(optim.parameter_groups(m, weight_decay=0.1), "pool.u0")["weight_decay"] == 0.0


@pytest.mark.parametrize(("encoder", "name", "power"), [
    ("vit:patch=2,dim=16,depth=2,heads=2", "encoder.patch_embed.proj.weight", 3),
    ("vit:patch=2,dim=16,depth=2,heads=2", "encoder.cls_token", 3),
    ("vit:patch=2,dim=16,depth=2,heads=2", "encoder.blocks.0.mlp.fc1.weight", 2),
    ("vit:patch=2,dim=16,depth=2,heads=2", "encoder.blocks.1.mlp.fc1.weight", 1),
    ("vit:patch=2,dim=16,depth=2,heads=2", "encoder.norm.weight", 0),
    ("vit:patch=2,dim=16,depth=2,heads=2", "head.weight", 0),
    ("resnet10:width=4,stem=cifar", "encoder.conv1.weight", 5),
    ("resnet10:width=4,stem=cifar", "encoder.layer1.0.conv1.weight", 4),
    ("resnet10:width=4,stem=cifar", "encoder.layer4.0.conv2.weight", 1)])
def test_layer_decay_counts_from_the_top(encoder, name, power):
    groups = optim.parameter_groups(method(encoder), weight_decay=0.1, layer_decay=0.5)
    assert group_of(groups, name)["scale"] == pytest.approx(0.5**power)


@given(steps=st.integers(1, 500), warmup=st.floats(0, 0.5))
def test_the_rate_rises_to_its_peak_and_falls(steps, warmup):
    rates = [optim.rate(n, steps, warmup) for n in range(steps)]
    first = round(warmup * steps)
    assert all(0 < r <= 1 for r in rates) and rates[:first] == sorted(rates[:first])
    assert rates[max(first - 1, 0)] == pytest.approx(1)
    assert rates[first:] == sorted(rates[first:], reverse=True)


def test_the_rate_is_a_half_cosine_after_warmup():
    assert [optim.rate(n, 10, 0.2) for n in (0, 1, 2, 6)] == pytest.approx([0.5, 1, 1, 0.5])
    assert optim.rate(9, 10, 0.2) == pytest.approx(0.5 * (1 + math.cos(math.pi * 7 / 8)))


def test_lr_rules_and_unknown_names():
    recipe = {"name": "sgd", "lr": 0.1, "lr_rule": "linear256"}
    assert optim.complete(recipe, batch=512, lr=None)["lr"] == pytest.approx(0.2)
    assert optim.complete(recipe, batch=512, lr=0.3)["lr"] == 0.3
    assert optim.complete({"name": "adamw", "lr": 0.1}, batch=512, lr=None)["lr"] == 0.1
    with pytest.raises(NotanError, match="did you mean 'adamw'"):
        optim.complete({"name": "adam", "lr": 0.1}, batch=1, lr=None)
    with pytest.raises(NotanError, match="sgd has no setting 'betas'"):
        optim.complete({"name": "sgd", "lr": 0.1, "betas": [0.9, 0.9]}, batch=1, lr=None)


def test_a_completed_recipe_is_complete_already():
    once = optim.complete({"name": "lars", "lr": 1.0, "lr_rule": "linear256"}, batch=1024, lr=None)
    assert optim.complete(once, batch=64, lr=None) == once


def test_lars_follows_its_equations():
    torch.manual_seed(0)
    m = nn.Linear(3, 2).double()
    settings = optim.complete({"name": "lars", "lr": 0.2, "weight_decay": 0.1}, batch=1, lr=None)
    opt = optim.build(settings, m)
    w, b, vw, vb = m.weight.detach().clone(), m.bias.detach().clone(), 0.0, 0.0
    for lr in (0.2, 0.5, 0.1):
        optim.set_rate(opt, lr)
        gw, gb = torch.randn(2, 3).double(), torch.randn(2).double()
        m.weight.grad, m.bias.grad = gw.clone(), gb.clone()
        opt.step()
        u = gw + 0.1 * w
        vw, vb = 0.9 * vw + lr * 1e-3 * w.norm() / u.norm() * u, 0.9 * vb + lr * gb
        w, b = w - vw, b - vb
    torch.testing.assert_close(m.weight.detach(), w)
    torch.testing.assert_close(m.bias.detach(), b)


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars"])
def test_the_state_of_every_optimiser_comes_back(tmp_path, name):
    from notan.runs import checkpoint
    results = []
    for resumed in (False, True):
        torch.manual_seed(0)
        m = method()
        m.head.weight.data = m.head.weight.data.t().contiguous().t()     # a layout of its own
        opt = optim.build(optim.complete({"name": name, "lr": 0.1, "weight_decay": 0.01}, batch=1, lr=None), m)
        for step in range(4):
            if resumed and step == 2:
                checkpoint.save(tmp_path, m, opt, step=2, seconds=0.0, digest="d")
                opt = optim.build(optim.complete({"name": name, "lr": 0.1, "weight_decay": 0.01}, batch=1, lr=None), m)
                meta = checkpoint.load(tmp_path, m, digest="d")
                checkpoint.fill_optimiser(opt, meta.pop("moments"))
                assert meta == {"step": 2, "seconds": 0.0, "digest": "d"}
            for i, p in enumerate(m.parameters()):
                p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(100 * step + i))
            optim.set_rate(opt, 0.1)
            opt.step()
        results.append([p.detach().clone() for p in m.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results))
