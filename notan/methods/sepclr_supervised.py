"""SepCLR with attributes: one number of the salient space for each thing that is known of a target.

Louiset, Duchesnay, Grigis and Gori, "Separating common from salient patterns with Contrastive Representation Learning", ICLR
2024 (arXiv 2402.11928), the supervised disentangling variant. `sepclr` tells the rest.

**What it is.** Every target comes with attributes a_1, ..., a_A. The salient space has as many numbers s_1, ..., s_A, and two
targets have the same s_i as far as they have the same a_i, whatever else differs; on background all s_i are 0.

    w_jk = exp(-(a_j - a_k)^2 / (2 width))                                     for each attribute
    L_s = mean over attributes of ( mean over targets j != k of w_jk (s_j - s_k)^2 + mean of s^2 of background ) / 2 + U(s)
    L = A(c, c') + (U(c) + U(c')) / 2 + salience L_s + lam J([c, s])           A, U and J as in `sepclr`

**When it helps.** You know factors of what sets targets apart, and want to read each off one number and the rest off the common
space. Columns `group` (0 background, 1 target) and `attributes` (whole numbers; a negative one is unknown).

**What it costs.** Two passes of the common encoder and one of the salient one per picture.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from notan import world
from notan.errors import NotanError
from notan.losses.geometry import alignment
from notan.methods._contrast import evenness, negative_entropy
from notan.methods._progress import Progress
from notan.methods.sepclr import check_groups, stratified
from notan.nets.heads import mlp
from notan.nets.protocols import ImageEncoder
from notan.views.augment import contrastive
from notan.views.geometry import floats, resize
from notan.views.random import fold

CARD = {
    "title": "Separating common from salient patterns: the supervised variant", "arxiv": "2402.11928", "year": 2024,
    "needs": ["image", "group", "attributes"], "task": "features", "encoder": "vit", "salient": "vit",
    "exports": ["safetensors", "hf", "onnx"],
    "claim": "Each number of the salient space follows one attribute of the targets, and the common space none of them.",
    "paper": "dSprites on a grid of digits; the table is not available to us.",
    "cost": "Two passes of the common encoder and one of the salient one per picture.",
    "deviations": [
        "Attributes are whole numbers, and one width serves all of them; the paper has a smaller one for the shape.",
        "The picture as it is is one of the two views of the common space.",
    ],
    "floor": {"data": "overlay", "metric": "salient", "steps": 60, "value": -0.7, "random": 0.0},
}

RECIPES = {
    "paper": {                                                          # dSprites on digits
        "encoder": {"name": "convnet", "widths": [32, 64, 128, 256, 512], "strides": [2, 2, 2, 2, 2]},
        "salient": {"name": "convnet", "widths": [32, 64, 128, 256, 512], "strides": [2, 2, 2, 2, 2]},
        "optimiser": {"name": "adamw", "lr": 3e-4}, "batch": 1024, "epochs": 250, "warmup": 0.0,
        "method": {"factors": 5},
    },
    "small": {
        "encoder": {"name": "convnet", "widths": [32, 64, 128, 128], "strides": [2, 2, 2, 1]},
        "salient": {"name": "convnet", "widths": [32, 64, 128, 128], "strides": [2, 2, 2, 1]},
        "optimiser": {"name": "adamw", "lr": 1e-3}, "batch": 128, "epochs": 10, "warmup": 0.1,
        "method": {"flip": 0.0},
    },
}


class SepCLRSupervised(nn.Module):
    """A common space, and one salient number for each attribute.

    factors: attributes of a row, as many as the column holds.
    salience: weight of the salient term.
    lam: weight of k-JEM, minus the joint entropy.
    width: of the attributes' kernel, in squares of their unit.
    crop: smallest share of the picture in the other view.
    flip: probability of mirroring it.
    hidden: width of the heads' hidden layers.
    dim: width of c.
    """

    def __init__(
        self, encoder: ImageEncoder, salient: ImageEncoder, *, factors: int = 2, salience: float = 100.0, lam: float = 10.0,
        width: float = 0.025, crop: float = 0.5, flip: float = 0.5, hidden: int = 128, dim: int = 32,
    ) -> None:
        super().__init__()
        if width <= 0:
            raise NotanError(f"width = {width}", "above 0", "--width 0.025")
        self.encoder, self.salient = encoder, salient
        self.factors, self.salience, self.lam, self.width, self.crop, self.flip = factors, salience, lam, width, crop, flip
        self.common_head = mlp(encoder.dim, hidden, dim, norm="none")
        self.salient_head = mlp(salient.dim, hidden, factors, norm="none")

    def loss(self, batch: dict, progress: Progress) -> dict[str, Tensor]:
        target, known = check_groups(batch["group"]), batch["attributes"]                       # (B,) bool, (B, A)
        if known.shape[1] != self.factors:
            raise NotanError(f"{known.shape[1]} attributes for {self.factors} factors", "one for each",
                             f"--factors {known.shape[1]}")
        x = self.whole(batch)
        both = self.common_head(self.encoder.features(torch.cat([x, self.view(batch)])))
        c = F.normalize(both, dim=1).chunk(2)                           # (B, d) twice
        s = self.salient_head(self.salient.features(x))                 # (B, A)
        kept = torch.where(target[:, None], s, 0)
        common = world.mean(alignment(*c).sum(), len(x)) + (evenness(c[0], t=1) + evenness(c[1], t=1)) / 2
        zero = world.mean(s[~target].square().sum(), (~target).sum() * self.factors)            # the pull of background to 0
        ties = torch.stack([tied(s[target, i], known[target, i], self.width) for i in range(self.factors)])
        even = torch.stack([evenness(kept[:, i : i + 1], t=1) for i in range(self.factors)])
        salient = (ties.mean() + zero) / 2 + even.mean()
        apart = negative_entropy(torch.cat([c[0], kept], 1), t=1)
        loss = common + self.salience * salient + self.lam * apart
        return {"loss": loss, "common": common.detach(), "salient": salient.detach(), "apart": apart.detach()}

    def batches(self, columns: dict[str, np.ndarray], batch_size: int, seed: int, epoch: int) -> np.ndarray:
        """Both groups in every batch, in their share of the data."""
        return stratified(columns["group"], batch_size, seed, epoch)

    def view(self, batch: dict) -> Tensor:                              # (B, C, S, S)
        return contrastive(batch["image"], fold(batch["key"], 1), self.encoder.image_size, scale=self.crop, flip=self.flip,
                           jitter=0.0, grey=0.0, blur=0.0)

    def encode(self, batch: dict) -> dict[str, Tensor]:                 # (B, D), (B, A)
        x = self.whole(batch)
        return {"common": self.encoder.features(x), "salient": self.salient_head(self.salient.features(x))}

    def whole(self, batch: dict) -> Tensor:
        return resize(floats(batch["image"]), self.encoder.image_size)  # (B, C, S, S)

    @torch.no_grad()
    def pictures(self, batch: dict) -> dict[str, Tensor]:
        return {"picture": self.whole(batch), "view": self.view(batch)}


def tied(s: Tensor, a: Tensor, width: float) -> Tensor:
    """The mean over pairs j != k of this and other ranks' targets of exp(-(a_j - a_k)^2 / (2 width)) (s_j - s_k)^2: (n,), (n,).

    A negative attribute ties nothing. 0 where there are no pairs.
    """
    every, known = world.gather(s), world.gather_plain(a)               # (N,)
    start = world.offset(len(s))
    there = (a >= 0)[:, None] & (known >= 0)
    there[torch.arange(len(s)), start + torch.arange(len(s))] = False
    weight = torch.exp(-(a[:, None] - known).to(s.dtype).square() / (2 * width)) * there        # (n, N)
    return world.mean((weight * (s[:, None] - every).square()).sum(), there.sum())


def example(rows: int, dtype: torch.dtype) -> tuple[SepCLRSupervised, dict]:
    from notan.methods._example import images
    from notan.nets.vit import ViT

    torch.manual_seed(0)
    towers = [ViT(image_size=16, patch=4, dim=32, depth=2, heads=2) for _ in range(2)]
    about = {"group": torch.arange(rows) % 2, "attributes": torch.stack([torch.arange(rows) % 3, torch.arange(rows) % 2], 1)}
    return SepCLRSupervised(*towers, hidden=32, dim=16).to(dtype), images(rows) | about
