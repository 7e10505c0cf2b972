"""cMIM: the terms against torch.distributions, the contrast's bounds, and what the objectives share."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import spawn
from torch import Tensor, nn
from torch.distributions import Normal

from notan.errors import NotanError
from notan.losses.latent import self_contrast, vae
from notan.methods._progress import Progress
from notan.methods.cmim import CMIM, example
from notan.nets.build import build_encoder, load_encoder, save_encoder
from notan.nets.mlp import MLP
from notan.nets.vit import ViT
from notan.views.random import normal

NOW = Progress(3, 10, 0, 1)


def tiny(objective: str = "cmim", **options) -> tuple[CMIM, dict]:
    torch.manual_seed(0)
    method = CMIM(MLP(16, hidden=[24, 20]), objective=objective, latent=8, decoder_hidden=[20, 24], **options)
    return method.double(), example(6, torch.float64)[1]


# ---- the contrast, equation 3 ----------------------------------------------------------------------------------------

def direct(z: Tensor, tau: float) -> Tensor:
    """Equation 3 as it is written, one row at a time."""
    rows = []
    for i in range(len(z)):
        s = torch.stack([F.cosine_similarity(z[i], z[j], dim=0) for j in range(len(z)) if j != i])
        own = math.exp(1 / tau)
        rows.append(math.log(own) - torch.log(own + (s / tau).exp().mean()))
    return torch.stack(rows)


@pytest.mark.parametrize("tau", [0.1, 1.0, 5.0])
def test_contrast_has_its_closed_forms(tau):
    equal = torch.ones(5, 3, dtype=torch.float64)
    orthogonal = torch.eye(4, dtype=torch.float64) * 3
    antipodal = torch.tensor([[1.0, 2.0], [-1.0, -2.0]], dtype=torch.float64)
    for z, wanted in ((equal, -math.log(2)), (orthogonal, -math.log1p(math.exp(-1 / tau))),
                      (antipodal, -math.log1p(math.exp(-2 / tau)))):
        torch.testing.assert_close(self_contrast(z, tau=tau), torch.full((len(z),), wanted, dtype=z.dtype))
    assert self_contrast(equal[:1], tau=tau).item() == 0


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 9), st.integers(2, 6), st.sampled_from([0.1, 0.5, 2.0]), st.integers(0, 10**6))
def test_contrast_is_bounded_scale_free_and_as_written(n, d, tau, seed):
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(n, d, generator=g, dtype=torch.float64)
    scale = torch.rand(n, 1, generator=g, dtype=torch.float64) + 0.1
    order = torch.randperm(n, generator=g)
    value = self_contrast(z, tau=tau)
    assert (value <= 1e-12).all() and (value >= -math.log(2) - 1e-12).all()
    torch.testing.assert_close(value, direct(z, tau), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(self_contrast(z * scale, tau=tau), value, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(self_contrast(z[order], tau=tau), value[order], rtol=1e-9, atol=1e-12)


def test_contrast_is_info_nce_with_shifted_negatives():
    z, tau = torch.randn(7, 4, dtype=torch.float64), 0.3
    logits = F.normalize(z, dim=1) @ F.normalize(z, dim=1).T / tau
    shifted = torch.where(torch.eye(7, dtype=torch.bool), logits, logits - math.log(6))
    wanted = -F.cross_entropy(shifted, torch.arange(7), reduction="none")
    torch.testing.assert_close(self_contrast(z, tau=tau), wanted)


def test_contrast_does_not_count_its_negatives():
    one, other = torch.randn(1, 5, dtype=torch.float64), torch.randn(1, 5, dtype=torch.float64)
    values = [self_contrast(torch.cat([one, other.expand(n, -1)]), tau=0.5)[0] for n in (1, 7, 100)]
    torch.testing.assert_close(torch.stack(values), values[0].expand(3))


def test_contrast_pushes_along_the_sphere_and_fades_with_temperature():
    z = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    self_contrast(z, tau=0.5).sum().backward()
    torch.testing.assert_close((z.grad * z.detach()).sum(1), torch.zeros(6, dtype=torch.float64))
    assert z.grad.abs().max() > 1e-3
    far = self_contrast(z.detach(), tau=1e6)
    torch.testing.assert_close(far, torch.full_like(far, -math.log(2)), rtol=0, atol=1e-5)


# ---- the loss, equations 1 to 5 --------------------------------------------------------------------------------------

def terms(method: CMIM, batch: dict) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """z, log p(x|z), log q and log P of each row, by torch.distributions."""
    x = method.whole(batch).double()
    mu, log_sigma = method.posterior(x)
    z = mu + log_sigma.exp() * normal(batch["key"], "latent", 8)
    log_px = -F.binary_cross_entropy(method.decoder.paint(z), x, reduction="none").sum((1, 2, 3))
    return z, log_px, Normal(mu, log_sigma.exp()).log_prob(z).sum(1), Normal(0.0, 1.0).log_prob(z).sum(1)


def test_objectives_agree_with_their_definitions():
    method, batch = tiny()
    z, log_px, log_q, log_p = terms(method, batch)
    wanted = {
        "mim": -log_px - 0.5 * (log_q + log_p), "cmim": -log_px - 0.5 * (log_q + log_p) - direct(z, method.tau),
        "vae": -log_px + log_q - log_p,
    }
    for objective, rows in wanted.items():
        same, _ = tiny(objective)
        torch.testing.assert_close(same.loss(batch, NOW)["loss"], rows.mean(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(vae(log_px, log_q, log_p), -log_px - 0.5 * (-2 * log_q + 2 * log_p))


def test_the_contrast_is_all_that_cmim_adds():
    gradients = {}
    for objective in ("cmim", "mim"):
        method, batch = tiny(objective)
        out = method.loss(batch, NOW)
        (out["loss"] + (method.contrast(terms(method, batch)[0]).mean() if objective == "cmim" else 0)).backward()
        gradients[objective] = [p.grad for p in method.parameters()], out
    cmim, mim = gradients["cmim"], gradients["mim"]
    torch.testing.assert_close(cmim[1]["loss"] - mim[1]["loss"], cmim[1]["contrast"], rtol=1e-9, atol=1e-12)
    for a, b in zip(cmim[0], mim[0]):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def trained(objective: str, without: bool = False, **options) -> list[Tensor]:
    """The weights after four steps, without equation 3's term if so asked."""
    method, batch = tiny(objective, **options)
    if without:
        method.contrast = lambda z: z.new_zeros(len(z))
    optimiser = torch.optim.AdamW(method.parameters(), lr=1e-2)
    for step in range(4):
        optimiser.zero_grad()
        method.loss({**batch, "key": batch["key"] + step}, NOW)["loss"].backward()
        optimiser.step()
    return [p.detach() for p in method.parameters()]


def test_without_the_contrast_training_is_bit_identical_to_mim():
    mim = trained("mim")
    for same in (trained("cmim", without=True), trained("mim", tau=0.9)):           # tau has no part in MIM
        assert all(torch.equal(a, b) for a, b in zip(mim, same))
    assert not all(torch.equal(a, b) for a, b in zip(mim, trained("cmim")))
    assert not any(torch.equal(a, b) for a, b in zip(mim, tiny("mim")[0].parameters()))


def test_a_mean_reconstruction_is_the_sum_over_its_values():
    (a, batch), (b, _) = tiny(), tiny(recon_reduction="mean")
    total, mean = (m.loss(batch, NOW)["reconstruction"] for m in (a, b))
    torch.testing.assert_close(total / (3 * 16 * 16), mean)


def test_the_posterior_cannot_become_a_point():
    method, batch = tiny()
    with torch.no_grad():
        method.log_sigma.weight.zero_()
        method.log_sigma.bias.fill_(-1e4)
        method.encoder.linear.weight.zero_()
        method.encoder.linear.bias.zero_()
        method.decoder.output.bias.fill_(1e5)
    mu, log_sigma = method.posterior(method.whole(batch))
    assert (log_sigma == -6).all() and (mu == 0).all()
    out = method.loss(batch, NOW)
    out["loss"].backward()
    assert torch.isfinite(out["loss"]) and all(torch.isfinite(p.grad).all() for p in method.parameters())


def test_the_autoencoder_has_no_variance_to_train():
    method, batch = tiny("ae")
    method.loss(batch, NOW)["loss"].backward()
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)
    other = {**batch, "key": batch["key"] + 1}
    assert torch.equal(method.loss(batch, NOW)["loss"], method.loss(other, NOW)["loss"])


# ---- precision -------------------------------------------------------------------------------------------------------

def sharp(**options) -> tuple[CMIM, dict]:
    """A float32 method whose sigma lies just above its floor, as after training."""
    method, batch = tiny(**options)
    with torch.no_grad():
        method.log_sigma.weight.mul_(0.1)
        method.log_sigma.bias.fill_(-8)
    return method.float(), batch


@pytest.mark.parametrize("objective", ["mim", "cmim", "vae"])
def test_bf16_autocast_leaves_the_gradient_its_direction(objective):
    found = []
    for enabled in (False, True):
        method, batch = sharp(objective=objective, tau=1.0)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = method.loss(batch, NOW)
        out["loss"].backward()
        found.append({n: p.grad for n, p in method.named_parameters()})
    for name, exact in found[0].items():
        assert F.cosine_similarity(exact.flatten(), found[1][name].flatten(), dim=0) > 0.99, name


def test_the_latent_arithmetic_is_at_least_float32():
    method, batch = sharp()
    seen = {}
    decoder = method.decoder.log_prob
    method.decoder.log_prob = lambda z, x: seen.setdefault("decoder", z.dtype) and decoder(z, x)
    contrast = method.contrast
    method.contrast = lambda z: seen.setdefault("contrast", contrast(z).dtype) and contrast(z)
    with torch.autocast("cpu", torch.bfloat16):
        assert method.encoder.features(method.whole(batch)).dtype == torch.bfloat16
        mu, log_sigma = method.posterior(method.whole(batch))
        assert mu.dtype == log_sigma.dtype == torch.float32 and (log_sigma - -5.87).abs().max() < 0.1
        method.loss(batch, NOW)
    assert seen == {"decoder": torch.float32, "contrast": torch.float32}
    method, batch = tiny()
    assert {t.dtype for t in method.posterior(method.whole(batch))} == {torch.float64}


def test_a_method_of_bf16_weights_runs():
    """The posterior is float32 here too; what the decoder reads is in the dtype of its weights."""
    method, batch = sharp()
    out = method.bfloat16().loss({**batch, "image": method.whole(batch).bfloat16()}, NOW)
    out["loss"].backward()
    assert torch.isfinite(out["loss"])


# ---- other decoders --------------------------------------------------------------------------------------------------

class Convolutional(nn.Module):
    """A code to 4 x 4 maps to 16 x 16 pixels, with normal pixels; its embedding is the mean over the last map."""

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.start = nn.Linear(latent, 6 * 16)
        self.grow = nn.Sequential(nn.ReLU(), nn.ConvTranspose2d(6, 5, 2, stride=2), nn.ReLU(), nn.Upsample(scale_factor=2))
        self.output = nn.Conv2d(5, 3, 1)

    def maps(self, z: Tensor) -> Tensor:
        return self.grow(self.start(z).view(-1, 6, 4, 4))

    def hidden(self, z: Tensor, x: Tensor) -> Tensor:
        return self.maps(z).mean((2, 3))

    def log_prob(self, z: Tensor, x: Tensor) -> Tensor:
        return Normal(self.output(self.maps(z)), 1.0).log_prob(x).sum((1, 2, 3))

    def paint(self, z: Tensor) -> Tensor:
        return self.output(self.maps(z)).clamp(0, 1)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_any_decoder_with_the_three_parts_can_take_the_place_of_the_own_one(reduction):
    method, batch = tiny(recon_reduction=reduction, embedding="decoder")
    method.decoder = Convolutional(8).double()
    out = method.loss(batch, NOW)
    out["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.parameters())
    x = method.whole(batch).double()
    mu, log_sigma = method.posterior(x)
    z = mu + log_sigma.exp() * normal(batch["key"], "latent", 8)
    wanted = -method.decoder.log_prob(z, x).mean() / (1 if reduction == "sum" else 3 * 16 * 16)
    torch.testing.assert_close(out["reconstruction"], wanted.detach())
    h = method.encode(batch)
    assert h.shape == (6, 5)
    maps = method.decoder.maps(mu)
    weight, bias = method.decoder.output.weight.flatten(1), method.decoder.output.bias
    torch.testing.assert_close(h @ weight.T + bias, method.decoder.output(maps).mean((2, 3)))
    assert all(p.shape == (6, 3, 16, 16) for p in method.pictures(batch).values())


# ---- embeddings ------------------------------------------------------------------------------------------------------

def test_informative_embedding_is_what_the_output_layer_reads():
    method, batch = tiny(embedding="decoder")
    h, again = method.encode(batch), method.encode({**batch, "key": batch["key"] + 5})
    assert h.shape == (6, 24) and torch.equal(h, again)
    mu, _ = method.posterior(method.whole(batch))
    logits = h @ method.decoder.output.weight.T + method.decoder.output.bias
    torch.testing.assert_close(logits.sigmoid().view(-1, 3, 16, 16), method.decoder.paint(mu))


@pytest.mark.parametrize("make", [lambda: MLP(16, hidden=[24, 20]), lambda: ViT(16, patch=4, dim=32, depth=1, heads=2)])
def test_an_exported_encoder_gives_mu(make, tmp_path):
    torch.manual_seed(0)
    method, batch = CMIM(make(), latent=8, decoder_hidden=[16]), example(3, torch.float32)[1]
    save_encoder(method.encoder, tmp_path)
    with torch.no_grad():
        loaded = load_encoder(tmp_path)
        assert torch.equal(loaded.features(method.whole(batch)), method.eval().encode(batch))
        assert loaded.maps(method.whole(batch)).shape[1] == 8


def test_an_mlp_is_built_by_name():
    encoder = build_encoder("mlp:hidden=[32,16],image_size=8,channels=1")
    assert encoder.dim == 16 and encoder.features(torch.rand(2, 1, 8, 8)).shape == (2, 16)
    with pytest.raises(NotanError, match="without hidden layers"):
        MLP(8, hidden=[])


@pytest.mark.parametrize("wrong", [{"tau": 0.0}, {"objective": "gan"}, {"embedding": "z"}, {"recon_reduction": "max"}])
def test_impossible_settings_are_named(wrong):
    with pytest.raises(NotanError, match=next(iter(wrong))):
        CMIM(MLP(8), **wrong)


def _on_ranks(rank: int, size: int) -> list[Tensor]:
    method, batch = tiny(tau=1.0)
    rows = slice(0, 4) if rank == 0 else slice(4, 6)
    out = method.loss({k: v[rows] for k, v in batch.items()}, NOW)
    out["loss"].backward()
    from notan import world

    return [out["loss"].detach(), *(world.total(p.grad) / size for p in method.parameters())]


def test_two_uneven_ranks_equal_one():
    method, batch = tiny(tau=1.0)
    loss = method.loss(batch, NOW)["loss"]
    loss.backward()
    for found in spawn(_on_ranks, 2):
        for a, b in zip(found, [loss.detach(), *(p.grad for p in method.parameters())]):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
