"""CoOp: learn the words that stand before a class's name, and nothing else.

Zhou, Yang, Loy and Liu, "Learning to Prompt for Vision-Language Models", IJCV 2022 (arXiv 2109.01134).

**What it is.** A CLIP classifies pictures by sentences such as "a photo of a dog.", and which sentence matters by points. So it
is learned: M vectors v take the places of the words before the name, shared by all classes (equation 2), and a few labelled
pictures say what they should be. Both encoders stay as they are.

    t_c = [v_1] ... [v_M] [name of c] .
    p(c | x) = softmax_c( cos(f(x), g(t_c)) / tau )                             (3)
    L = -mean over rows of log p(y | x)

**When it helps.** A few labelled pictures of each class, and the classes will stay the same: on others, that were not there
in training, it often falls behind the plain sentence. It is the row that every later prompt learner is to be compared with.

**What it costs.** The texts of all classes forward and back each step, the pictures forward; M vectors are stored. With
--shots a budget in epochs still counts all rows of the data: give --steps.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from notan.data import DataInfo
from notan.errors import check_between
from notan.methods._pairs import both, cropped, whole
from notan.methods._progress import Progress
from notan.methods._prompting import batches_of, chosen, class_names, classified, unit
from notan.nets.prompted import Prompted
from notan.nets.protocols import DualEncoder

CARD = {
    "title": "Learning to Prompt for Vision-Language Models", "arxiv": "2109.01134", "year": 2022,
    "needs": ["image", "label"], "task": "features", "exports": ["safetensors"],
    "exports_why": "its texts have vectors among their tokens, for which no stock class has a place",
    "claim": "Learned vectors in place of the words before a class's name classify better than sentences that people wrote.",
    "paper": "CLIP ResNet-50, 11 data sets, 16 shots: about 15 points above its hand-written prompts in the mean. ViT-B/16, "
             "trained on half of the classes: 82.69 on these, 63.22 on the others, where CLIP itself has 69.34 and 74.22.",
    "cost": "The texts of all classes each step; pictures forward only.",
    "deviations": [
        "One context for all classes, before the name; contexts of each class and names in the middle are left out.",
        "Vectors begin at the words of the template, as far as they reach, the rest at random.",
        "Crops are resampled with an antialiased triangle filter; the paper's are bicubic.",
        "Names are read as the data has them.",
    ],
    "floor": {"data": "emoji", "metric": "loss", "steps": 60, "value": 2.2, "random": 2.458},
}

RECIPES = {
    "paper": {
        "model": "hf:openai/clip-vit-base-patch16",
        "optimiser": {"name": "sgd", "lr": 2e-3, "momentum": 0.9, "weight_decay": 5e-4},
        "batch": 32, "epochs": 200, "warmup": 0.005, "method": {"prompts": 16},
    },
    "small": {
        "model": {"name": "dual", "image_encoder": {"name": "vit", "dim": 64, "depth": 2, "heads": 2},
                  "text_encoder": {"name": "text", "dim": 64, "depth": 2, "heads": 2, "context": 32}, "dim": 64, "tau": 0.07},
        "optimiser": {"name": "sgd", "lr": 2e-2, "momentum": 0.9, "weight_decay": 5e-4},
        "batch": 32, "epochs": 20, "warmup": 0.05, "method": {"prompts": 4},
    },
}


class CoOp(nn.Module):
    """A learned context before the names of classes.

    prompts: vectors of the context, M.
    template: a sentence with {} for the name; what is before the name says where the vectors begin, what is after it stays.
    shots: pictures of each class to learn from, drawn by the seed; all of them when none is named.
    classes: learn from all classes, or from the base half alone, the first of the sorted ones.
    crop: smallest share of a picture in a crop.
    flip: probability of mirroring.
    """

    def __init__(self, model: DualEncoder, *, data: DataInfo, prompts: int = 16, template: str = "a photo of a {}.",
                 shots: int | None = None, classes: Literal["all", "base"] = "all", crop: float = 0.08,
                 flip: float = 0.5) -> None:
        super().__init__()
        check_between(1, 1000, prompts=prompts)
        self.names, self.shots, self.crop, self.flip = class_names(data, classes), shots, crop, flip
        self.model: Any = Prompted(model, images=0, texts=prompts, depth=1, template=template)

    def batches(self, columns: dict[str, np.ndarray], batch_size: int, seed: int, epoch: int) -> np.ndarray:
        return batches_of(chosen(columns["label"], len(self.names), self.shots, seed), batch_size, seed, epoch)

    def loss(self, batch: dict, progress: Progress) -> dict[str, Tensor]:
        x = cropped(batch, self.model.image_size, scale=self.crop, flip=self.flip)              # (B, C, S, S)
        with torch.no_grad():
            f = unit(self.model.image(x))                               # (B, d)
        g = unit(self.model.text(self.names))                           # (C, d)
        found = classified(f @ g.T / self.model.tau, batch["label"])                            # (3)
        return {"loss": found["ce"], "accuracy": found["accuracy"]}

    def encode(self, batch: dict) -> dict[str, Tensor]:
        """Pictures and texts, which are names of classes."""
        return both(batch, self.model)

    def dense(self, batch: dict) -> Tensor:
        return self.model.maps(whole(batch, self.model.image_size))     # (B, D, h, w)

    @torch.no_grad()
    def pictures(self, batch: dict) -> dict[str, Tensor]:
        side = self.model.image_size
        return {"picture": whole(batch, side), "crop": cropped(batch, side, scale=self.crop, flip=self.flip)}


def example(rows: int, dtype: torch.dtype) -> tuple[CoOp, dict]:
    from notan.methods._example import images, tiny_dual_encoder

    torch.manual_seed(0)
    data = DataInfo("example", rows, ("image", "label"), 16, 3, classes=("cat", "dog", "old house"))
    return CoOp(tiny_dual_encoder(), data=data, prompts=4).to(dtype), images(rows)
