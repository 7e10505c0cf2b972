"""SepCLR: what two groups of pictures share, and what only one of them has, in two spaces.

Louiset, Duchesnay, Grigis and Gori, "Separating common from salient patterns with Contrastive Representation Learning", ICLR
2024 (arXiv 2402.11928).

**What it is.** Some pictures are background (healthy, say), some targets (ill). A common encoder is to hold what varies in both,
a salient one what varies among targets alone, and nothing else. Both are trained by maximal information, as alignment of two
views and uniformity; salient features of background are to be 0; and the two are to share nothing, for which the paper maximises
their joint entropy. c = P_c(E_c(view)) at unit length, s = P_s(E_s(view)), 0 in place of s where a row is background; kernels
exp(-|x - y|^2):

    A = mean |x_i - x'_i|^2,   U = log mean over i < j of exp(-|x_i - x_j|^2),   J = mean_i log mean_j of exp(-|x_i - x_j|^2)
    common      L_c = A(c, c') + U(c) + U(c')                       all rows
    salient     L_s = A(s, s') of targets + U(s) + U(s')            all rows: background stands at 0, and targets leave it
    nothing     L_r = mean |s|^2 of background                      (both views)
    apart       L_j = mean of J([c, s]) and J([c', s'])             minus the entropy H(c, s): k-JEM
    L = L_c + b_s L_s + b_r L_r + lam L_j

**When it helps.** You have two groups and want to know what sets one apart from the other, not what is most visible: lesions
over anatomy, defects over cells, treated over untreated. Column `group`: 0 background, 1 target.

**What it costs.** Two encoders, two full passes of each per picture. Batches hold both groups in their share of the data.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from notan import world
from notan.data import keys
from notan.errors import NotanError
from notan.losses.geometry import alignment
from notan.methods._contrast import evenness, negative_entropy
from notan.methods._progress import Progress
from notan.nets.heads import mlp
from notan.nets.protocols import ImageEncoder
from notan.views.augment import contrastive
from notan.views.geometry import floats, resize
from notan.views.random import fold

CARD = {
    "title": "Separating common from salient patterns with Contrastive Representation Learning", "arxiv": "2402.11928",
    "year": 2024, "needs": ["image", "group"], "task": "features", "encoder": "vit", "salient": "vit",
    "exports": ["safetensors", "hf", "onnx"],
    "claim": "Contrast with a space for what is common and one for what only targets have separates the two better than "
             "autoencoders that do so.",
    "paper": "Tables not available to us: a clear win over autoencoders of contrastive analysis on CIFAR-10 with MNIST over it, "
             "dSprites, CelebA and CheXpert, by its reviewers.",
    "cost": "Two encoders, two full passes of each per picture.",
    "deviations": [
        "The common alignment is the squared distance, as in the released code; the paper writes a sum over views in a log.",
        "Batches hold both groups in their share of the data, at least two rows of each; the code takes them as they come.",
        "Heads are on the encoders' features as they are; the code's encoders end in 32 numbers.",
        "The default weights are the ones of CheXpert, 1, 10 and 10: the ones of CIFAR-10, 1,000, 1,000 and 10 (paper recipe), "
        "turned the two spaces round in short runs.",
    ],
    "floor": {"data": "overlay", "metric": "salient", "steps": 60, "value": 1.5, "random": 5.6},
}

RECIPES = {
    "paper": {                                                          # CIFAR-10 with MNIST over it
        "encoder": {"name": "resnet18", "stem": "cifar"}, "salient": {"name": "resnet18", "stem": "cifar"},
        "optimiser": {"name": "adamw", "lr": 3e-4}, "batch": 512, "epochs": 250, "warmup": 0.0,
        "method": {"salience": 1000.0, "nothing": 1000.0, "lam": 10.0},
    },
    "small": {
        "encoder": {"name": "convnet", "widths": [32, 64, 128, 128], "strides": [2, 2, 2, 1]},
        "salient": {"name": "convnet", "widths": [32, 64, 128, 128], "strides": [2, 2, 2, 1]},
        "optimiser": {"name": "adamw", "lr": 1e-3}, "batch": 128, "epochs": 10, "warmup": 0.1,
        "method": {"crop": 0.5, "flip": 0.0, "blur": 0.0},
    },
}


class SepCLR(nn.Module):
    """A common and a salient space.

    salience: weight of the salient term, b_s.
    nothing: weight of the salient features of background, b_r.
    lam: weight of k-JEM, minus the joint entropy.
    crop: smallest share of the picture in a crop.
    flip: probability of mirroring a view.
    jitter: strength of the colour jitter; 0.5 is the paper's.
    grey: probability of a view without colour.
    blur: probability of blur.
    hidden: width of the heads' hidden layers.
    dim: width of c and of s.
    """

    def __init__(
        self, encoder: ImageEncoder, salient: ImageEncoder, *, salience: float = 1.0, nothing: float = 10.0, lam: float = 10.0,
        crop: float = 0.2, flip: float = 0.5, jitter: float = 0.5, grey: float = 0.2, blur: float = 0.0, hidden: int = 128,
        dim: int = 32,
    ) -> None:
        super().__init__()
        self.encoder, self.salient = encoder, salient
        self.salience, self.nothing, self.lam = salience, nothing, lam
        self.crop, self.flip, self.jitter, self.grey, self.blur = crop, flip, jitter, grey, blur
        self.common_head = mlp(encoder.dim, hidden, dim)
        self.salient_head = mlp(salient.dim, hidden, dim)

    def loss(self, batch: dict, progress: Progress) -> dict[str, Tensor]:
        target = check_groups(batch["group"])                           # (B,) bool
        x = torch.cat([self.view(batch, 1), self.view(batch, 2)])       # (2B, C, S, S)
        c = F.normalize(self.common_head(self.encoder.features(x)), dim=1).chunk(2)             # (B, d) twice
        s = self.salient_head(self.salient.features(x)).chunk(2)
        kept = [torch.where(target[:, None], v, 0) for v in s]          # s' = 0 for background, without a gradient
        common = world.mean(alignment(*c).sum(), len(x) / 2) + evenness(c[0], t=1) + evenness(c[1], t=1)
        salient = salient_term(s, kept, target)
        nothing = world.mean(torch.stack(s).square().sum(2)[:, ~target].sum() / 2, (~target).sum())
        apart = torch.stack([negative_entropy(torch.cat([a, b], 1), t=1) for a, b in zip(c, kept)]).mean()
        loss = common + self.salience * salient + self.nothing * nothing + self.lam * apart
        return {"loss": loss, "common": common.detach(), "salient": salient.detach(), "background": nothing.detach(),
                "apart": apart.detach()}

    def batches(self, columns: dict[str, np.ndarray], batch_size: int, seed: int, epoch: int) -> np.ndarray:
        """Both groups in every batch, in their share of the data."""
        return stratified(columns["group"], batch_size, seed, epoch)

    def view(self, batch: dict, which: int) -> Tensor:                  # (B, C, S, S)
        return contrastive(batch["image"], fold(batch["key"], which), self.encoder.image_size, scale=self.crop, flip=self.flip,
                           jitter=self.jitter, grey=self.grey, blur=self.blur)

    def encode(self, batch: dict) -> dict[str, Tensor]:                 # (B, D) each
        x = self.whole(batch)
        return {"common": self.encoder.features(x), "salient": self.salient.features(x)}

    def whole(self, batch: dict) -> Tensor:
        return resize(floats(batch["image"]), self.encoder.image_size)  # (B, C, S, S)

    @torch.no_grad()
    def pictures(self, batch: dict) -> dict[str, Tensor]:
        return {"picture": self.whole(batch), "view 1": self.view(batch, 1), "view 2": self.view(batch, 2)}


def salient_term(s: tuple[Tensor, ...], kept: list[Tensor], target: Tensor) -> Tensor:
    """L_s: targets' views agree, and lie evenly, away from each other and from background at 0. 0 without a target."""
    together = world.mean(alignment(*s)[target].sum(), target.sum())
    return together + evenness(kept[0], t=1) + evenness(kept[1], t=1)


def check_groups(group: Tensor) -> Tensor:
    """Which rows are targets, bool (B,). Raises `NotanError` for other groups than 0 and 1."""
    if bool(((group != 0) & (group != 1)).any()):
        raise NotanError(f"column group holds {sorted(set(group.tolist()))[:5]}", "0 for background and 1 for target",
                         "recode it, or name another column with --column theirs=group")
    return group == 1


def stratified(group: np.ndarray, batch_size: int, seed: int, epoch: int) -> np.ndarray:
    """Batches with both groups in their share of the data, at least two rows of each, int64 (steps, B).

    Rows are in a new order every epoch; those left over at its end are not used in it.
    """
    target = np.asarray(group) == 1
    counts = int((~target).sum()), int(target.sum())
    if min(counts) < 2 or batch_size < 4:
        raise NotanError(f"{counts[0]:,} background and {counts[1]:,} target rows for batches of {batch_size}",
                         "two rows of each group in a batch of four or more", "a column group with 0 and 1, or a larger --batch")
    ones = min(max(2, round(batch_size * counts[1] / len(group))), batch_size - 2)
    steps = min(counts[0] // (batch_size - ones), counts[1] // ones)
    order = keys.shuffle(seed, epoch, len(group))
    zero, one = order[~target[order]], order[target[order]]
    parts = [rows[: steps * n].reshape(steps, n) for rows, n in ((zero, batch_size - ones), (one, ones))]
    plan = np.concatenate(parts, 1)
    mixed = keys.shuffle(seed + 1, epoch, batch_size)                   # so that every rank's slice holds both
    return plan[:, mixed]


def example(rows: int, dtype: torch.dtype) -> tuple[SepCLR, dict]:
    from notan.methods._example import images
    from notan.nets.vit import ViT

    torch.manual_seed(0)
    towers = [ViT(image_size=16, patch=4, dim=32, depth=2, heads=2) for _ in range(2)]
    batch = images(rows) | {"group": torch.arange(rows) % 2}
    return SepCLR(*towers, hidden=32, dim=16).to(dtype), batch
