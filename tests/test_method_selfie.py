"""Selfie: what must hold of the puzzle, the queries, the two roads of the gradient and the fine-tuned network."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from notan import catalogue
from notan.errors import NotanError
from notan.methods._example import images
from notan.methods._progress import Progress
from notan.methods.selfie import Selfie, example
from notan.nets.build import build_encoder
from notan.nets.resnet import ResNet
from notan.views.geometry import floats

START = Progress()


def selfie(**settings) -> Selfie:
    torch.manual_seed(0)
    encoder = ResNet(16, 3, depth=10, width=8, preact=True, last_group=3)
    settings = {"depth": 2, "heads": 4, "feedforward": 16, **settings}
    return Selfie(encoder, **settings).double()


def puzzle(method: Selfie, rows: int = 4) -> tuple[Tensor, Tensor]:
    x, order = method.puzzle(images(rows))
    return x.double(), order


def repaint(x: Tensor, method: Selfie, places: Tensor) -> Tensor:
    """New pixels in the given places (B, M)."""
    x, p = x.clone(), method.patch
    for b, row in enumerate(places.tolist()):
        for place in row:
            r, c = divmod(place, method.grid)
            x[b, :, r * p:(r + 1) * p, c * p:(c + 1) * p] = torch.rand(x.shape[1], p, p, dtype=x.dtype)
    return x


# ---- the puzzle -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("size", "grid", "ratio", "targets"), [(32, 4, .25, 4), (28, 4, .5, 8), (56, 7, .25, 12)])
def test_exactly_k_patches_are_taken_out(size, grid, ratio, targets):
    method = Selfie(ResNet(size, 3, depth=10, width=4, last_group=3), grid=grid, ratio=ratio, depth=1, heads=1)
    _, order = method.puzzle(images(50, size=size))
    assert method.targets == targets and order.shape == (50, grid**2)
    assert torch.equal(order.sort(1).values, torch.arange(method.tokens).expand(50, -1))
    assert len(order[:, :targets].sort(1).values.unique(dim=0)) > 40


def test_a_fresh_draw_for_every_key():
    method, batch = selfie(), images(4)
    assert torch.equal(method.puzzle(batch)[1], method.puzzle(batch)[1])
    assert not torch.equal(method.puzzle(batch)[1], method.puzzle({**batch, "key": batch["key"] + 1})[1])


@pytest.mark.parametrize(("settings", "message"), [({"grid": 5}, "--grid 4"), ({"ratio": 0.1}, "hides 1 of 16"),
                                                   ({"ratio": 1.0}, "hides 16 of 16")])
def test_bad_puzzles_are_refused(settings, message):
    with pytest.raises(NotanError, match=message):
        selfie(**settings)


# ---- the loss -------------------------------------------------------------------------------------------------------

def test_equal_logits_cost_log_k():
    method = selfie()
    method.logits = lambda x, order: torch.zeros(4, 4, 4, dtype=torch.float64)
    assert method.loss(images(4), START)["loss"].item() == pytest.approx(math.log(4))


def test_the_loss_is_the_cross_entropy_of_each_row():
    method, batch = selfie(dropout=0.0), images(4)
    s = method.logits(*method.puzzle(batch))                            # (B, K, K), queries in rows
    by_hand = -torch.stack([s[b, q].softmax(0)[q].log() for b in range(4) for q in range(4)]).mean()
    right = torch.stack([s[b, q].argmax() == q for b in range(4) for q in range(4)]).double().mean()
    out = method.loss(batch, START)
    torch.testing.assert_close(out["loss"], by_hand)
    torch.testing.assert_close(out["accuracy"], right)


@pytest.mark.parametrize("query", ["additive", "token", "place"])
def test_the_order_of_targets_does_not_matter(query):
    method = selfie(query=query).eval()
    x, order = puzzle(method)
    shuffled = order.clone()
    shuffled[:, :4] = order[:, [2, 0, 3, 1]]
    s = method.logits(x, order)
    torch.testing.assert_close(method.logits(x, shuffled), s[:, [2, 0, 3, 1]][:, :, [2, 0, 3, 1]], atol=1e-9, rtol=0)


@pytest.mark.parametrize("query", ["additive", "token", "place"])
def test_only_patches_of_the_same_picture_compete(query):
    method = selfie(query=query).eval()
    x, order = puzzle(method)
    other = x.clone()
    other[1] = torch.rand_like(other[1])
    a, b = method.logits(x, order), method.logits(other, order)
    assert torch.equal(a[0], b[0]) and not torch.allclose(a[1], b[1])


def test_scaled_logits():
    method, scaled = selfie().eval(), selfie(scaled=True).eval()
    torch.testing.assert_close(scaled.logits(*puzzle(scaled)) * 32**0.5, method.logits(*puzzle(method)))


# ---- who sees what --------------------------------------------------------------------------------------------------

def test_hidden_pixels_do_not_reach_the_summary_nor_context_pixels_the_candidates():
    method = selfie().eval()
    seen: list[Tensor] = []
    method.pool.register_forward_hook(lambda module, given, out: seen.append(out[:, 0]))
    x, order = puzzle(method)
    for places in (order[:, :4], order[:, 4:]):
        y = repaint(x, method, places)
        h, g = method.patch_features(x), method.patch_features(y)
        seen.clear()
        method.logits(x, order)
        method.logits(y, order)
        row = torch.arange(4)[:, None]
        same_u = torch.equal(seen[0], seen[1])
        if places.shape[1] == 4:
            assert same_u and not torch.allclose(h[row, order[:, :4]], g[row, order[:, :4]])
        else:
            assert not same_u and torch.equal(h[row, order[:, :4]], g[row, order[:, :4]])


@pytest.mark.parametrize("road", ["context", "candidates"])
def test_the_gradient_takes_both_roads(road, monkeypatch):
    """Cut one of the two uses of the patch features: the other still teaches the tower."""
    import notan.methods.selfie as module

    method = selfie()
    pick = module._pick

    def cut(x: Tensor, index: Tensor) -> Tensor:
        h, K = pick(x, index), method.targets
        return torch.cat([h[:, :K], h[:, K:].detach()] if road == "context" else [h[:, :K].detach(), h[:, K:]], 1)

    monkeypatch.setattr(module, "_pick", cut)
    method.loss(images(4), START)["loss"].backward()
    assert all(p.grad.abs().max() > 0 for p in (method.encoder.conv1.weight, method.positions, method.pool.u0))


@pytest.mark.parametrize("query", ["additive", "token", "place"])
def test_every_parameter_learns(query):
    method = selfie(query=query, dropout=0.0)
    method.loss(images(4), START)["loss"].backward()
    assert not [n for n, p in method.named_parameters() if p.grad is None or p.grad.abs().max() == 0]


def test_the_summary_knows_places_but_no_order():
    method = selfie().eval()
    h = method.patch_features(puzzle(method)[0])[:, :12]
    p = method.table()[:12]
    shuffle = torch.randperm(12)
    u = method.pool(h + p)[:, 0]
    torch.testing.assert_close(method.pool((h + p)[:, shuffle])[:, 0], u, atol=1e-9, rtol=0)
    nn.init.normal_(method.positions)
    p = method.table()[:12]
    assert not torch.allclose(method.pool(h + p)[:, 0], method.pool(h + p.flip(0))[:, 0])


def test_dropout_only_in_training():
    method, batch = selfie(dropout=0.5), images(4)
    order = method.puzzle(batch)
    assert not torch.equal(method.logits(*order), method.logits(*order))
    method.eval()
    assert torch.equal(method.logits(*order), method.logits(*order))


# ---- queries --------------------------------------------------------------------------------------------------------

def test_the_additive_summary_is_the_same_bias_for_every_place():
    method = selfie().eval()
    x, order = puzzle(method)
    bias = method.logits(x, order)
    method.query = "place"
    bias = bias - method.logits(x, order)
    torch.testing.assert_close(bias, bias[:, :1].expand_as(bias), atol=1e-9, rtol=0)
    assert bias.abs().max() > 1e-3


def test_the_best_assignment_does_not_depend_on_the_summary():
    method = selfie().eval()
    nn.init.normal_(method.positions)
    x, order = puzzle(method, rows=50)
    with_u = method.logits(x, order).detach().numpy()
    method.query = "place"
    for s, t in zip(with_u, method.logits(x, order).detach().numpy()):
        assert (linear_sum_assignment(-s)[1] == linear_sum_assignment(-t)[1]).all()


def test_the_token_query_lets_context_speak_to_places():
    method = selfie(query="token").eval()
    x, order = puzzle(method)
    s, t = method.logits(x, order), method.logits(repaint(x, method, order[:, 4:]), order)
    moved = t - s
    assert not torch.allclose(moved, moved[:, :1].expand_as(moved), atol=1e-6)


def test_the_place_query_has_no_pool():
    method = selfie(query="place").eval()
    x, order = puzzle(method)
    assert not hasattr(method, "pool")
    assert torch.equal(method.logits(x, order), method.logits(repaint(x, method, order[:, 4:]), order))


def test_axial_positions():
    method = selfie(positions="axial")
    assert method.positions.shape == (8, 32)
    row, column = method.positions[:4], method.positions[4:]
    for r in range(4):
        for c in range(4):
            assert torch.equal(method.table()[4 * r + c], row[r] + column[c])
    assert torch.equal(selfie().table(), selfie().positions)


# ---- the tower ------------------------------------------------------------------------------------------------------

def test_patches_go_through_the_tower_one_by_one():
    method = selfie().eval()
    x, _ = puzzle(method)
    h = method.patch_features(x)
    alone = method.encoder.trunk(x[1:2, :, 4:8, 8:12]).mean((2, 3))
    torch.testing.assert_close(h[1:2, 6], alone)


def test_fine_tuning_keeps_the_three_groups_and_has_a_fresh_fourth():
    method = selfie()
    method.loss(images(8), START)["loss"].backward()
    torch.optim.SGD(method.parameters(), lr=0.1).step()
    trained = method.encoder
    torch.manual_seed(1)
    whole = build_encoder({**trained.config, "last_group": 4}).double()
    fresh = {k: v.clone() for k, v in whole.state_dict().items()}
    left = whole.load_state_dict(trained.state_dict(), strict=False)
    assert not left.unexpected_keys and all(k.startswith(("layer4.", "bn_last.")) for k in left.missing_keys)
    now, learned = whole.state_dict(), trained.state_dict()
    assert all(torch.equal(now[k], learned[k]) for k in learned) and len(learned) > 30
    assert all(torch.equal(now[k], fresh[k]) for k in left.missing_keys)
    x = floats(images(2)["image"])
    torch.testing.assert_close(whole.eval().trunk(x, 3), trained.eval()(x))


def test_frozen_features_are_of_the_whole_picture():
    method, batch = example(4, torch.float64)
    method.eval()
    torch.testing.assert_close(method.encode(batch), method.encoder(floats(batch["image"])).mean((2, 3)))
    torch.testing.assert_close(method.dense(batch).mean((2, 3)), method.encode(batch))


def test_pictures():
    method, batch = example(4, torch.float32)
    method.eval()
    x, order = method.puzzle(batch)
    pictures = method.pictures(batch)
    assert torch.equal(pictures["image"], x)
    changed = (pictures["hidden"] != x).any(1).view(4, 4, 4, 4, 4).any(4).any(2).flatten(1)     # (B, N)
    hidden = torch.zeros(4, 16, dtype=torch.bool).scatter(1, order[:, :4], True)
    assert torch.equal(changed, hidden)
    assert not ((pictures["guess"] != x).any(1).view(4, 4, 4, 4, 4).any(4).any(2).flatten(1) & ~hidden).any()


def test_recipes_build():
    entry = catalogue.method("selfie")
    assert set(entry.recipes["small"]["method"]) <= {f.name for f in entry.flags}
    assert set(entry.helps) >= {f.name for f in entry.flags}
    assert entry.recipes["paper"]["encoder"]["last_group"] == 3 and entry.recipes["paper"]["encoder"]["preact"]
