"""A small masked method with everything a run must carry: dropout, a teacher, a queue. And ways to make it sick.

`register()` puts it into the catalogue as "toy", here and in subprocesses.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from notan import catalogue, world
from notan.data import Data, DataInfo, Rows
from notan.losses.regression import masked_mse
from notan.methods._progress import Progress
from notan.nets.decoder import MaskedDecoder
from notan.nets.pixels import patchify
from notan.nets.protocols import TokenEncoder
from notan.nets.teacher import ema_, teacher
from notan.views.geometry import floats
from notan.views.masks import random_mask

CARD = {"title": "Toy", "arxiv": "", "year": 2026, "needs": ["image"], "task": "features", "exports": ["hf", "onnx"],
        "claim": "", "paper": "", "deviations": [], "floor": {}}
RECIPES = {"small": {
    "encoder": {"name": "vit", "patch": 2, "dim": 16, "depth": 2, "heads": 2},
    "optimiser": {"name": "adamw", "lr": 3e-3, "weight_decay": 0.05}, "batch": 32, "epochs": 2, "warmup": 0.1,
    "method": {}}}


class Toy(nn.Module):
    """Paints hidden patches.

    dropout: of the visible tokens.
    decay: of the teacher.
    sick: what is wrong with it.
    """

    def __init__(self, encoder: TokenEncoder, *, dropout: float = 0.1, decay: float = 0.9,
                 sick: Literal["", "nan", "collapse", "dead", "tau", "slow"] = "") -> None:
        super().__init__()
        self.encoder, self.decay, self.sick = encoder, decay, sick
        self.decoder = MaskedDecoder(encoder.dim, encoder.grid, 16, 1, 2, encoder.channels * encoder.patch**2)
        self.target_encoder = teacher(encoder)
        self.dropout = nn.Dropout(dropout)
        self.tau = nn.Parameter(torch.tensor(0.1))
        self.idle = nn.Linear(4, 4)
        self.register_buffer("queue", torch.zeros(64, dtype=torch.int64))

    def loss(self, batch: dict, progress: Progress) -> dict[str, Tensor]:
        x = floats(batch["image"]).to(self.tau.dtype)
        mask = random_mask(batch["key"], self.encoder.tokens, 0.5)
        z = self.dropout(self.encoder(x, mask))
        target = patchify(x, self.encoder.patch)[mask].view(len(x), -1, self.encoder.channels * self.encoder.patch**2)
        rows = masked_mse(self.decoder(z, mask), target).mean(1)
        tau = self.tau.clamp(min=0.2) if self.sick == "tau" else self.tau
        loss = world.mean(rows.sum(), rows.numel()) + 0.01 * (tau - 0.3).square()
        if self.sick != "dead":
            loss = loss + 1e-3 * self.idle.weight.square().mean() + 1e-3 * (self.idle.bias - 1).square().mean()
        if self.sick == "collapse":
            loss = loss * 0 + 100 * self.encoder(x)[:, 1:].square().mean()
        if self.sick == "nan" and progress.step == 5:
            loss = loss * float("inf") - float("inf")
        if self.sick == "slow":
            import time
            time.sleep(0.01)
        return {"loss": loss, "keep": {"row": batch["row"]}}

    def after_step(self, keep: dict, progress: Progress) -> None:
        ema_(self.target_encoder, self.encoder, self.decay)
        self.queue.copy_(torch.cat([keep["row"], self.queue])[:64])

    def encode(self, batch: dict) -> Tensor:
        z = self.encoder.features(floats(batch["image"]))
        return z * 0 + 1 if self.sick == "collapse" else z


def data(rows: int = 256, side: int = 8) -> Data:
    """Blobs at one of four places, their label."""
    draw = np.random.default_rng(0)
    label = draw.integers(0, 4, rows)
    image = draw.integers(0, 60, (rows, 1, side, side)).astype(np.uint8)
    half = side // 2
    for i, c in enumerate(label):
        image[i, 0, (c // 2) * half : (c // 2 + 1) * half, (c % 2) * half : (c % 2 + 1) * half] += 150
    info = DataInfo("blobs", rows // 2, ("image", "label"), side, 1, (0.3,), (0.25,), ("a", "b", "c", "d"))
    cut = rows // 2
    train, test = ({"image": image[part], "label": label[part]} for part in (slice(0, cut), slice(cut, rows)))
    return Data(Rows(train), Rows(test), info, "x")


def register() -> None:
    sys.modules["notan.methods.toy"] = sys.modules[__name__]
    catalogue.methods()["toy"] = catalogue.read(Path(__file__))
