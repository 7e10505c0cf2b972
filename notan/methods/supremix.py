"""SupReMix: contrast for labels that are numbers, with pairs mixed from the batch.

Wu, Dong et al., "Mixup Your Own Pairs", 2023 (arXiv 2309.16633).

**What it is.** Supervised contrast made for classes asks equal labels to agree and treats 21 years and 80 years alike as "not
20". Features then fall into fragments without order. Three changes let the labels' order in. With f the projected views, t
their targets, s = f . f' / tau, and for each anchor i

    w = 1 + |t_i - t'|                                          a negative counts the more, the further away its label is
    u_ik = l f_i + (1 - l) f_k, l ~ Beta(2, 8)                  mixed negatives: with the anchor, for every k of another label
    v_ijk = l f_j + (1 - l) f_k, l = (t_k - t_i) / (t_k - t_j)  mixed positives: two neighbours around the anchor, mixed to its
                                                                very label, for t_j < t_i < t_k within a window
    L_i = -1/|P_i| sum over p in P_i of log( exp(s_ip) / sum over all a of w_ia exp(s_ia) )

P_i are the views of equal target and the mixed positives. Mixtures are constants: the gradient is the anchor's.

**When it helps.** Every row has a number to predict (an age, a height, a price), few rows have the same one, and you want
features that are in order rather than one prediction. Pictures, tables (`--recipe table`) or series (`--recipe series`).
`supervised` on the same data is the plain regression that this has to beat. Without mixing and weight
(`mix_negatives=false,window=0,weight=none`) it is SupCon over equal targets.

**What it costs.** Two passes of the encoder per row, and as many cosines as there are triples of neighbours: few beside the
encoder with 64 rows, a quarter of a batch's cube where the window is wide. They are never held all at once.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from notan.data import DataInfo, keys
from notan.errors import NotanError, check_between
from notan.losses.mixed_pairs import Mixing
from notan.methods import _inputs
from notan.methods._contrast import near_targets
from notan.methods._progress import Progress
from notan.nets.heads import mlp
from notan.nets.norm import GlobalBatchNorm1d
from notan.nets.protocols import Encoder
from notan.views.random import fold

CARD = {
    "title": "Mixup Your Own Pairs", "arxiv": "2309.16633", "year": 2023,
    "needs": ["image or features or series", "target"], "task": "features", "encoder": "vit",
    "exports": ["safetensors", "hf", "onnx"],
    "claim": "Pairs mixed from the batch, and negatives weighted by how far their label is, make contrast order features by a "
             "continuous label, for lower errors than plain regression and than supervised contrast by equal labels.",
    "paper": "AgeDB-DIR, mean absolute error of a linear probe over all ages: 7.12, as its authors report; lower errors than "
             "plain regression and SupCon on six data sets of pictures, volumes, texts and tables.",
    "cost": "Two full passes through the encoder per row, and targets.",
    "deviations": [
        "The released code sorts the labels of mixtures apart from the mixtures, and shifts the logits of mixtures by a maximum "
        "of their own; here labels and mixtures belong together, in one softmax. The released form is not offered.",
        "Targets are brought to a range of 100 before weights and window apply (label_scale): the paper's are ages in years.",
        "The window is 5 of those 100; the paper's is 5 years for faces.",
        "Views of pictures are SimCLR's crop, mirror and mild colour; the paper does not state its own.",
        "Views of tables and series are noise on each number and some numbers hidden: the paper has none of its own to follow.",
        "The draws of Beta come from the keys of both rows.",
        "The rate falls as a half cosine; the released code's drops to a tenth at epoch 80 of 100.",
    ],
    "floor": {"data": "diabetes", "recipe": "table", "metric": "loss", "steps": 60, "value": 8.5, "random": 9.0},
}

RECIPES = {
    "paper": {                                                          # faces of IMDB-WIKI
        "encoder": {"name": "resnet50", "stem": "imagenet"},
        "optimiser": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.0},
        "batch": 64, "epochs": 100, "warmup": 0.0, "method": {"hidden": 2048},
    },
    "small": {
        "encoder": {"name": "convnet", "widths": [32, 64, 128, 256], "strides": [2, 2, 2, 1]},
        "optimiser": {"name": "adamw", "lr": 2e-3, "betas": [0.9, 0.95], "weight_decay": 0.05},
        "batch": 64, "epochs": 20, "warmup": 0.1, "method": {"hidden": 256, "dim": 64},
    },
    "table": {
        "encoder": {"name": "table", "hidden": [256, 256]},
        "optimiser": {"name": "adamw", "lr": 1e-3, "betas": [0.9, 0.95], "weight_decay": 0.05},
        "batch": 64, "epochs": 100, "warmup": 0.1, "method": {"hidden": 256, "dim": 64},
    },
    "series": {
        "encoder": {"name": "series", "widths": [64, 128, 256]},
        "optimiser": {"name": "adamw", "lr": 1e-3, "betas": [0.9, 0.95], "weight_decay": 0.05},
        "batch": 64, "epochs": 100, "warmup": 0.1, "method": {"hidden": 256, "dim": 64},
    },
}


class SupReMix(nn.Module):
    """Contrast of numbers.

    tau: temperature of the softmax.
    label_scale: range that targets are brought to, on which window and weight depend; none leaves them as they are.
    window: how far below and above an anchor the two rows of a mixed positive may lie, in those units; 0 for none.
    mix_negatives: whether there are mixed negatives.
    alpha: first parameter of Beta, from which a mixed negative's share of its anchor is drawn.
    beta: second parameter of Beta.
    weight: what a negative counts by its distance d in label: linear (1 + d), squared (1 + d squared) or none (1).
    detach: whether mixtures are constants.
    together: rows of neighbouring targets that enter a batch as a group; 1 is a random batch, 3 or more make sure of mixed
        positives where batches are small.
    crop: smallest share of the picture in a crop.
    flip: probability of mirroring a view.
    jitter: strength of the colour jitter; 1 is SimCLR's for ImageNet.
    grey: probability of a view without colour.
    blur: probability of blur.
    noise: of tables and series, noise on each number, in its standard deviations.
    hide: of tables and series, probability that a number is replaced by its mean.
    hidden: width of the projector's hidden layer.
    dim: width of f.
    """

    def __init__(
        self, encoder: Encoder, *, data: DataInfo, tau: float = 0.3, label_scale: float | None = 100.0, window: float = 5.0,
        mix_negatives: bool = True, alpha: float = 2.0, beta: float = 8.0,
        weight: Literal["linear", "squared", "none"] = "linear", detach: bool = True, together: int = 1, crop: float = 0.5,
        flip: float = 0.5, jitter: float = 0.3, grey: float = 0.0, blur: float = 0.0, noise: float = 0.1, hide: float = 0.1,
        hidden: int = 2048, dim: int = 128,
    ) -> None:
        super().__init__()
        if not tau > 0 or not alpha > 0 or not beta > 0 or not window >= 0:
            raise NotanError(f"tau = {tau}, alpha = {alpha}, beta = {beta}, window = {window}",
                             "numbers above 0, a window of 0 or more", "--tau 0.3 --alpha 2 --beta 8 --window 5")
        check_between(1, data.rows, together=together)
        self.low, high = _inputs.target_range(data)
        self.scale = 1.0 if label_scale is None else label_scale / (high - self.low)
        if not self.scale > 0:
            raise NotanError(f"label_scale = {label_scale}", "a range above 0", "--label-scale 100")
        self.encoder, self.tau, self.share = encoder, tau, (alpha, beta) if mix_negatives else None
        self.how = Mixing(window, weight, detach)
        self.views = _inputs.Views(crop, flip, jitter, grey, blur, noise, hide)
        self.batches = partial(neighbours, size=together) if together > 1 else None
        self.projector = nn.Sequential(*mlp(encoder.dim, hidden, dim), GlobalBatchNorm1d(dim))

    def loss(self, batch: dict, progress: Progress) -> dict[str, Tensor]:
        key = batch["key"]
        both = zip(*(_inputs.view(batch, fold(key, which), self.encoder, self.views) for which in (1, 2)))
        z = self.projector(self.encoder.features(*(torch.cat(x) for x in both)))        # (2B, d): one pass, one batch norm
        t = (batch["target"].to(z) - self.low) * self.scale
        loss, mixed = near_targets(torch.stack(z.chunk(2), 1), t, key, tau=self.tau, beta=self.share, how=self.how)
        return {"loss": loss, "mixed": mixed}

    def encode(self, batch: dict) -> Tensor:
        return self.encoder.features(*_inputs.whole(batch, self.encoder))               # (B, D)

    @torch.no_grad()
    def pictures(self, batch: dict) -> dict[str, Tensor]:
        if "image" not in batch:
            return {}
        views = (_inputs.view(batch, fold(batch["key"], which), self.encoder, self.views)[0] for which in (1, 2))
        return {"picture": _inputs.whole(batch, self.encoder)[0], **dict(zip(("view 1", "view 2"), views))}


def neighbours(columns: dict[str, np.ndarray], batch_size: int, seed: int, epoch: int, *, size: int) -> np.ndarray:
    """Batches of groups of `size` rows with neighbouring targets, int64 (steps, B); the groups are others in every epoch.

    Rows of equal target are in a new order every epoch. Rows left over at the ends are not used in it.
    """
    order = keys.shuffle(seed, epoch, len(columns["target"]))
    order = order[np.argsort(columns["target"][order], kind="stable")][epoch % size:]
    groups = order[: (len(columns["target"]) - size + 1) // size * size].reshape(-1, size)
    groups = groups[keys.shuffle(keys.fold(keys.word("groups"), seed).item(), epoch, len(groups))]
    steps = groups.size // batch_size
    return groups.reshape(-1)[: steps * batch_size].reshape(steps, batch_size)


def example(rows: int, dtype: torch.dtype) -> tuple[SupReMix, dict]:
    from notan.methods._example import numbers
    from notan.nets.numbers import Table

    torch.manual_seed(0)
    batch = numbers(rows)
    data = DataInfo("example", rows, ("features", "target"), width=6, target_range=(20.0, 80.0))
    return SupReMix(Table(6, hidden=[16, 16]), data=data, hidden=32, dim=16).to(dtype), batch
