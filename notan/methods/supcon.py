"""SupCon: all pictures of a class are each other's views.

Khosla, Teterwak, Wang, Sarna, Tian, Isola, Maschinot, Liu and Krishnan, "Supervised Contrastive Learning", NeurIPS 2020
(arXiv 2004.11362).

**What it is.** SimCLR with labels: two views of each of N pictures, an encoder f and a projector g, and each of the 2N views
must find, among the 2N - 1 others, all those of its class P(i): its own other view, and both of every other picture of it.

    z = g(f(view)) / |g(f(view))|                                                                    section 3.1
    L = mean over i of -1/|P(i)| sum over p in P(i) of log( exp(z_i . z_p / tau) / sum over a != i of exp(z_i . z_a / tau) )
                                                                                                     L_out, equation 2
**When it helps.** You have labels and want features rather than a classifier: to search, to cluster, to transfer. It is the
supervised row to hold any contrast of labels against. A picture whose label is negative (unlabelled) has its own other view
alone as a negative of others, and does not count itself.

**What it costs.** Two full passes of the encoder per picture, labels, and batches that hold each class more than once.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from notan.data import DataInfo
from notan.errors import NotanError
from notan.methods._contrast import same_class
from notan.methods._progress import Progress
from notan.nets.heads import mlp
from notan.nets.protocols import ImageEncoder
from notan.views.augment import contrastive
from notan.views.geometry import floats, resize
from notan.views.random import fold

CARD = {
    "title": "Supervised Contrastive Learning", "arxiv": "2004.11362", "year": 2020,
    "needs": ["image", "label"], "task": "features", "encoder": "vit", "exports": ["safetensors", "hf", "onnx"],
    "claim": "Contrasting classes instead of pictures uses labels better than cross-entropy does.",
    "paper": "Top-1 with a linear layer on frozen features, ResNet-50: ImageNet 78.7 (cross-entropy 78.2, AutoAugment), "
             "CIFAR-10 96.0 (95.0), CIFAR-100 76.5 (75.3), as its authors report.",
    "cost": "Two full passes through the encoder per picture, and labels.",
    "deviations": [
        "Views are SimCLR's with colour jitter at half strength; the paper compares several policies.",
        "The loss is not multiplied by tau, which the official code does.",
    ],
    "floor": {"data": "digits", "metric": "ridge", "steps": 60, "value": 0.95, "random": 0.919},
}

RECIPES = {
    "paper": {
        "encoder": {"name": "resnet50", "stem": "imagenet"},
        "optimiser": {"name": "lars", "lr": 0.3, "lr_rule": "linear256", "momentum": 0.9, "weight_decay": 1e-6},
        "batch": 4096, "epochs": 700, "warmup": 0.015, "method": {},
    },
    "small": {
        "encoder": {"name": "convnet", "widths": [32, 64, 128, 256], "strides": [2, 2, 2, 1]},
        "optimiser": {"name": "adamw", "lr": 2e-3, "betas": [0.9, 0.95], "weight_decay": 0.05},
        "batch": 128, "epochs": 20, "warmup": 0.1,
        "method": {"crop": 0.5, "jitter": 0.5, "blur": 0.0, "hidden": 256, "dim": 64},
    },
}


class SupCon(nn.Module):
    """Contrast of classes.

    tau: temperature of the softmax (equation 2).
    crop: smallest share of the picture in a crop.
    flip: probability of mirroring a view.
    jitter: strength of the colour jitter; 1 is SimCLR's for ImageNet.
    grey: probability of a view without colour.
    blur: probability of blur.
    hidden: width of the projector's hidden layer.
    dim: width of z.
    """

    def __init__(
        self, encoder: ImageEncoder, *, data: DataInfo, tau: float = 0.1, crop: float = 0.08, flip: float = 0.5,
        jitter: float = 0.5, grey: float = 0.2, blur: float = 0.5, hidden: int = 2048, dim: int = 128,
    ) -> None:
        super().__init__()
        if tau <= 0:
            raise NotanError(f"tau = {tau}", "a temperature above 0", "--tau 0.1")
        if len(data.classes) < 2:
            raise NotanError(f"{data.name} has {len(data.classes)} classes", "labels of at least two classes",
                             "name a label column with --column theirs=label, or train simclr, which needs none")
        self.encoder, self.tau = encoder, tau
        self.crop, self.flip, self.jitter, self.grey, self.blur = crop, flip, jitter, grey, blur
        self.projector = mlp(encoder.dim, hidden, dim)

    def loss(self, batch: dict, progress: Progress) -> dict[str, Tensor]:
        x = torch.cat([self.view(batch, 1), self.view(batch, 2)])       # (2B, C, S, S): one pass, one batch norm
        z = self.projector(self.encoder.features(x))                    # (2B, d)
        return {"loss": same_class(torch.stack(z.chunk(2), 1), batch["label"], tau=self.tau)}   # equation 2

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


def example(rows: int, dtype: torch.dtype) -> tuple[SupCon, dict]:
    from notan.methods._example import images
    from notan.nets.vit import ViT

    torch.manual_seed(0)
    data = DataInfo("example", rows, ("image", "label"), 16, 3, classes=("a", "b", "c"))
    return SupCon(ViT(image_size=16, patch=4, dim=32, depth=2, heads=2), data=data, hidden=32, dim=16).to(dtype), images(rows)
