"""SimCLR: two views of a picture must find each other among the views of all others.

Chen, Kornblith, Norouzi and Hinton, "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020
(arXiv 2002.05709).

**What it is.** Each of N pictures gives two views: a random crop, mirrored, recoloured, greyed, blurred. An encoder f
turns a view into features h, a two-layer projector g turns h into z, and each of the 2N views has to find its partner
among the 2N - 1 others by cosine similarity. Probes read h; g is thrown away (section 4.2: h is over 10 points better).

    h = f(view),  z = W2 relu(BN(W1 h))                                                      section 2.1
    l(i, j) = -log exp(cos(z_i, z_j) / tau) / sum over k != i of exp(cos(z_i, z_k) / tau)    equation 1
    L = mean of l(i, partner of i) over the 2N views                                         algorithm 1

**When it helps.** You want features that separate kinds of pictures with few labels and a frozen encoder, and you know
what does *not* matter in your pictures: the views say so. If colour or orientation is the label, turn `jitter` or
`flip` down.

**What it costs.** Two full passes of the encoder per picture, and a batch large enough to hold hard negatives; the
negatives are the views of all processes together.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from notan.errors import NotanError
from notan.methods._contrast import two_views
from notan.methods._progress import Progress
from notan.nets.heads import mlp
from notan.nets.protocols import ImageEncoder
from notan.views.augment import contrastive
from notan.views.geometry import floats, resize
from notan.views.random import fold

CARD = {
    "title": "A Simple Framework for Contrastive Learning of Visual Representations", "arxiv": "2002.05709",
    "year": 2020, "needs": ["image"], "task": "features", "encoder": "vit",
    "exports": ["safetensors", "hf", "onnx"],
    "claim": "Telling two views of a picture from all other pictures gives features that a linear probe separates, "
             "with no memory bank and no special architecture.",
    "paper": "ImageNet-1K linear probe, ResNet-50: 64.5 (batch 4096, 100 epochs), 69.3 (batch 4096, 1000 epochs), 76.5 "
             "(width x4). CIFAR-10, ResNet-50, 1000 epochs: 94.0.",
    "cost": "Two full passes through the encoder per picture.",
    "deviations": [
        "The projector's last layer has a bias and no batch norm; the official code has the norm and no bias.",
        "Crops are resampled with an antialiased triangle filter; the paper's are bicubic.",
        "The default tau, 0.5, is the paper's for CIFAR-10; its ImageNet value, 0.1, is in the paper recipe.",
    ],
    "floor": {"data": "digits", "metric": "ridge", "steps": 60, "value": 0.94, "random": 0.919},
}

RECIPES = {
    "paper": {
        "encoder": {"name": "resnet50", "stem": "imagenet"},
        "optimiser": {"name": "lars", "lr": 0.3, "lr_rule": "linear256", "momentum": 0.9, "weight_decay": 1e-6},
        "batch": 4096, "epochs": 100, "warmup": 0.1, "method": {"tau": 0.1, "hidden": 2048},
    },
    "small": {
        "encoder": {"name": "convnet", "widths": [32, 64, 128, 256], "strides": [2, 2, 2, 1]},
        "optimiser": {"name": "adamw", "lr": 2e-3, "betas": [0.9, 0.95], "weight_decay": 0.05},
        "batch": 128, "epochs": 20, "warmup": 0.1,
        "method": {"tau": 0.2, "crop": 0.5, "jitter": 0.5, "blur": 0.0, "hidden": 256, "dim": 64},
    },
}


class SimCLR(nn.Module):
    """Contrast of two views.

    tau: temperature of the softmax (equation 1).
    crop: smallest share of the picture in a crop.
    flip: probability of mirroring a view.
    jitter: strength of the colour jitter; 1 is the paper's for ImageNet, 0.5 for CIFAR-10.
    grey: probability of a view without colour.
    blur: probability of blur; the paper has none for CIFAR-10.
    hidden: width of the projector's hidden layer.
    dim: width of z.
    """

    def __init__(
        self, encoder: ImageEncoder, *, tau: float = 0.5, crop: float = 0.08, flip: float = 0.5, jitter: float = 1.0,
        grey: float = 0.2, blur: float = 0.5, hidden: int = 2048, dim: int = 128,
    ) -> None:
        super().__init__()
        if tau <= 0:
            raise NotanError(f"tau = {tau}", "a temperature above 0", "--tau 0.5")
        self.encoder, self.tau = encoder, tau
        self.crop, self.flip, self.jitter, self.grey, self.blur = crop, flip, jitter, grey, blur
        self.projector = mlp(encoder.dim, hidden, dim)

    def loss(self, batch: dict, progress: Progress) -> dict[str, Tensor]:
        x = torch.cat([self.view(batch, 1), self.view(batch, 2)])       # (2B, C, S, S): one pass, one batch norm
        z = self.projector(self.encoder.features(x))                    # (2B, d)
        return {"loss": two_views(*z.chunk(2), tau=self.tau)}           # equation 1, algorithm 1, over all ranks

    def view(self, batch: dict, which: int) -> Tensor:
        """One random view of each picture, appendix A: (B, C, S, S)."""
        return contrastive(batch["image"], fold(batch["key"], which), self.encoder.image_size, scale=self.crop, flip=self.flip,
                           jitter=self.jitter, grey=self.grey, blur=self.blur)

    def encode(self, batch: dict) -> Tensor:
        return self.encoder.features(self.whole(batch))                 # (B, D)

    def dense(self, batch: dict) -> Tensor:
        return self.encoder.maps(self.whole(batch))                     # (B, D, h, w)

    def whole(self, batch: dict) -> Tensor:
        return resize(floats(batch["image"]), self.encoder.image_size)  # (B, C, S, S)

    @torch.no_grad()
    def pictures(self, batch: dict) -> dict[str, Tensor]:
        return {"picture": self.whole(batch), "view 1": self.view(batch, 1), "view 2": self.view(batch, 2)}


def example(rows: int, dtype: torch.dtype) -> tuple[SimCLR, dict]:
    from notan.methods._example import images
    from notan.nets.vit import ViT

    torch.manual_seed(0)
    return SimCLR(ViT(image_size=16, patch=4, dim=32, depth=2, heads=2), hidden=32, dim=16).to(dtype), images(rows)
