"""MAE: what the paper's section 3 promises, and numbers that the official functions print."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from notan.errors import NotanError
from notan.losses.regression import masked_mse
from notan.methods._example import images
from notan.methods._progress import Progress
from notan.methods.mae import MAE, example
from notan.nets.pixels import patchify
from notan.nets.vit import ViT

START = Progress()


def tiny(size: int = 16, channels: int = 3, patch: int = 4, mean=(0.5,), std=(0.5,), **settings) -> MAE:
    torch.manual_seed(0)
    encoder = ViT(size, channels, patch=patch, dim=16, depth=1, heads=2, mean=mean, std=std)
    return MAE(encoder, decoder_dim=16, decoder_depth=1, decoder_heads=2, **settings).double()


@pytest.mark.parametrize(("ratio", "hidden"), [(0.75, 147), (0.6, 118), (0.5, 98), (0.7, 138)])
def test_the_number_of_hidden_patches_is_the_official_one(ratio, hidden):
    mask = tiny(size=28, patch=2, mask_ratio=ratio).mask(images(5, 28))
    assert mask.shape == (5, 196) and (mask.sum(1) == hidden).all()


def test_the_encoder_computes_visible_tokens_only():
    method, batch = example(4, torch.float64)
    shapes = []
    method.encoder.norm.register_forward_hook(lambda module, args, out: shapes.append(out.shape))
    method.loss(batch, START)
    assert shapes == [(4, 1 + 4, 32)]                                   # the class token and 16 - 12 patches


def test_nothing_is_painted_from_what_is_hidden():
    method = tiny()
    batch = images(3)
    mask = method.mask(batch)
    x = method.view(batch).double().requires_grad_()
    method.decoder(method.encoder(x, mask), mask).square().sum().backward()
    moved = patchify(x.grad, 4).abs().amax(-1) > 0                      # (B, N)
    assert torch.equal(moved, ~mask)


def golden() -> tuple[Tensor, Tensor, Tensor]:
    image = torch.arange(768).double().mul(0.01).sin().view(1, 3, 16, 16)
    pred = torch.arange(576).double().mul(0.02).add(0.5).sin().view(1, 3, 192)
    return image, torch.tensor([[True, False, True, True]]), pred


@pytest.mark.parametrize(("norm_pix", "mean", "tokens"), [
    (False, 1.162843, [0.865960, 1.250416, 1.372153]),
    (True, 1.581064, [1.661593, 1.540777, 1.540821]),
])
def test_golden_losses(norm_pix, mean, tokens):
    """A picture of four patches; the second is visible."""
    method = tiny(patch=8, mean=(0.0,), std=(1.0,), norm_pix=norm_pix)
    image, mask, pred = golden()
    error = masked_mse(pred, method.target(image, mask))    # (1, 3)
    torch.testing.assert_close(error, torch.tensor([tokens]).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(error.mean(), torch.tensor(mean).double(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("norm_pix", [True, False])
def test_the_loss_is_the_mean_over_hidden_patches_of_equation_5(norm_pix):
    method = tiny(norm_pix=norm_pix, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    batch = images(3)
    x, mask = method.view(batch).double(), method.mask(batch)
    pred = method.decoder(method.encoder(x, mask), mask)
    errors = []
    for b in range(3):
        hidden = [n for n in range(16) if mask[b, n]]
        for m, n in enumerate(hidden):
            row, column = 4 * (n // 4), 4 * (n % 4)
            patch = [(float(x[b, c, row + i, column + j]) - (0.4, 0.5, 0.6)[c]) / (0.2, 0.3, 0.4)[c]
                     for i in range(4) for j in range(4) for c in range(3)]
            t = torch.tensor(patch).double()
            if norm_pix:
                t = (t - t.mean()) / (((t - t.mean()) ** 2).sum() / 47 + 1e-6).sqrt()
            errors.append(((pred[b, m] - t) ** 2).mean())
    torch.testing.assert_close(method.loss(batch, START)["loss"], torch.stack(errors).mean(), atol=1e-7, rtol=1e-7)


class Perfect(nn.Module):
    """A decoder that knows the answer."""

    def __init__(self, method: MAE, batch: dict) -> None:
        super().__init__()
        self.answer = method.target(method.view(batch), method.mask(batch))

    def forward(self, z: Tensor, mask: Tensor) -> Tensor:
        return self.answer


@pytest.mark.parametrize("norm_pix", [True, False])
def test_a_perfect_painter_has_no_loss_and_paints_the_picture_itself(norm_pix):
    method = tiny(norm_pix=norm_pix, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    batch = images(3)
    method.decoder = Perfect(method, batch)
    assert method.loss(batch, START)["loss"] < 1e-12
    shown = method.pictures(batch)
    torch.testing.assert_close(shown["painted"], shown["crop"].double(), atol=1e-5, rtol=0)


def test_pictures_keep_what_was_visible_and_grey_what_was_hidden():
    method, batch = example(4, torch.float32)
    shown, mask = method.pictures(batch), method.mask(batch)
    crop, seen, painted = (patchify(shown[name], 4) for name in ("crop", "seen", "painted"))
    assert torch.equal(seen[~mask], crop[~mask]) and (seen[mask] == 0.5).all()
    torch.testing.assert_close(painted[~mask], crop[~mask])
    again = method.pictures(batch)
    assert all(torch.equal(shown[name], again[name]) for name in shown)


def test_one_channel_and_odd_grids_work():
    method = tiny(size=28, channels=1, patch=4)
    batch = images(4, 28, channels=1)
    method.loss(batch, START)["loss"].backward()
    assert method.encode(batch).shape == (4, 16) and method.dense(batch).shape == (4, 16, 7, 7)


def test_pictures_larger_than_the_encoder_are_cropped_and_resized():
    method = tiny(size=16)
    batch = images(4, 20)
    assert method.view(batch).shape == (4, 3, 16, 16) and method.encode(batch).shape == (4, 16)


def test_an_impossible_share_is_refused():
    with pytest.raises(NotanError, match=r"mask ratio 0\.99 of 16 tokens"):
        tiny(mask_ratio=0.99)
