"""Hydra: any two classes are each other's views, in a subspace of their own.

Wu et al., "Rethinking Positive Pairs in Contrastive Learning", 2024 (arXiv 2410.18200; renamed SimLAP in its second version).

**What it is.** Contrast pulls together what is alike. Here a picture is paired with a class that need not be its own, and the two
are pulled together in the dimensions that a gate leaves open for this pair of classes, against pictures of all other classes.
y is a picture's class, y' the one it is paired with, z = proj(f(view)), E an embedding of classes:

    g = sigmoid(MLP((E[y] + E[y']) / 2))                                        one gate for (y, y') and (y', y)
    s_bn = cos(g_b * z_b, g_b * z'_n)                                           of another view, of all rows
    L = mean over b, and n of class y'_b, of log( e^{s_bn / tau} + sum over m of neither class of e^{s_bm / tau} ) - s_bn / tau

Keys of a picture's own class are neither pulled nor pushed, unless it is paired with that. The gate is thrown away afterwards,
but says which classes share what (`notan inspect gates`).

**When it helps.** The claim to test is that even arbitrary pairs teach something, which without a gate they do not. It is
supervised: hold it against `supcon` and `supervised`.

**What it costs.** Two full passes of the encoder per picture, labels, and a small network for the gate.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from notan import world
from notan.data import DataInfo
from notan.errors import NotanError
from notan.losses.gated import flat, paired, renormed
from notan.methods._progress import Progress
from notan.nets.gate import PairGate
from notan.nets.heads import mlp
from notan.nets.protocols import ImageEncoder
from notan.views.augment import contrastive
from notan.views.geometry import floats, resize
from notan.views.random import bits, fold, integers

CARD = {
    "title": "Rethinking Positive Pairs in Contrastive Learning", "arxiv": "2410.18200", "year": 2024,
    "needs": ["image", "label"], "task": "features", "encoder": "vit", "exports": ["safetensors", "hf", "onnx"],
    "claim": "Arbitrary pairs of classes, which ruin a contrast, teach good features when a gate chooses a subspace for each "
             "pair.",
    "paper": "CIFAR-10, ResNet-18, 50 epochs, from its authors' files: 90.9; SupCon 89.9; SupCon with arbitrary pairs and no "
             "gate 25.3. ImageNet figures have one seed.",
    "cost": "Two full passes through the encoder per picture, and labels.",
    "deviations": [
        "Arbitrary pairs are a permutation of the batch in which no row is paired with itself, drawn from the rows' keys.",
        "The form with two views of one network (the later code's) and similarities that are brought to length one again (the "
        "earlier code's); `--similarity flat` is the later code's, `hydra_momentum` the earlier form.",
        "Gates are not drawn at random, which some versions of the code do.",
    ],
    "floor": {"data": "digits", "metric": "ridge", "steps": 60, "value": 0.94, "random": 0.919},
}

RECIPES = {
    "paper": {                                                          # CIFAR-10
        "encoder": {"name": "resnet18", "stem": "cifar"},
        "optimiser": {"name": "adamw", "lr": 1e-3, "weight_decay": 5e-4},
        "batch": 256, "epochs": 50, "warmup": 0.04, "method": {"crop": 0.7},
    },
    "small": {
        "encoder": {"name": "convnet", "widths": [32, 64, 128, 256], "strides": [2, 2, 2, 1]},
        "optimiser": {"name": "adamw", "lr": 2e-3, "betas": [0.9, 0.95], "weight_decay": 0.05},
        "batch": 128, "epochs": 20, "warmup": 0.1,
        "method": {"crop": 0.5, "jitter": 0.5, "blur": 0.0, "hidden": 256, "dim": 64},
    },
}


class Hydra(nn.Module):
    """Contrast of pairs of classes.

    pairs: the other class of a row: arbitrary (that of another row of the batch), distinct (any but its own) or identical (its
        own).
    similarity: renorm (brought to length one after the gate) or flat.
    gate: whether pairs have a gate; without one every dimension is open.
    tau: temperature of the softmax.
    crop: smallest share of the picture in a crop.
    flip: probability of mirroring a view.
    jitter: strength of the colour jitter; 1 is SimCLR's for ImageNet.
    grey: probability of a view without colour.
    blur: probability of blur.
    hidden: width of the projector's hidden layer.
    dim: width of z and of a gate.
    """

    def __init__(
        self, encoder: ImageEncoder, *, data: DataInfo, pairs: Literal["arbitrary", "distinct", "identical"] = "arbitrary",
        similarity: Literal["renorm", "flat"] = "renorm", gate: bool = True, tau: float = 0.1, crop: float = 0.2,
        flip: float = 0.5, jitter: float = 0.5, grey: float = 0.2, blur: float = 0.0, hidden: int = 2048, dim: int = 256,
    ) -> None:
        super().__init__()
        check_classes(data, tau)
        self.encoder, self.classes, self.pairs, self.tau = encoder, data.classes, pairs, tau
        self.similarity = renormed if similarity == "renorm" else flat
        self.crop, self.flip, self.jitter, self.grey, self.blur = crop, flip, jitter, grey, blur
        self.projector = nn.Sequential(mlp(encoder.dim, hidden, dim), nn.LayerNorm(dim))
        self.gate = PairGate(len(data.classes), dim) if gate else None

    def loss(self, batch: dict, progress: Progress) -> dict[str, Tensor]:
        x = torch.cat([self.view(batch, 1), self.view(batch, 2)])       # (2B, C, S, S): one pass, one batch norm
        z, keys = self.projector(self.encoder.features(x)).chunk(2)     # (B, d) twice
        own, other = known(batch["label"]), partners(batch["label"], batch["key"], self.pairs, len(self.classes))
        g = torch.ones_like(z) if self.gate is None else self.gate(own, other)                  # (B, d)
        sums, counts = paired(z, world.gather(keys), g, own, other, world.gather_plain(own), tau=self.tau,
                              similarity=self.similarity)
        open_ = world.mean(g.detach().sum(), g.numel())
        return {"loss": world.mean(sums.sum(), counts.sum()), "open": open_}

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


def check_classes(data: DataInfo, tau: float) -> None:
    if tau <= 0:
        raise NotanError(f"tau = {tau}", "a temperature above 0", "--tau 0.1")
    if len(data.classes) < 3:
        raise NotanError(f"{data.name} has {len(data.classes)} classes: a pair of them leaves no negative", "at least three",
                         "name a label column with --column theirs=label, or train simclr, which needs none")


def known(labels: Tensor) -> Tensor:
    """Raises `NotanError` for rows without a class."""
    if bool((labels < 0).any()):
        raise NotanError(f"{int((labels < 0).sum())} rows of a batch have no label", "a class for every row", "leave them out")
    return labels


def partners(labels: Tensor, key: Tensor, pairs: str, classes: int) -> Tensor:
    """The class that each row is paired with, int64 (B,): functions of the rows' keys, not of their places.

    arbitrary: the global batch in the order of its keys, each row with the class of the next one.
    """
    if pairs == "identical":
        return labels
    if pairs == "distinct":
        return (labels + 1 + integers(key, "partner", 1, classes - 1)[:, 0]) % classes
    every, drawn = world.gather_plain(labels), world.gather_plain(bits(key, "partner", 1)[:, 0])
    order = drawn.argsort()
    after = torch.empty_like(every)
    after[order] = every[order.roll(-1)]
    start = world.offset(len(labels))
    return after[start : start + len(labels)]


def example(rows: int, dtype: torch.dtype) -> tuple[Hydra, dict]:
    from notan.methods._example import images
    from notan.nets.vit import ViT

    torch.manual_seed(0)
    data = DataInfo("example", rows, ("image", "label"), 16, 3, classes=("a", "b", "c"))
    return Hydra(ViT(image_size=16, patch=4, dim=32, depth=2, heads=2), data=data, hidden=32, dim=16).to(dtype), images(rows)
