"""cMIM: a variational autoencoder turned inside out, whose codes also push each other apart.

Livne, "cMIM: A Contrastive Mutual Information Framework for Unified Generative and Discriminative Representation
Learning" (arXiv 2502.19642, 2025), and "Contrastive Mutual Information Learning: Toward Robust Representations without
Positive-Pair Augmentations" (arXiv 2509.21511, 2025). They are taken to state one method, which this file holds for
pictures. Their texts could not be read: (3) and (4) are from the company's later code (NVIDIA KERMT, for molecules), (2)
is A-MIM as in SentenceMIM (Livne, Swersky and Fleet, arXiv 2003.02645; the Mutual Information Machine is 1910.03175).

**What it is.** An encoder gives each picture a Gaussian code, a decoder paints the picture back. Where a VAE rewards a
*broad* posterior q, MIM rewards a *sharp* one, so the codes carry as much of the picture as they can and do not
collapse. cMIM adds that a code must be told from the codes of the other pictures in the batch: the code is its own
positive, with similarity 1, so no second view is needed. For a batch of B pictures:

    z = mu(x) + sigma(x) n,  n ~ N(0, I);        q(z|x) = N(mu, sigma^2),  P(z) = N(0, I)              (1)
    L_MIM = -log p(x|z) - (log q(z|x) + log P(z)) / 2                                                  (2)
    log p(k=1|x_i, z_i) = 1/tau - log( exp(1/tau) + mean over j != i of exp(cos(z_i, z_j) / tau) )     (3)
    L = L_MIM - log p(k=1|x, z), all weights one, mean over the batch                                  (4)
    VAE, for comparison:  -log p(x|z) + log q(z|x) - log P(z);  autoencoder: -log p(x|mu)              (5)

The mean in (3), where InfoNCE has a sum, keeps its value in [-log 2, 0] whatever the batch. *Informative embeddings*
are the second idea: take the decoder's last hidden layer as features, here at z = mu(x); it costs no training.

**When it helps.** You want to generate, or reconstruct, *and* to have features, or you know of no augmentation that
keeps the meaning of your pictures. The contrast is weak by design: at tau = 0.1 orthogonal codes leave 0.00005 nats of
it against a hundred of reconstruction, so expect features like MIM's; watch `contrast` move. Nothing in (2) wants a
wide posterior, so sigma soon lies at its floor of e^-6, and MIM is nearly an autoencoder whose codes are kept small.

**What it costs.** One pass through the encoder and one through a decoder per picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from notan import world
from notan.errors import NotanError
from notan.losses import latent
from notan.methods._progress import Progress
from notan.nets.headed import Headed
from notan.nets.protocols import ImageEncoder
from notan.views.geometry import floats, resize
from notan.views.random import normal

CARD = {
    "title": "cMIM: A Contrastive Mutual Information Framework", "arxiv": "2502.19642", "year": 2025,
    "needs": ["image"], "task": "features", "encoder": "mlp", "exports": ["safetensors", "onnx"],
    "exports_why": "its features are a linear layer above the encoder, which no stock class of transformers has",
    "claim": "Adding a contrast of each code with the codes of the batch, without augmented views, makes MIM's codes "
             "better for classification at equal reconstruction, with less need of a large batch than InfoNCE; the "
             "decoder's hidden layer is a better feature than the code.",
    "paper": "Reported as z-scores and ranks over MNIST-like picture sets and molecule properties (ESOL, FreeSolv, "
             "Lipophilicity): ahead of MIM and InfoNCE. No plain accuracy is in the abstracts. Contested in review: the "
             "second paper was submitted to ICLR 2026 and not accepted; its reviewers name the small data, ranks in place "
             "of accuracies, no ablation of tau, the code's size or informative embeddings, and few baselines.",
    "cost": "One pass through the encoder and one through a small decoder per picture.",
    "deviations": [
        "Written from the abstracts, their reviews and the company's later code for molecules (KERMT), as the papers' "
        "texts could not be read. The two papers are taken to state one method, with the loss of that code.",
        "From that code: the contrast, unit weights, tau 0.1 and the floor of sigma. Ours, for pictures: the widths, the "
        "code of 64 values, AdamW at 1e-3 without decay, batch and epochs.",
        "log p(x|z) is a sum over pixels, as the formula has it; that code takes the mean over tokens "
        "(recon_reduction=mean is the counterpart, over pixels).",
        "Informative embeddings are taken at z = mu(x), which is our choice.",
        "KERMT's options that multiply log q and log P, or their gradients, by 1/d are not here (off by default there).",
        "Negatives are the codes of all processes; the company's code uses those of one device.",
        "The floor of sigma, e^-6, is approached smoothly; the company's code cuts off there, which ends the gradient.",
        "An exported encoder gives mu, also when embedding=decoder; `notan embed` gives what embedding says.",
        "The papers' text and molecule models are not here.",
    ],
    "floor": {"data": "digits", "metric": "reconstruction", "steps": 60, "value": 30.0, "random": 44.7},
}

RECIPES = {
    "paper": {
        "encoder": {"name": "mlp", "hidden": [400, 400]},
        "optimiser": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.0},
        "batch": 128, "epochs": 100, "warmup": 0.0, "method": {},
    },
    "small": {
        "encoder": {"name": "mlp", "hidden": [400, 400]},
        "optimiser": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.0},
        "batch": 128, "epochs": 20, "warmup": 0.05, "method": {},
    },
}

LOG_SIGMA_MIN = -6.0                                                    # part of the method: every term wants less sigma


class Decoder(Protocol):
    """What (2) asks of p(x|z); give `method.decoder` any module of these parts before you train it.

    z: codes (B, d). x: pictures (B, C, S, S) in [0, 1]. `hidden` is what the output layer reads, one vector a picture
    (a convolutional decoder averages it over places, an autoregressive one reads x).
    """

    def hidden(self, z: Tensor, x: Tensor) -> Tensor: ...               # informative embeddings (B, H)

    def log_prob(self, z: Tensor, x: Tensor) -> Tensor: ...             # log p(x|z) summed over pixels (B,)

    def paint(self, z: Tensor) -> Tensor: ...                           # the mean of p(x|z), (B, C, S, S) in [0, 1]


class CMIM(nn.Module):
    """A Gaussian code, a decoder (`BernoulliDecoder`, or another assigned to `decoder`), and a contrast of the codes.

    objective: cmim (equation 4), mim (2), vae or ae (5).
    latent: size of the code.
    tau: temperature of the contrast (equation 3).
    recon_reduction: log p(x|z) as the sum over pixels, which equation 2 means, or their mean, as in the later code.
    embedding: what `encode` gives, the mean of the code (mu) or the decoder's last hidden layer there (decoder).
    decoder_hidden: widths of the Bernoulli decoder.
    """

    def __init__(
        self, encoder: ImageEncoder, *, objective: Literal["cmim", "mim", "vae", "ae"] = "cmim", latent: int = 64,
        tau: float = 0.1, recon_reduction: Literal["sum", "mean"] = "sum",
        embedding: Literal["mu", "decoder"] = "mu", decoder_hidden: Sequence[int] = (400, 400),
    ) -> None:
        super().__init__()
        if tau <= 0:
            raise NotanError(f"tau = {tau}", "a temperature above 0", "--tau 0.1")
        _one_of("objective", objective, "cmim", "mim", "vae", "ae")
        _one_of("recon_reduction", recon_reduction, "sum", "mean")
        _one_of("embedding", embedding, "mu", "decoder")
        self.objective, self.latent, self.tau = objective, latent, tau
        self.recon_reduction, self.embedding = recon_reduction, embedding
        self.encoder = Headed(encoder, latent)                          # features are mu, so an export gives mu
        self.log_sigma = nn.Linear(encoder.dim, latent).requires_grad_(objective != "ae")
        self.decoder: Decoder = BernoulliDecoder(latent, decoder_hidden, (encoder.channels, encoder.image_size))

    def loss(self, batch: dict, progress: Progress) -> dict[str, Tensor]:
        x = self.whole(batch)                                           # (B, C, S, S)
        mu, log_sigma = self.posterior(x)                               # (B, d) each
        noise = normal(batch["key"], "latent", self.latent).to(mu)      # (B, d)
        z = mu if self.objective == "ae" else latent.sample(mu, log_sigma, noise)               # (1)
        log_px = self.log_px(z, x)                                      # (B,)
        log_qz, log_pz = latent.normal_log_prob(z, mu, log_sigma), latent.prior_log_prob(z)     # (B,)
        log_k = self.contrast(z)                                        # (B,)                    (3)
        if self.objective == "cmim":
            rows = latent.a_mim(log_px, log_qz, log_pz) - log_k         #                         (4)
        elif self.objective == "mim":
            rows = latent.a_mim(log_px, log_qz, log_pz)                 #                         (2)
        elif self.objective == "vae":
            rows = latent.vae(log_px, log_qz, log_pz)                   #                         (5)
        else:
            rows = -log_px
        terms = {"reconstruction": -log_px, "log q": log_qz, "log P": log_pz, "contrast": -log_k}
        return {"loss": world.mean(rows.sum(), len(rows)),
                **{name: world.mean(t.detach().sum(), len(t)) for name, t in terms.items()}}

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the standard deviation of q(z|x), (B, d) each; sigma is at least e^-6.

        In float32 or better whatever the encoder computes in: bfloat16 would lose (z - mu) / sigma at a small sigma.
        """
        h = self.encoder.base.features(x)                               # (B, D)
        mu, raw = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in (self.encoder.linear(h), self.log_sigma(h)))
        return mu, LOG_SIGMA_MIN + F.softplus(raw - LOG_SIGMA_MIN)

    def log_px(self, z: Tensor, x: Tensor) -> Tensor:
        """log p(x|z) of each picture, in nats: (B,). The decoder gets z in the dtype of the weights."""
        log_px = self.decoder.log_prob(z.to(self.log_sigma.weight.dtype), x)
        return log_px if self.recon_reduction == "sum" else log_px / x[0].numel()

    def contrast(self, z: Tensor) -> Tensor:
        """Equation 3, with codes of all ranks as negatives, in the dtype of z also under autocast: (B,)."""
        own = world.offset(len(z)) + torch.arange(len(z), device=z.device)
        with torch.autocast(z.device.type, enabled=False):
            return latent.self_contrast(z, tau=self.tau, bank=world.gather(z), own=own)

    def encode(self, batch: dict) -> Tensor:
        x = self.whole(batch)
        mu = self.encoder.features(x)                                   # (B, d)
        return mu if self.embedding == "mu" else self.decoder.hidden(mu, x)

    def whole(self, batch: dict) -> Tensor:
        return resize(floats(batch["image"]), self.encoder.image_size)  # (B, C, S, S)

    @torch.no_grad()
    def pictures(self, batch: dict) -> dict[str, Tensor]:
        """The picture, what is painted from its code, and what from a code drawn from the prior: (B, C, S, S)."""
        x = self.whole(batch)
        mu = self.encoder.features(x)
        prior = normal(batch["key"], "prior", self.latent).to(mu)
        return {"picture": x, "reconstruction": self.decoder.paint(mu), "sample": self.decoder.paint(prior)}


class BernoulliDecoder(nn.Module):
    """Independent pixels in [0, 1] from a multilayer perceptron."""

    def __init__(self, latent: int, hidden: Sequence[int], shape: tuple[int, int]) -> None:
        super().__init__()
        channels, side = self.shape = shape
        layers: list[nn.Module] = []
        for d_in, d_out in zip([latent, *hidden], hidden):
            layers += [nn.Linear(d_in, d_out), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.output = nn.Linear(hidden[-1], channels * side**2)

    def hidden(self, z: Tensor, x: Tensor) -> Tensor:
        return self.layers(z)

    def log_prob(self, z: Tensor, x: Tensor) -> Tensor:
        return latent.bernoulli_log_prob(self.output(self.layers(z)), x.flatten(1))

    def paint(self, z: Tensor) -> Tensor:
        channels, side = self.shape
        return self.output(self.layers(z)).sigmoid().view(-1, channels, side, side)


def _one_of(name: str, value: str, *known: str) -> None:
    if value not in known:
        raise NotanError(f"{name} = {value!r}", ", ".join(known))


def example(rows: int, dtype: torch.dtype) -> tuple[CMIM, dict]:
    """A tiny instance and a valid batch, for the contracts."""
    from notan.methods._example import images
    from notan.nets.mlp import MLP

    torch.manual_seed(0)
    return CMIM(MLP(16, hidden=[24, 20]), latent=8, tau=1.0, decoder_hidden=[20, 24]).to(dtype), images(rows)
