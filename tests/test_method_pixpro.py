"""PixPro against the official function's numbers, and what must hold of its parts."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from ranks import spawn
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, normalize
from torch.nn.parallel import DistributedDataParallel

from notan import catalogue, world
from notan.errors import NotanError
from notan.losses.info_nce import pixel_info_nce
from notan.methods._example import images
from notan.methods._progress import Progress
from notan.methods.pixpro import PixPro, cells, consistency, correspondence, example, propagate, spread
from notan.nets.resnet import ResNet
from notan.nets.teacher import cosine_decay
from notan.runs.train import Step
from notan.views import colour
from notan.views.geometry import View, crop, crop_boxes
from notan.views.random import bernoulli, fold

START = Progress(step=0, steps=10, epoch=0, epochs=1)


def wave(*shape: int, a: float, b: float = 0.0) -> Tensor:
    """sin(a i + b), i = 1, 2, ... in raster order, float64: the input of the golden numbers."""
    return torch.sin(a * torch.arange(1, math.prod(shape) + 1, dtype=torch.float64) + b).view(shape)


def boxes(*rows: list[float]) -> Tensor:
    """Affine maps (B, 2, 3) of boxes x0, y0, x1, y1; x0 > x1 is a flipped view."""
    x0, y0, x1, y1 = torch.tensor(rows, dtype=torch.float64).unbind(1)
    zero = torch.zeros_like(x0)
    return torch.stack([torch.stack([x1 - x0, zero, x0], 1), torch.stack([zero, y1 - y0, y0], 1)], 1)


def pixpro(**settings) -> PixPro:
    torch.manual_seed(0)
    return PixPro(ResNet(16, 3, depth=10, width=8, stride=4), hidden=16, dim=8, **settings).double()


FULL = boxes([0, 0, 1, 1])
Q = boxes([.1, .1, .6, .7], [.6, 0, .1, .5], [0, 0, .3, .3])
K = boxes([.2, .2, .9, .9], [.3, .2, .8, .9], [.6, .6, 1, 1])


def fixed(rows: slice = slice(None), **settings) -> PixPro:
    """Three images with views Q and K, the last pair disjoint, and a target that is not the online network."""
    method = pixpro(**settings)
    for name, p in method.named_parameters():
        if name.startswith("target_"):
            p.data += 0.1 * wave(*p.shape, a=.7)
    one, two = (images(6)["image"].double() / 255).chunk(2)
    method.views = lambda batch: (View(one[rows], Q[rows]), View(two[rows], K[rows]))
    return method


def twice(method: PixPro) -> dict[str, Tensor]:
    """The terms of views that are the same four whole images."""
    view = View(images(4)["image"].double() / 255, FULL.expand(4, -1, -1))
    method.views = lambda batch: (view, view)
    return method.loss({}, START)


# ---- golden numbers ------------------------------------------------------------------------------

@pytest.mark.parametrize(("threshold", "value"), [(0.7, 0.0845370450), (1.5, -0.0139946322)])
def test_one_direction_equals_the_official_function(threshold, value):
    q, k = cells(wave(3, 5, 7, 7, a=.37)), cells(wave(3, 5, 7, 7, a=.53, b=1))
    c = consistency(q, k, correspondence(Q, K, (7, 7), threshold))
    assert -2 * c.mean().item() == pytest.approx(value, abs=1e-9)


def test_propagation_equals_the_official_module():
    x = cells(wave(2, 5, 3, 3, a=.37))
    y = propagate(x, x, 2.0)
    assert y.sum().item() == pytest.approx(14.0084573852, abs=1e-9)
    assert y[0, 0, 0].item() == pytest.approx(2.2508175776, abs=1e-9)


@pytest.mark.parametrize(("box", "threshold", "pairs"), [
    ([0, 0, 1, 1], 0.70, 49), ([0, 0, 1, 1], 0.71, 217), ([.2, .1, .6, .5], 0.70, 49), ([0, 0, 1, .5], 0.70, 133)])
def test_identical_boxes(box, threshold, pairs):
    """0.7 sits just under 1 / sqrt(2), the distance between side neighbours of a square cell."""
    assert correspondence(boxes(box), boxes(box), (7, 7), threshold).sum() == pairs


@pytest.mark.parametrize(("one", "two", "pairs"), [
    ([0, 0, .3, .3], [.6, .6, 1, 1], 0), ([0, 0, .5, 1], [.52, 0, 1, 1], 7), ([0, 0, .2, .2], [.21, 0, 1, 1], 16)])
def test_disjoint_boxes(one, two, pairs):
    assert correspondence(boxes(one), boxes(two), (7, 7), 0.7).sum() == pairs


# ---- correspondence and consistency --------------------------------------------------------------

def test_equal_views_give_the_least_loss():
    x = cells(wave(2, 5, 7, 7, a=.37))
    c = consistency(x, x, correspondence(FULL, FULL, (7, 7), 0.7).expand(2, -1, -1))
    torch.testing.assert_close(-2 * c, torch.full((2,), -2.0, dtype=torch.float64), atol=1e-5, rtol=0)


def test_views_that_do_not_meet_give_nothing():
    x = cells(wave(1, 5, 7, 7, a=.37)).requires_grad_()
    matched = correspondence(boxes([0, 0, .3, .3]), boxes([.6, .6, 1, 1]), (7, 7), 0.7)
    c = consistency(x, cells(wave(1, 5, 7, 7, a=.53)), matched)
    contrast, found = pixel_info_nce(x, cells(wave(1, 5, 7, 7, a=.53)), matched, tau=0.3)
    (grad,) = torch.autograd.grad(c.sum() + contrast.sum(), x)
    assert c.item() == 0 and contrast.item() == 0 and not found.any() and (grad == 0).all()


def test_a_flip_of_box_and_features_changes_nothing():
    q, k = wave(3, 5, 7, 7, a=.37), wave(3, 5, 7, 7, a=.53, b=1)
    flipped = K.clone()
    flipped[:, 0, 0], flipped[:, 0, 2] = -K[:, 0, 0], K[:, 0, 2] + K[:, 0, 0]
    a = consistency(cells(q), cells(k), correspondence(Q, K, (7, 7), 0.7))
    b = consistency(cells(q), cells(k.flip(3)), correspondence(Q, flipped, (7, 7), 0.7))
    torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


def test_swapping_the_views_transposes_the_matches():
    assert torch.equal(correspondence(Q, K, (7, 5), 0.9).mT, correspondence(K, Q, (7, 5), 0.9))


# ---- propagation ---------------------------------------------------------------------------------

def test_a_sharp_similarity_keeps_each_cell():
    x, v = cells(wave(1, 5, 3, 3, a=.37)), cells(wave(1, 5, 3, 3, a=.8))
    torch.testing.assert_close(propagate(x, v, 1e5), nn.functional.normalize(v, dim=2), atol=1e-6, rtol=0)


def test_equal_cells_add_up():
    x = wave(1, 1, 5, a=.37).expand(1, 9, 5)
    torch.testing.assert_close(propagate(x, x, 2.0), 9 * nn.functional.normalize(x, dim=2))


def test_scale_does_not_matter():
    x = cells(wave(2, 5, 3, 3, a=.37))
    torch.testing.assert_close(propagate(7 * x, 7 * x, 2.0), propagate(x, x, 2.0))


def test_a_blunt_similarity_has_finite_gradients():
    x = cells(wave(1, 5, 3, 3, a=.37)).requires_grad_()
    assert torch.isfinite(torch.autograd.grad(propagate(x, x, 0.5).sum(), x)[0]).all()


@pytest.mark.parametrize(("layers", "parts"), [(0, 0), (1, 1), (2, 4)])
def test_transform_layers(layers, parts):
    assert len(list(pixpro(layers=layers).g.children())) == parts


def test_the_transform_works_cell_by_cell():
    method = pixpro()
    x = cells(wave(2, 8, 4, 4, a=.37))
    v = x @ method.g[0].weight.flatten(1).T + method.g[0].bias
    torch.testing.assert_close(method.smooth(x), propagate(x, v, 2.0))


# ---- PixContrast ---------------------------------------------------------------------------------

def test_constant_similarities_of_pixcontrast():
    x = torch.ones(1, 49, 4, dtype=torch.float64)
    loss, found = pixel_info_nce(x, x, correspondence(FULL, FULL, (7, 7), 0.7), tau=0.3)
    assert found.all() and loss.item() == pytest.approx(math.log(49), abs=1e-9)


# ---- the assembled loss, line by line ------------------------------------------------------------

GAMMA, TAU, THRESHOLD, SIDE = 3.0, 0.5, 1.1, 4                          # none of them a default


def matches(one: Tensor, two: Tensor) -> list[tuple[int, int]]:
    """The pairs of cells of two views (2, 3) of an image that are less than THRESHOLD larger diagonals apart."""
    (w1, _, x1), (_, h1, y1) = one.tolist()
    (w2, _, x2), (_, h2, y2) = two.tolist()
    unit = max(math.hypot(w1 / SIDE, h1 / SIDE), math.hypot(w2 / SIDE, h2 / SIDE))
    places = [((i % SIDE + 0.5) / SIDE, (i // SIDE + 0.5) / SIDE) for i in range(SIDE**2)]
    return [(i, j) for i, (a, b) in enumerate(places) for j, (c, d) in enumerate(places)
            if math.dist((x1 + a * w1, y1 + b * h1), (x2 + c * w2, y2 + d * h2)) / unit < THRESHOLD]


def pixpro_of_an_image(x: Tensor, t: Tensor, pairs: list[tuple[int, int]], g: nn.Sequential) -> float:
    """-2 mean of cos(y_i, t_j) over the pairs, y the propagated x; 0 without pairs."""
    v = [g[0].weight.flatten(1) @ x_j + g[0].bias for x_j in x]
    y = [sum(cosine_similarity(x_i, x_j, dim=0).clamp(min=0)**GAMMA * normalize(v_j, dim=0) for x_j, v_j in zip(x, v))
         for x_i in x]
    return -2 * sum(cosine_similarity(y[i], t[j], dim=0).item() for i, j in pairs) / (len(pairs) + 1e-6)


def pixcontrast_of_an_image(x: Tensor, t: Tensor, pairs: list[tuple[int, int]]) -> float:
    """Mean over the cells i with a positive of -log(sum over positives / sum over all cells of the other view)."""
    e = [[math.exp(cosine_similarity(x_i, t_j, dim=0).item() / TAU) for t_j in t] for x_i in x]
    valid = sorted({i for i, _ in pairs})
    return sum(-math.log(sum(e[i][j] for k, j in pairs if k == i) / sum(e[i])) for i in valid) / len(valid)


@pytest.mark.parametrize("task", ["pixpro", "pixcontrast"])
def test_the_loss_is_the_formula(task):
    method = fixed(task=task, alpha=0.5, gamma=GAMMA, tau=TAU, threshold=THRESHOLD)
    (view1, _), (view2, _) = method.views({})
    map1, map2 = method.encoder.maps(view1), method.encoder.maps(view2)
    target1, target2 = method.target_encoder.maps(view1), method.target_encoder.maps(view2)
    x1, x2 = cells(method.projector(map1)), cells(method.projector(map2))
    t1, t2 = cells(method.target_projector(target1)), cells(method.target_projector(target2))
    there = [matches(a, b) for a, b in zip(Q, K)]
    back = [[(j, i) for i, j in pairs] for pairs in there]
    assert there[0] and there[1] and not there[2]
    if task == "pixpro":                                                # the mean is over all three images
        one = sum(pixpro_of_an_image(x1[n], t2[n], there[n], method.g) for n in range(3)) / 3
        two = sum(pixpro_of_an_image(x2[n], t1[n], back[n], method.g) for n in range(3)) / 3
        pixel = one + two
    else:                                                               # and here over the two that have a match
        one = sum(pixcontrast_of_an_image(x1[n], t2[n], there[n]) for n in range(2)) / 2
        two = sum(pixcontrast_of_an_image(x2[n], t1[n], back[n]) for n in range(2)) / 2
        pixel = (one + two) / 2
    p1, p2 = (method.instance_predictor(method.instance_projector(m)).mean((2, 3)) for m in (map1, map2))
    i1, i2 = (method.target_instance_projector(m).mean((2, 3)) for m in (target1, target2))
    instance = sum(-2 * cosine_similarity(p1[n], i2[n], dim=0) - 2 * cosine_similarity(p2[n], i1[n], dim=0)
                   for n in range(3)).item() / 3
    out = method.loss({}, START)
    assert out["pixel"].item() == pytest.approx(pixel, rel=1e-7)        # it divides by a float32 count of pairs
    assert out["instance"].item() == pytest.approx(instance, rel=1e-9)
    assert out["loss"].item() == pytest.approx(pixel + 0.5 * instance, rel=1e-7)
    assert out["overlap"].item() == pytest.approx(sum(len({i for i, _ in pairs}) for pairs in there) / (3 * SIDE**2))


@pytest.mark.parametrize("settings", [{"propagate": False}, {"layers": 0, "gamma": 1e6}])
def test_the_same_view_twice_gives_the_least_loss(settings):
    """Online and target network are equal, y_i = x_i up to its length, and each cell matches itself alone."""
    method = pixpro(alpha=1.0, **settings)
    method.instance_predictor = nn.Identity()
    assert {k: v.item() for k, v in twice(method).items() if k in ("loss", "pixel", "instance", "overlap")} == \
        pytest.approx({"loss": -8, "pixel": -4, "instance": -4, "overlap": 1}, abs=1e-5)


def test_cells_that_are_all_the_same_cost_pixcontrast_log_p():
    method = pixpro(task="pixcontrast")
    for projector in (method.projector, method.target_projector):
        nn.init.zeros_(projector[-1].weight)
        nn.init.ones_(projector[-1].bias)
    assert twice(method)["loss"].item() == pytest.approx(math.log(16), abs=1e-9)


def test_defaults_are_the_published_ones():
    defaults = {n: p.default for n, p in inspect.signature(PixPro).parameters.items() if n != "encoder"}
    assert defaults == {
        "task": "pixpro", "pixel": 1.0, "alpha": 0.0, "propagate": True, "gamma": 2.0, "layers": 1, "threshold": 0.7,
        "tau": 0.3, "momentum": 0.99, "hidden": 4096, "dim": 256, "crop": 0.08, "jitter": 1.0, "blur": (1.0, 0.1),
        "solarise": 0.2}


def test_views_are_byols_pair():
    batch = images(64)
    for view, which, blur, solarise in zip(pixpro().views(batch), (1, 2), (1.0, 0.1), (0.0, 0.2)):
        key = fold(batch["key"], which)
        at = crop_boxes(key, height=16, width=16, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3))
        x, affine = crop(batch["image"], at, bernoulli(key, "flip", 0.5), 16)
        x = colour.jitter(x, key, brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, p=0.8)
        x = colour.grayscale(x, key, 0.2)
        x = colour.blur(x, key, sigma=(0.1, 2.0), p=blur)
        torch.testing.assert_close(view, View(colour.solarise(x, key, threshold=0.5, p=solarise), affine))


# ---- one process = two processes ------------------------------------------------------------------

CASES = [{"task": "pixcontrast"}, {"layers": 2}]


def _one_step(rows: slice, settings: dict) -> dict[str, Tensor]:
    """The terms and gradients of some of the three images."""
    method = fixed(rows, **settings)
    model = DistributedDataParallel(Step(method), broadcast_buffers=False) if world.active() else Step(method)
    out = model({}, START)
    out["loss"].backward()
    grads = {f"grad {n}": p.grad.clone() for n, p in method.named_parameters() if p.grad is not None}
    return grads | {k: v.detach() for k, v in out.items()}


def _on_ranks(rank: int, size: int) -> list[dict[str, Tensor]]:
    return [_one_step((slice(0, 2), slice(2, 3))[rank], settings) for settings in CASES]


def test_an_image_without_a_match_on_one_of_two_ranks():
    """The first rank has the two images that match, the second the one that does not."""
    alone = [_one_step(slice(None), settings) for settings in CASES]
    for found in spawn(_on_ranks, 2):
        torch.testing.assert_close(found, alone, rtol=1e-6, atol=1e-9)


# ---- the method ----------------------------------------------------------------------------------

@pytest.mark.parametrize("settings", [{}, {"task": "pixcontrast"}, {"propagate": False}, {"layers": 0}, {"layers": 2},
                                      {"pixel": 0.0, "alpha": 1.0}, {"alpha": 0.5}])
def test_range_and_gradients(settings):
    method = pixpro(**settings)
    out = method.loss(images(8), START)
    out["loss"].backward()
    weighted = [w * out[n].item() for w, n in ((method.pixel, "pixel"), (method.alpha, "instance")) if w]
    assert out["loss"].item() == pytest.approx(sum(weighted))
    if "pixel" in out:
        low, high = (0, math.inf) if method.task == "pixcontrast" else (-4, 4)
        assert low <= out["pixel"] <= high and 0 <= out["overlap"] <= 1 and 0 <= out["spread"] <= 1
    for name, p in method.named_parameters():
        assert (p.grad is None) == name.startswith("target_") and p.requires_grad != name.startswith("target_"), name


def test_a_zero_weight_makes_no_heads_and_no_difference():
    plain, both = pixpro(), pixpro(alpha=1.0)
    assert not [n for n, _ in plain.named_parameters() if "instance" in n]
    assert not [n for n, _ in pixpro(pixel=0.0, alpha=1.0).named_parameters() if n.startswith(("projector", "g."))]
    a, b = plain.loss(images(8), START), both.loss(images(8), START)
    assert torch.equal(a["pixel"], b["pixel"]) and torch.equal(a["loss"], a["pixel"]) and "instance" not in a


def test_no_weight_at_all_is_refused():
    with pytest.raises(NotanError, match="no loss"):
        pixpro(pixel=0.0)


@pytest.mark.parametrize("task", ["pixpro", "pixcontrast"])
def test_swapping_the_views_changes_nothing(task):
    method = pixpro(task=task, alpha=1.0)
    view1, view2 = method.views(images(8))
    a = method.loss(images(8), START)["loss"]
    method.views = lambda batch: (view2, view1)
    torch.testing.assert_close(method.loss(images(8), START)["loss"], a)


def test_the_target_moves_only_after_a_step():
    method = pixpro(alpha=1.0)
    before = [p.clone() for n, p in method.named_parameters() if n.startswith("target_")]
    optimiser = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1)
    method.loss(images(8), START)["loss"].backward()
    optimiser.step()
    target = [p for n, p in method.named_parameters() if n.startswith("target_")]
    assert all(torch.equal(p, q) for p, q in zip(target, before))
    method.after_step(None, START)
    m = cosine_decay(0.99, 0.1)
    online = dict(method.named_parameters())
    for (name, p), q in zip(((n, p) for n, p in method.named_parameters() if n.startswith("target_")), before):
        torch.testing.assert_close(p, m * q + (1 - m) * online[name.removeprefix("target_")])


@pytest.mark.parametrize(("k", "m"), [(0, 0.99), (50, 0.995), (100, 1.0)])
def test_the_momentum_follows_a_cosine(k, m):
    assert cosine_decay(0.99, k / 100) == pytest.approx(m, abs=1e-12)


def test_updates_after_the_step_equal_updates_before_the_targets():
    """The order of the official code, written out: update k with momentum m_k, then the loss of step k."""
    def walk(before: bool) -> Tensor:
        method = pixpro()
        optimiser = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1)
        for step in range(3):
            progress = Progress(step=step, steps=3)
            if before:
                method.after_step(None, progress._replace(step=step - 1))
            optimiser.zero_grad()
            loss = method.loss(images(8), progress)["loss"]
            loss.backward()
            optimiser.step()
            if not before:
                method.after_step(None, progress)
        return loss.detach()

    torch.testing.assert_close(walk(True), walk(False), rtol=1e-12, atol=0)


def test_collapse_shows():
    x = torch.randn(64, 49, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert spread(x).item() == pytest.approx(1, abs=0.01)
    assert spread(torch.ones(4, 49, 32)).item() == pytest.approx(0, abs=1e-6)


def test_dense_features_and_their_mean():
    method, batch = example(4, torch.float64)
    method.eval()
    maps = method.dense(batch)
    assert maps.shape == (4, 64, 4, 4)
    torch.testing.assert_close(maps.mean((2, 3)), method.encode(batch))


def test_pictures_are_lit_where_cells_match():
    method, batch = example(4, torch.float32)
    pictures = method.eval().pictures(batch)
    view1, _ = method.views(batch)
    dark = pictures["view 1"] < view1.pixels - 1e-6
    assert set(pictures) == {"image", "view 1", "view 2"} and dark.any() and not dark.all()


def test_recipes_build():
    entry = catalogue.method("pixpro")
    assert entry.towers[0].annotation == "ConvEncoder" and set(entry.recipes) == {"paper", "small"}
    assert set(entry.recipes["small"]["method"]) <= {f.name for f in entry.flags}
    assert set(entry.helps) >= {f.name for f in entry.flags}
