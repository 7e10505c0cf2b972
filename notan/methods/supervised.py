"""Supervised learning: the same encoder, trained on the labels. What the labels themselves are worth.

**What it is.** A linear layer W on the encoder's features, softmax cross-entropy, and the light augmentation of masked
pre-training (crop and mirror), so that the difference to an unsupervised row is the objective and not the views. Where the
data has no classes but a number to predict, the absolute error of that number, over the range it has.

    L = -mean over labelled rows of log softmax(W f(x) + b)[label]                                  (1)
    L = mean over rows of |w f(x) + b - (target - least) / range|                                   (2)

**When it helps.** As the reference row of a comparison. It uses every label of the training split, where the others use
none until they are probed, so beating its row with few labels is not asked of anyone. Rows whose label is negative
(unlabelled) take no part.

**What it costs.** One full pass per row. Tables and series (`--recipe table`, `--recipe series`) are read as pictures are.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from notan import world
from notan.data import DataInfo
from notan.errors import NotanError
from notan.methods import _inputs
from notan.methods._progress import Progress
from notan.nets.protocols import Encoder

CARD = {
    "title": "Supervised reference", "arxiv": "", "year": 2012,
    "needs": ["image or features or series", "label or target"],
    "task": "features", "encoder": "vit", "exports": ["safetensors", "hf", "onnx"],
    "claim": "A reference row: what the same encoder learns from all training labels in the same budget.",
    "paper": "No paper of its own.",
    "cost": "One full pass per row, and labels.",
    "deviations": [],
    "floor": {"data": "digits", "metric": "ridge", "steps": 60, "value": 0.96, "random": 0.919},
}

RECIPES = {
    "paper": {                                                          # He et al. 2016, section 3.4
        "encoder": {"name": "resnet50", "stem": "imagenet"},
        "optimiser": {"name": "sgd", "lr": 0.1, "lr_rule": "linear256", "momentum": 0.9, "weight_decay": 1e-4},
        "batch": 256, "epochs": 90, "warmup": 0.05, "method": {"crop": 0.08},
    },
    "small": {
        "encoder": {"name": "convnet", "widths": [32, 64, 128, 256], "strides": [2, 2, 2, 1]},
        "optimiser": {"name": "adamw", "lr": 2e-3, "betas": [0.9, 0.95], "weight_decay": 0.05},
        "batch": 128, "epochs": 20, "warmup": 0.1, "method": {"crop": 0.6},
    },
    "table": {
        "encoder": {"name": "table", "hidden": [256, 256]},
        "optimiser": {"name": "adamw", "lr": 1e-3, "betas": [0.9, 0.95], "weight_decay": 0.05},
        "batch": 64, "epochs": 100, "warmup": 0.1, "method": {},
    },
    "series": {
        "encoder": {"name": "series", "widths": [64, 128, 256]},
        "optimiser": {"name": "adamw", "lr": 1e-3, "betas": [0.9, 0.95], "weight_decay": 0.05},
        "batch": 64, "epochs": 100, "warmup": 0.1, "method": {},
    },
}


class Supervised(nn.Module):
    """Cross-entropy on the labels, or the absolute error of the targets.

    crop: smallest share of the picture in a crop.
    flip: probability of mirroring.
    noise: of tables and series, noise on each number, in its standard deviations.
    hide: of tables and series, probability that a number is replaced by its mean.
    smoothing: share of the target that is spread over all classes.
    """

    def __init__(
        self, encoder: Encoder, *, data: DataInfo, crop: float = 0.2, flip: float = 0.5, noise: float = 0.1, hide: float = 0.1,
        smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.classes = len(data.classes)
        if self.classes < 2 and data.target_range is None:
            raise NotanError(f"{data.name} has {self.classes} classes and no target",
                             "labels of at least two classes, or numbers in a column `target`",
                             "name a column with --column theirs=label or theirs=target, or leave the supervised row out")
        self.low, self.high = (0.0, 1.0) if self.classes > 1 else _inputs.target_range(data)
        self.encoder, self.smoothing = encoder, smoothing
        self.views = _inputs.Views(crop, flip, 0.0, 0.0, 0.0, noise, hide)
        self.head = nn.Linear(encoder.dim, self.classes if self.classes > 1 else 1)

    def loss(self, batch: dict, progress: Progress) -> dict[str, Tensor]:
        out = self.head(self.encoder.features(*self.view(batch)))       # (B, classes), or (B, 1)
        if self.classes < 2:
            y = (batch["target"].to(out) - self.low) / (self.high - self.low)
            error = (out[:, 0] - y).abs()                               # (B,)
            mae = world.mean(error.sum(), len(error))
            return {"loss": mae, "mae": mae.detach() * (self.high - self.low)}                  # (2)
        labelled = batch["label"] >= 0                                  # (B,)
        target = batch["label"].clamp(min=0)
        nll = F.cross_entropy(out, target, reduction="none", label_smoothing=self.smoothing)   # (B,)
        right = (out.argmax(1) == target).to(nll.dtype)
        return {"loss": world.mean((nll * labelled).sum(), labelled.sum()),                     # (1)
                "accuracy": world.mean((right * labelled).sum(), labelled.sum())}

    def view(self, batch: dict) -> tuple[Tensor, ...]:                  # pixels (B, C, S, S), or numbers
        return _inputs.light_view(batch, self.encoder, self.views)

    def encode(self, batch: dict) -> Tensor:
        return self.encoder.features(*self.whole(batch))                # (B, D)

    def dense(self, batch: dict) -> Tensor:
        return self.encoder.maps(*self.whole(batch))                    # type: ignore[attr-defined] # (B, D, h, w)

    def whole(self, batch: dict) -> tuple[Tensor, ...]:
        return _inputs.whole(batch, self.encoder)

    def pictures(self, batch: dict) -> dict[str, Tensor]:
        return {"picture": self.whole(batch)[0], "view": self.view(batch)[0]} if "image" in batch else {}


def example(rows: int, dtype: torch.dtype) -> tuple[Supervised, dict]:
    from notan.methods._example import images
    from notan.nets.vit import ViT

    torch.manual_seed(0)
    data = DataInfo("example", rows, ("image", "label"), 16, 3, classes=("a", "b", "c"))
    encoder = ViT(image_size=16, patch=4, dim=32, depth=2, heads=2)
    return Supervised(encoder, data=data).to(dtype), images(rows)
