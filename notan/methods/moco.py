"""MoCo: a queue of keys from a slowly moving encoder, so that negatives are many and batches small.

He, Fan, Wu, Xie and Girshick, "Momentum Contrast for Unsupervised Visual Representation Learning", CVPR 2020
(arXiv 1911.05722), with the head, the blur and the temperature of Chen, Fan, Girshick and He, "Improved Baselines with Momentum
Contrastive Learning" (MoCo v2, arXiv 2003.04297).

**What it is.** One view of a picture gives a query q = g(f(view)), the other a key k from a copy of both whose weights follow
slowly. The query must find its key among that key and the last K keys of other pictures, kept in a queue:

    L = -log( exp(q . k / tau) / (exp(q . k / tau) + sum over the queue of exp(q . k_j / tau)) )      equation 1
    theta_k <- m theta_k + (1 - m) theta_q                                                           equation 2

**When it helps.** A batch of negatives does not fit, or one wants contrast whose number of negatives is not tied to the
batch: here parts of a batch may be accumulated. Otherwise as `simclr`.

**What it costs.** Three passes per picture (query with its gradient, key without), a copy of the encoder, and K x d numbers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from notan import world
from notan.errors import NotanError
from notan.losses.tiles import cosines
from notan.methods._contrast import against_queue
from notan.methods._progress import Progress
from notan.nets.heads import mlp
from notan.nets.protocols import ImageEncoder
from notan.nets.queue import Queue
from notan.nets.teacher import ema_, teacher
from notan.views.augment import contrastive
from notan.views.geometry import floats, resize
from notan.views.random import fold

CARD = {
    "title": "Momentum Contrast for Unsupervised Visual Representation Learning", "arxiv": "1911.05722", "year": 2020,
    "needs": ["image"], "task": "features", "encoder": "vit", "exports": ["safetensors", "hf", "onnx"],
    "contrasts_rows": False,
    "claim": "A long queue of consistent keys gives contrast as many negatives as it wants, with small batches.",
    "paper": "ImageNet linear probe, ResNet-50, 200 epochs: 60.6 (v1), 67.5 (v2), 71.1 (v2, 800 epochs), as its authors report.",
    "cost": "Two passes through the encoder per picture, one of them with its gradient, and a copy of the encoder.",
    "deviations": [
        "Where there is batch norm, queries and keys are normalised over the global batch, where the paper shuffles keys over "
        "devices so that no query knows its key by the batch they share. Running statistics for the keys (Cai et al. 2021) close "
        "that door too; on the digits they gave worse features in short runs. An encoder without batch norm has no such door.",
        "The head of v2 has batch norm between its layers, as in SimCLR.",
    ],
    "floor": {"data": "digits", "metric": "ridge", "steps": 60, "value": 0.93, "random": 0.919},
}

RECIPES = {
    "paper": {
        "encoder": {"name": "resnet50", "stem": "imagenet"},
        "optimiser": {"name": "sgd", "lr": 0.03, "lr_rule": "linear256", "momentum": 0.9, "weight_decay": 1e-4},
        "batch": 256, "epochs": 200, "warmup": 0.0, "method": {},
    },
    "small": {
        "encoder": {"name": "convnet", "widths": [32, 64, 128, 256], "strides": [2, 2, 2, 1]},
        "optimiser": {"name": "adamw", "lr": 2e-3, "betas": [0.9, 0.95], "weight_decay": 0.05},
        "batch": 128, "epochs": 20, "warmup": 0.1,
        "method": {"queue": 2048, "momentum": 0.99, "crop": 0.5, "jitter": 0.5, "blur": 0.0, "hidden": 256, "dim": 64},
    },
}


class MoCo(nn.Module):
    """Contrast with a queue.

    queue: keys of earlier batches that are negatives, K.
    momentum: share that the key encoder keeps in a step, m (equation 2).
    tau: temperature of the softmax; 0.07 in the first paper.
    crop: smallest share of the picture in a crop.
    flip: probability of mirroring a view.
    jitter: strength of the colour jitter; 0.5 is MoCo v2's.
    grey: probability of a view without colour.
    blur: probability of blur.
    hidden: width of the projector's hidden layer.
    dim: width of a key.
    """

    def __init__(
        self, encoder: ImageEncoder, *, queue: int = 65536, momentum: float = 0.999, tau: float = 0.2, crop: float = 0.2,
        flip: float = 0.5, jitter: float = 0.5, grey: float = 0.2, blur: float = 0.5, hidden: int = 2048, dim: int = 128,
    ) -> None:
        super().__init__()
        if tau <= 0:
            raise NotanError(f"tau = {tau}", "a temperature above 0", "--tau 0.2")
        if queue < 1 or not 0 <= momentum < 1:
            raise NotanError(f"queue = {queue}, momentum = {momentum}", "at least one key, and a momentum from 0 to below 1",
                             "--queue 65536 --momentum 0.999")
        self.encoder: Any = encoder
        self.tau, self.momentum = tau, momentum
        self.crop, self.flip, self.jitter, self.grey, self.blur = crop, flip, jitter, grey, blur
        self.projector = mlp(encoder.dim, hidden, dim)
        self.key_encoder: Any = teacher(encoder)                        # type: ignore[type-var]
        self.key_projector = teacher(self.projector)
        self.queue = Queue(queue, dim)

    def loss(self, batch: dict, progress: Progress) -> dict[str, Any]:
        q = self.projector(self.encoder.features(self.view(batch, 1)))                          # (B, d)
        with torch.no_grad():
            k = self.key_projector(self.key_encoder.features(self.view(batch, 2)))              # (B, d)
            near = cosines(q, k)
        return {"loss": against_queue(q, k, self.queue.keys, tau=self.tau),                     # equation 1
                "positive": world.mean(near.sum(), len(near)), "keep": {"k": k}}

    def after_step(self, keep: dict[str, Tensor], progress: Progress) -> None:
        """Keys of all ranks enter the queue, then the key encoder follows (equation 2)."""
        self.queue.push(keep["k"])
        ema_(self.key_encoder, self.encoder, self.momentum)
        ema_(self.key_projector, self.projector, self.momentum)

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
        return {"picture": self.whole(batch), "query": self.view(batch, 1), "key": self.view(batch, 2)}


def example(rows: int, dtype: torch.dtype) -> tuple[MoCo, dict]:
    from notan.methods._example import images
    from notan.nets.vit import ViT

    torch.manual_seed(0)
    return MoCo(ViT(image_size=16, patch=4, dim=32, depth=2, heads=2), queue=20, hidden=32, dim=16).to(dtype), images(rows)
