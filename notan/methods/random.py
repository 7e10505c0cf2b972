"""Random weights: the encoder as it was made, never trained. The floor under every other number.

**What it is.** No loss and no step. The encoder's first weights depend on the seed alone, so this row is exactly where
every other method with the same encoder and seed began, and the distance from it is what training has done.

**When it helps.** Always, as a reference. Random features are not useless: a linear probe reads a good deal from random
projections of the pixels, and a method that does not beat this row has learned nothing (Saxe et al., "On Random Weights
and Unsupervised Feature Learning", ICML 2011).

**What it costs.** Nothing but the probe.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from notan.methods import _inputs
from notan.methods._progress import Progress
from notan.nets.protocols import Encoder

CARD = {
    "title": "On Random Weights and Unsupervised Feature Learning", "arxiv": "", "year": 2011,
    "needs": ["image or features or series"], "task": "features", "encoder": "vit", "exports": ["safetensors", "hf", "onnx"],
    "trains": False,
    "claim": "A reference row: how much of a score the architecture gives without any training.",
    "paper": "None of ours to compare with: the paper's random features are of other architectures.",
    "cost": "No training.",
    "deviations": ["One encoder as it is initialised; the paper searches over architectures by their random score."],
}

RECIPES = {
    "paper": {
        "encoder": {"name": "resnet50", "stem": "imagenet"},
        "optimiser": {"name": "sgd", "lr": 0.0}, "batch": 256, "epochs": 0, "warmup": 0.0, "method": {},
    },
    "small": {
        "encoder": {"name": "vit", "dim": 128, "depth": 4, "heads": 4, "pool": "mean"},
        "optimiser": {"name": "sgd", "lr": 0.0}, "batch": 256, "epochs": 0, "warmup": 0.0, "method": {},
    },
}


class Random(nn.Module):
    """An encoder that is left alone."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(False)                    # type: ignore[attr-defined]

    def loss(self, batch: dict, progress: Progress) -> dict[str, Tensor]:
        """Zero; no gradient leads from it to a weight, and no weight asks for one."""
        return {"loss": torch.zeros((), device=batch["row"].device)}

    def encode(self, batch: dict) -> Tensor:
        return self.encoder.features(*_inputs.whole(batch, self.encoder))                      # (B, D)

    def dense(self, batch: dict) -> Tensor:
        return self.encoder.maps(*_inputs.whole(batch, self.encoder))   # type: ignore[attr-defined] # (B, D, h, w)


def example(rows: int, dtype: torch.dtype) -> tuple[Random, dict]:
    from notan.methods._example import images
    from notan.nets.vit import ViT

    torch.manual_seed(0)
    return Random(ViT(image_size=16, patch=4, dim=32, depth=2, heads=2)).to(dtype), images(rows)
