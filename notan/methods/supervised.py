"""Supervised learning: the same encoder, trained on the labels. What the labels themselves are worth.

**What it is.** A linear layer W on the encoder's features, softmax cross-entropy, and the light augmentation of masked
pre-training (crop and mirror), so that the difference to an unsupervised row is the objective and not the views.

    L = -mean over labelled rows of log softmax(W f(x) + b)[label]                                  (1)

**When it helps.** As the reference row of a comparison. It uses every label of the training split, where the others use
none until they are probed, so beating its row with few labels is not asked of anyone. Rows whose label is negative
(unlabelled) take no part.

**What it costs.** One full pass per picture.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from notan import world
from notan.data import DataInfo
from notan.errors import NotanError
from notan.methods._progress import Progress
from notan.nets.protocols import ImageEncoder
from notan.views.geometry import crop, crop_boxes, floats, resize
from notan.views.random import bernoulli

CARD = {
    "title": "Supervised reference", "arxiv": "", "year": 2012,
    "needs": ["image", "label"], "task": "features", "encoder": "vit", "exports": ["safetensors", "hf", "onnx"],
    "claim": "A reference row: what the same encoder learns from all training labels in the same budget.",
    "paper": "No paper of its own.",
    "cost": "One full pass per picture, and labels.",
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
}


class Supervised(nn.Module):
    """Cross-entropy on the labels.

    crop: smallest share of the picture in a crop.
    flip: probability of mirroring.
    smoothing: share of the target that is spread over all classes.
    """

    def __init__(
        self, encoder: ImageEncoder, *, data: DataInfo, crop: float = 0.2, flip: float = 0.5, smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if len(data.classes) < 2:
            raise NotanError(f"{data.name} has {len(data.classes)} classes", "labels of at least two classes",
                             "name a label column with --column theirs=label, or leave the supervised row out")
        self.encoder, self.crop, self.flip, self.smoothing = encoder, crop, flip, smoothing
        self.head = nn.Linear(encoder.dim, len(data.classes))

    def loss(self, batch: dict, progress: Progress) -> dict[str, Tensor]:
        labelled = batch["label"] >= 0                                  # (B,)
        logits = self.head(self.encoder.features(self.view(batch)))     # (B, classes)
        target = batch["label"].clamp(min=0)
        nll = F.cross_entropy(logits, target, reduction="none", label_smoothing=self.smoothing)    # (B,)
        right = (logits.argmax(1) == target).to(nll.dtype)
        return {"loss": world.mean((nll * labelled).sum(), labelled.sum()),                     # (1)
                "accuracy": world.mean((right * labelled).sum(), labelled.sum())}

    def view(self, batch: dict) -> Tensor:                              # (B, C, S, S)
        image, key = batch["image"], batch["key"]
        boxes = crop_boxes(key, height=image.shape[2], width=image.shape[3], scale=(self.crop, 1.0))
        return crop(image, boxes, bernoulli(key, "flip", self.flip), self.encoder.image_size).pixels

    def encode(self, batch: dict) -> Tensor:
        return self.encoder.features(self.whole(batch))                 # (B, D)

    def dense(self, batch: dict) -> Tensor:
        return self.encoder.maps(self.whole(batch))                     # (B, D, h, w)

    def whole(self, batch: dict) -> Tensor:
        return resize(floats(batch["image"]), self.encoder.image_size)  # (B, C, S, S)

    def pictures(self, batch: dict) -> dict[str, Tensor]:
        return {"picture": self.whole(batch), "view": self.view(batch)}


def example(rows: int, dtype: torch.dtype) -> tuple[Supervised, dict]:
    from notan.methods._example import images
    from notan.nets.vit import ViT

    torch.manual_seed(0)
    data = DataInfo("example", rows, ("image", "label"), 16, 3, classes=("a", "b", "c"))
    encoder = ViT(image_size=16, patch=4, dim=32, depth=2, heads=2)
    return Supervised(encoder, data=data).to(dtype), images(rows)
