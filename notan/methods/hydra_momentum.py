"""Hydra with a momentum encoder: MoCo v3's contrast of pictures, and the gated one of pairs of classes beside it.

Wu et al., "Rethinking Positive Pairs in Contrastive Learning", 2024 (arXiv 2410.18200), the form of its ImageNet runs; the base
is Chen, Xie and He, "An Empirical Study of Training Self-Supervised Vision Transformers", ICCV 2021 (arXiv 2104.02057).

**What it is.** Two views of a picture give queries q, q' of an encoder, a projector and a predictor, and keys k, k' of copies of
the first two that follow slowly. A query must find the key of its own picture (no labels, no gate), and, gated, the keys of the
class it is paired with (`hydra` tells how):

    L_inst = ( InfoNCE(q, k') + InfoNCE(q', k) ) / 2
    L_dis  = the gated loss of (q, k') and of (q', k), their mean
    L = (L_inst + beta L_dis) / (1 + beta)                                      beta = 0: MoCo v3
    key encoder <- m key encoder + (1 - m) encoder, m from 0.99 to 1

**When it helps.** As `hydra`, where batches are large and labels coarse: the contrast of pictures keeps what labels say nothing
of.

**What it costs.** Four passes of the encoder per picture, two with a gradient, and labels.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from notan import world
from notan.data import DataInfo
from notan.errors import NotanError
from notan.losses.gated import flat, paired, renormed
from notan.methods._contrast import one_way
from notan.methods._progress import Progress
from notan.methods.hydra import check_classes, known, partners
from notan.nets.gate import PairGate
from notan.nets.heads import mlp
from notan.nets.protocols import ImageEncoder
from notan.nets.teacher import cosine_decay, ema_, teacher
from notan.views.augment import contrastive
from notan.views.geometry import floats, resize
from notan.views.random import fold

CARD = {
    "title": "Rethinking Positive Pairs in Contrastive Learning: with a momentum encoder", "arxiv": "2410.18200", "year": 2024,
    "needs": ["image", "label"], "task": "features", "encoder": "vit", "exports": ["safetensors", "hf", "onnx"],
    "claim": "The gated contrast of pairs of classes adds to that of pictures.",
    "paper": "ImageNet-1K, ViT-B, 200 epochs from the weights of MAE, fine-tuned: 84.02, from its authors' files; one seed.",
    "cost": "Four passes through the encoder per picture, two of them without a gradient, and labels.",
    "deviations": [
        "Features are those of the encoder that learns; the paper's first runs evaluated the one that follows.",
        "Arbitrary pairs are a permutation of the batch in which no row is paired with itself, drawn from the rows' keys.",
        "The projector ends in a layer norm, as gates need; MoCo v3's ends in a batch norm.",
    ],
    "floor": {"data": "digits", "metric": "ridge", "steps": 60, "value": 0.93, "random": 0.919},
}

RECIPES = {
    "paper": {                                                          # ImageNet, ViT-B
        "encoder": {"name": "vit-base", "patch": 16},
        "optimiser": {"name": "adamw", "lr": 1.5e-4, "lr_rule": "linear256", "weight_decay": 0.1},
        "batch": 4096, "epochs": 300, "warmup": 0.133, "method": {"hidden": 4096, "blur": 0.5},
    },
    "small": {
        "encoder": {"name": "convnet", "widths": [32, 64, 128, 256], "strides": [2, 2, 2, 1]},
        "optimiser": {"name": "adamw", "lr": 2e-3, "betas": [0.9, 0.95], "weight_decay": 0.05},
        "batch": 128, "epochs": 20, "warmup": 0.1,
        "method": {"crop": 0.5, "jitter": 0.5, "hidden": 256, "dim": 64},
    },
}


class HydraMomentum(nn.Module):
    """Contrast of pictures and of pairs of classes, with keys that follow.

    beta: weight of the contrast of pairs; 0 is MoCo v3.
    pairs: the other class of a row: arbitrary (that of another row of the batch), distinct (any but its own) or identical (its
        own).
    similarity: renorm (brought to length one after the gate) or flat.
    tau: temperature of both softmaxes.
    momentum: share that the key encoder keeps in a step at first; it rises to 1.
    crop: smallest share of the picture in a crop.
    flip: probability of mirroring a view.
    jitter: strength of the colour jitter; 1 is SimCLR's for ImageNet.
    grey: probability of a view without colour.
    blur: probability of blur.
    hidden: width of the hidden layers of projector and predictor.
    dim: width of q, of k and of a gate.
    """

    def __init__(
        self, encoder: ImageEncoder, *, data: DataInfo, beta: float = 1.0,
        pairs: Literal["arbitrary", "distinct", "identical"] = "arbitrary", similarity: Literal["renorm", "flat"] = "renorm",
        tau: float = 0.2, momentum: float = 0.99, crop: float = 0.08, flip: float = 0.5, jitter: float = 0.5, grey: float = 0.2,
        blur: float = 0.0, hidden: int = 2048, dim: int = 256,
    ) -> None:
        super().__init__()
        check_classes(data, tau)
        if beta < 0 or not 0 <= momentum <= 1:
            raise NotanError(f"beta = {beta}, momentum = {momentum}", "beta from 0, a momentum from 0 to 1",
                             "--beta 1 --momentum 0.99")
        self.encoder: Any = encoder
        self.classes, self.pairs, self.beta, self.tau, self.momentum = data.classes, pairs, beta, tau, momentum
        self.similarity = renormed if similarity == "renorm" else flat
        self.crop, self.flip, self.jitter, self.grey, self.blur = crop, flip, jitter, grey, blur
        self.projector = nn.Sequential(mlp(encoder.dim, hidden, hidden, dim), nn.LayerNorm(dim))
        self.predictor = mlp(dim, hidden, dim)
        self.key_encoder: Any = teacher(encoder)                        # type: ignore[type-var]
        self.key_projector = teacher(self.projector)
        self.gate = PairGate(len(data.classes), dim)

    def loss(self, batch: dict, progress: Progress) -> dict[str, Tensor]:
        x = torch.cat([self.view(batch, 1), self.view(batch, 2)])       # (2B, C, S, S)
        q1, q2 = self.predictor(self.projector(self.encoder.features(x))).chunk(2)              # (B, d)
        with torch.no_grad():
            k1, k2 = self.key_projector(self.key_encoder.features(x)).chunk(2)
        instance = (one_way(q1, k2, tau=self.tau) + one_way(q2, k1, tau=self.tau)) / 2
        own, other = known(batch["label"]), partners(batch["label"], batch["key"], self.pairs, len(self.classes))
        g, every = self.gate(own, other), world.gather_plain(own)
        sides = [paired(q, world.gather_plain(k), g, own, other, every, tau=self.tau, similarity=self.similarity)
                 for q, k in ((q1, k2), (q2, k1))]
        gated = torch.stack([world.mean(sums.sum(), counts.sum()) for sums, counts in sides]).mean()
        return {"loss": (instance + self.beta * gated) / (1 + self.beta), "instance": instance.detach(), "gated": gated.detach(),
                "open": world.mean(g.detach().sum(), g.numel())}

    def after_step(self, keep: None, progress: Progress) -> None:
        m = cosine_decay(self.momentum, progress.fraction)
        ema_(self.key_encoder, self.encoder, m)
        ema_(self.key_projector, self.projector, m)

    def view(self, batch: dict, which: int) -> Tensor:                  # (B, C, S, S)
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


def example(rows: int, dtype: torch.dtype) -> tuple[HydraMomentum, dict]:
    from notan.methods._example import images
    from notan.nets.vit import ViT

    torch.manual_seed(0)
    data = DataInfo("example", rows, ("image", "label"), 16, 3, classes=("a", "b", "c"))
    encoder = ViT(image_size=16, patch=4, dim=32, depth=2, heads=2)
    return HydraMomentum(encoder, data=data, hidden=32, dim=16).to(dtype), images(rows)
