"""Instance discrimination, and what its temperature and its hard negatives do.

Wang and Liu, "Understanding the Behaviour of Contrastive Loss", CVPR 2021 (arXiv 2012.09740).

**What it is.** Every picture is a class of its own. With s_ij the cosine of picture i's embedding and candidate j:

    soft         L = -log( exp(s_ii / tau) / sum over k of exp(s_ik / tau) )
    hard         the same, over the positive and the nearest share of each row's negatives
    simple       L = -s_ii + mean of the negatives' s_ik
    hard-simple  the same, over the nearest negatives

The soft loss pushes the nearest negatives most: negative j gets the share exp(s_ij / tau) of all pushing. A small tau spreads
the embeddings evenly and parts what is alike; a large one is tolerant and leaves clumps. The simple loss pushes all alike and
learns little, until it looks at the hard negatives alone: hardness is what matters, and tau is one way to have it.

Candidates are a bank with one slowly following embedding for each picture of the data (the paper's set-up, one view a step),
the other views of the batch (two views), or those and a queue of earlier ones.

**When it helps.** To see on your own data what tau does, with `notan inspect temperature`; and as a light pre-training: with a
bank one pass a picture.

**What it costs.** One pass of the encoder per picture with a bank, which holds rows x dim numbers; two otherwise.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from notan import world
from notan.data import DataInfo
from notan.errors import NotanError
from notan.losses.hardness import hard, hard_simple, simple
from notan.losses.info_nce import info_nce
from notan.methods._progress import Progress
from notan.nets.protocols import ImageEncoder
from notan.nets.queue import Bank, Queue
from notan.views.augment import contrastive
from notan.views.geometry import floats, resize
from notan.views.random import fold

CARD = {
    "title": "Understanding the Behaviour of Contrastive Loss", "arxiv": "2012.09740", "year": 2021,
    "needs": ["image"], "task": "features", "encoder": "vit", "exports": ["safetensors", "hf", "onnx"],
    "contrasts_rows": True,
    "claim": "The temperature trades uniformity against tolerance: small ones spread embeddings evenly, large ones keep what is "
             "alike together, and accuracy is best between. Contrast without hardness learns much less.",
    "paper": "Linear top-1 at tau .07 / .3 / .7 / 1.0 and of the simple loss: CIFAR-10 79.75 / 83.27 / 82.69 / 82.21 and 74.83, "
             "ImageNet-100 71.53 / 75.10 / 69.03 / 63.57 and 48.09; hard-simple 84.84 and 74.31.",
    "cost": "One pass of the encoder per picture (bank), two otherwise.",
    "deviations": [
        "The negatives' weight in the simple losses, which the paper leaves open, is one over their number.",
        "How many negatives are hard is a share of those there are; the paper names 4,095.",
        "Views are this library's; the paper's crop is not stated.",
        "With batch or queue, every row is contrasted with all views of the batch but itself.",
    ],
    "floor": {"data": "digits", "metric": "ridge", "steps": 60, "value": 0.93, "random": 0.919},
}

RECIPES = {
    "paper": {                                                          # CIFAR-10
        "encoder": {"name": "resnet18", "stem": "cifar"},
        "optimiser": {"name": "sgd", "lr": 0.03, "momentum": 0.9, "weight_decay": 5e-4},
        "batch": 128, "epochs": 200, "warmup": 0.0, "method": {},
    },
    "small": {
        "encoder": {"name": "convnet", "widths": [32, 64, 128, 256], "strides": [2, 2, 2, 1]},
        "optimiser": {"name": "adamw", "lr": 2e-3, "betas": [0.9, 0.95], "weight_decay": 0.05},
        "batch": 128, "epochs": 20, "warmup": 0.1,
        "method": {"negatives": "batch", "crop": 0.5, "jitter": 0.5, "blur": 0.0, "dim": 64},
    },
}


class Temperature(nn.Module):
    """Instance discrimination under one of the paper's four losses.

    objective: soft, hard, simple or hard-simple.
    negatives: bank (an embedding for each row of the data), batch (its other views) or queue (those and earlier ones).
    tau: temperature of the softmax; the simple losses have none.
    share: share of a row's negatives that are hard.
    keep: share that a row of the bank keeps when it is seen again.
    queue: embeddings of earlier batches that are kept.
    crop: smallest share of the picture in a crop.
    flip: probability of mirroring a view.
    jitter: strength of the colour jitter; 0.5 is SimCLR's for CIFAR-10.
    grey: probability of a view without colour.
    blur: probability of blur.
    dim: width of the embedding, a linear layer on the features.
    """

    def __init__(
        self, encoder: ImageEncoder, *, data: DataInfo, objective: Literal["soft", "hard", "simple", "hard-simple"] = "soft",
        negatives: Literal["bank", "batch", "queue"] = "bank", tau: float = 0.3, share: float = 0.0819, keep: float = 0.5,
        queue: int = 4096, crop: float = 0.2, flip: float = 0.5, jitter: float = 0.5, grey: float = 0.2, blur: float = 0.0,
        dim: int = 128,
    ) -> None:
        super().__init__()
        if tau <= 0:
            raise NotanError(f"tau = {tau}", "a temperature above 0", "--tau 0.3")
        if not 0 < share <= 1 or not 0 <= keep < 1:
            raise NotanError(f"share = {share}, keep = {keep}", "a share above 0 and at most 1, and keep from 0 to below 1",
                             "--share 0.0819 --keep 0.5")
        self.encoder, self.objective, self.negatives, self.tau, self.share = encoder, objective, negatives, tau, share
        self.keep, self.crop, self.flip, self.jitter, self.grey, self.blur = keep, crop, flip, jitter, grey, blur
        self.head = nn.Linear(encoder.dim, dim)
        self.bank = Bank(data.rows, dim) if negatives == "bank" else None
        self.queue = Queue(queue, dim) if negatives == "queue" else None

    def loss(self, batch: dict, progress: Progress) -> dict[str, Any]:
        if self.bank is not None:
            z = self.head(self.encoder.features(self.view(batch, 1)))                           # (B, d)
            rows = self.contrast(z, self.bank.keys, batch["row"], None)
            keep = {"row": batch["row"], "z": z.detach()}
        else:
            x = torch.cat([self.view(batch, 1), self.view(batch, 2)])
            z = self.head(self.encoder.features(x))                                             # (2B, d)
            z1, z2 = z.chunk(2)
            k1, k2 = world.gather(z1), world.gather(z2)                                         # (N, d)
            own = world.offset(len(z1)) + torch.arange(len(z1), device=z.device)
            keys = torch.cat([k1, k2] if self.queue is None else [k1, k2, self.queue.keys])
            rows = self.contrast(z, keys, torch.cat([own + len(k1), own]), torch.cat([own, own + len(k1)]))
            keep = {} if self.queue is None else {"z": z2.detach()}
        return {"loss": world.mean(rows.sum(), len(rows)), **({"keep": keep} if keep else {})}

    def contrast(self, q: Tensor, k: Tensor, positive: Tensor, exclude: Tensor | None) -> Tensor:
        """The objective of each row (B,)."""
        others = len(k) - 1 - (exclude is not None)
        if others < 1:
            raise NotanError("a batch of one row has no negatives", "at least two rows", "raise --batch")
        top = max(1, round(self.share * others))
        match self.objective:
            case "soft":
                return info_nce(q, k, tau=self.tau, positive=positive, exclude=exclude)
            case "hard":
                return hard(q, k, tau=self.tau, positive=positive, exclude=exclude, top=top)
            case "simple":
                return simple(q, k, positive=positive, exclude=exclude)
            case _:
                return hard_simple(q, k, positive=positive, exclude=exclude, top=top)

    def after_step(self, keep: dict[str, Tensor], progress: Progress) -> None:
        """The bank follows the rows that were seen, or the queue takes them in."""
        if self.bank is not None:
            self.bank.update(keep["row"], keep["z"], self.keep)
        elif self.queue is not None:
            self.queue.push(keep["z"])

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


def example(rows: int, dtype: torch.dtype) -> tuple[Temperature, dict]:
    from notan.methods._example import images
    from notan.nets.vit import ViT

    torch.manual_seed(0)
    data = DataInfo("example", rows, ("image", "label"), 16, 3)
    encoder = ViT(image_size=16, patch=4, dim=32, depth=2, heads=2)
    return Temperature(encoder, data=data, dim=16).to(dtype), images(rows)
