"""SimCLR: equation 1 and algorithm 1 written out, and what its views must be."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from notan.errors import NotanError
from notan.methods._example import images
from notan.methods._progress import Progress
from notan.methods.simclr import RECIPES, SimCLR, example
from notan.nets.vit import ViT
from notan.runs import optim
from notan.views import colour
from notan.views.geometry import crop, crop_boxes
from notan.views.random import bernoulli, fold

START = Progress()


def tiny(channels: int = 3, **settings) -> SimCLR:
    torch.manual_seed(0)
    encoder = ViT(16, channels, patch=4, dim=16, depth=1, heads=2)
    return SimCLR(encoder, hidden=16, dim=8, **settings).double()


def algorithm_1(z: list[Tensor], tau: float) -> float:
    """The paper's pseudocode with z_1, z_2 the views of the first picture, and so on."""
    def s(i: int, j: int) -> float:
        return float(z[i] @ z[j] / (z[i].norm() * z[j].norm()))

    def loss(i: int, j: int) -> float:
        return -math.log(math.exp(s(i, j) / tau) / sum(math.exp(s(i, k) / tau) for k in range(len(z)) if k != i))

    return sum(loss(2 * k, 2 * k + 1) + loss(2 * k + 1, 2 * k) for k in range(len(z) // 2)) / len(z)


@pytest.mark.parametrize("tau", [0.1, 0.5, 2.0])
def test_the_loss_is_algorithm_1(tau):
    method, batch = tiny(tau=tau), images(6)
    x = torch.cat([method.view(batch, 1), method.view(batch, 2)])
    z = method.projector(method.encoder.features(x)).detach()
    expected = algorithm_1([z[i + 6 * which] for i in range(6) for which in (0, 1)], tau)
    assert method.loss(batch, START)["loss"].item() == pytest.approx(expected, rel=1e-9)


class Fixed(nn.Module):
    """A projector that gives these z whatever it is shown."""

    def __init__(self, z: Tensor) -> None:
        super().__init__()
        self.z = nn.Parameter(z)

    def forward(self, h: Tensor) -> Tensor:
        return self.z


def test_collapse_costs_log_2n_minus_1_and_its_gradient_is_zero():
    method = tiny(tau=0.1)
    method.projector = Fixed(torch.ones(10, 8).double())
    loss = method.loss(images(5), START)["loss"]
    loss.backward()
    assert loss.item() == pytest.approx(math.log(9), abs=1e-9)
    assert method.projector.z.grad.abs().max() < 1e-9


def test_partners_that_agree_and_strangers_that_do_not_cost_nothing():
    method = tiny(tau=0.05)
    method.projector = Fixed(torch.eye(4).double().repeat(2, 1))
    assert method.loss(images(4), START)["loss"].item() < 1e-7


def test_golden_number():
    """z of view v of picture i is sin(0.7 i + 1.3 j + 0.5 v), j = 0..4; algorithm 1 by hand in plain Python."""
    i, j = torch.arange(4).double()[:, None], torch.arange(5).double()
    method = tiny(tau=0.5)
    method.projector = Fixed(torch.cat([torch.sin(0.7 * i + 1.3 * j), torch.sin(0.7 * i + 1.3 * j + 0.5)]))
    assert method.loss(images(4), START)["loss"].item() == pytest.approx(1.369439, abs=1e-6)


def test_both_views_learn():
    method = tiny()
    z = torch.randn(8, 8, generator=torch.Generator().manual_seed(1)).double()
    method.projector = Fixed(z)
    method.loss(images(4), START)["loss"].backward()
    assert (method.projector.z.grad.abs().amax(1) > 1e-6).all()


def test_views_are_two_and_belong_to_the_key():
    method, batch = tiny(), images(8)
    first, second = method.view(batch, 1), method.view(batch, 2)
    assert (first - second).abs().flatten(1).amax(1).gt(0.01).all()
    assert torch.equal(first, method.view(batch, 1))
    other = method.view({**batch, "key": batch["key"] + 1}, 1)
    assert (first - other).abs().flatten(1).amax(1).gt(0.01).all()
    assert first.min() >= 0 and first.max() <= 1


def test_views_are_the_papers():
    """Appendix A: crop and flip, colour of strength 1, grey, blur, in this order."""
    batch = images(64)
    for which in (1, 2):
        key = fold(batch["key"], which)
        boxes = crop_boxes(key, height=16, width=16, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3))
        x = crop(batch["image"], boxes, bernoulli(key, "flip", 0.5), 16).pixels
        x = colour.jitter(x, key, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, p=0.8)
        x = colour.grayscale(x, key, 0.2)
        torch.testing.assert_close(tiny().view(batch, which), colour.blur(x, key, sigma=(0.1, 2.0), p=0.5))


def test_the_papers_rate_is_4_8_at_a_batch_of_4096():
    paper = RECIPES["paper"]
    assert paper["batch"] == 4096
    assert optim.complete(paper["optimiser"], batch=4096, lr=None)["lr"] == pytest.approx(4.8)


def test_without_random_operations_the_views_are_the_picture():
    method, batch = tiny(crop=1.0, flip=0.0, jitter=0.0, grey=0.0, blur=0.0), images(16)
    batch["image"] = torch.full_like(batch["image"], 100)               # a crop of area 1 may still change its shape
    torch.testing.assert_close(method.view(batch, 1), torch.full((16, 3, 16, 16), 100 / 255))


def test_one_channel_works_and_stays_one_channel():
    method, batch = tiny(channels=1), images(6, channels=1)
    method.loss(batch, START)["loss"].backward()
    assert method.view(batch, 1).shape == (6, 1, 16, 16) and method.pictures(batch)["view 1"].shape[1] == 1


def test_what_is_used_downstream_is_before_the_projector():
    method, batch = example(5, torch.float32)
    method.eval()
    h = method.encode(batch)
    assert h.shape == (5, 32)
    for p in method.projector.parameters():
        nn.init.zeros_(p)
    assert torch.equal(method.encode(batch), h)


def test_a_temperature_of_zero_and_a_single_picture_are_refused():
    with pytest.raises(NotanError, match="tau"):
        tiny(tau=0.0)
    method = tiny()
    method.projector = Fixed(torch.ones(2, 8).double())
    with pytest.raises(NotanError, match="no negatives"):
        method.loss(images(1), START)
