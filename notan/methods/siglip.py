"""SigLIP: each picture with each caption is judged by itself, right or wrong.

Zhai, Mustafa, Kolesnikov and Beyer, "Sigmoid Loss for Language Image Pre-Training", ICCV 2023 (arXiv 2303.15343).

**What it is.** CLIP's two encoders and joint space, and in place of the softmaxes, which need all captions of the batch,
a logistic regression on every pair: z_ij is 1 for a pair, -1 for all others (algorithm 1):

    L = 1/N sum_i sum_j -log sigmoid(z_ij (a_i . b_j / tau + bias))

tau and the bias are learned; bias starts at -10, so that the many wrong pairs are judged right at first.

**When it helps.** As CLIP; its loss can be taken piece by piece, so captions are handed from process to process and no
process holds those of all. It is said to be better than the softmax at small batches.

**What it costs.** As CLIP.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from notan.methods._contrast import each_pair
from notan.methods._pairs import check_tau, cropped, joint, one_caption, whole
from notan.methods._progress import Progress
from notan.nets.dual import Dual, head
from notan.nets.protocols import ImageEncoder, TextEncoder

CARD = {
    "title": "Sigmoid Loss for Language Image Pre-Training", "arxiv": "2303.15343", "year": 2023,
    "needs": ["image", "text or captions"], "task": "features", "image_encoder": "vit", "text_encoder": "text",
    "exports": ["safetensors", "hf", "onnx"],
    "claim": "Judging each pair by itself is as good as a softmax over the batch at large batches and better at small ones.",
    "paper": "WebLI, batch 32,768, ViT-B/16 at 224 px, 18 billion pairs: 73.4 zero-shot on ImageNet; 84.5 for locked pictures "
             "and ViT-g/14 in two days on four chips.",
    "cost": "One pass of each encoder per pair.",
    "deviations": [
        "The picture head is CLIP's linear one on the encoder's features; the paper's pools patches by attention.",
        "The tokenizer is made from the captions at hand (byte-level BPE) unless the text encoder brings one; texts are read to "
        "their end token, causally, as in CLIP.",
        "Of several captions one is drawn by key each epoch.",
    ],
    "floor": {"data": "emoji", "metric": "loss", "steps": 60, "value": 5.15, "random": 10.221},
}

RECIPES = {
    "paper": {
        "image_encoder": {"name": "vit-base", "patch": 16, "positions": "learned"},
        "text_encoder": {"name": "text", "dim": 768, "depth": 12, "heads": 12, "context": 64, "vocabulary": 32000},
        "optimiser": {"name": "adamw", "lr": 1e-3, "betas": [0.9, 0.95], "weight_decay": 1e-4},
        "batch": 32768, "epochs": 10, "warmup": 0.05, "method": {"dim": 768, "crop": 0.9},
    },
    "small": {
        "image_encoder": {"name": "convnet", "widths": [32, 64, 128, 256], "strides": [2, 2, 2, 1]},
        "text_encoder": {"name": "text", "dim": 128, "depth": 2, "heads": 4, "context": 32},
        "optimiser": {"name": "adamw", "lr": 1e-3, "betas": [0.9, 0.98], "weight_decay": 0.1},
        "batch": 128, "epochs": 40, "warmup": 0.1, "method": {"dim": 128},
    },
}


class SigLIP(nn.Module):
    """Two encoders and a joint space.

    tau: temperature at first; learned.
    bias: of every pair's logit at first; learned.
    dim: width of the joint space.
    crop: smallest share of a picture in a crop.
    flip: probability of mirroring a picture; captions may name sides.
    """

    def __init__(self, image_encoder: ImageEncoder, text_encoder: TextEncoder, *, tau: float = 0.1, bias: float = -10.0,
                 dim: int = 512, crop: float = 0.6, flip: float = 0.0) -> None:
        super().__init__()
        check_tau(tau, 1e-4)
        self.image_encoder, self.text_encoder, self.crop, self.flip = image_encoder, text_encoder, crop, flip
        self.image_head, self.text_head = head(image_encoder.dim, dim), head(text_encoder.dim, dim)
        self.log_scale, self.bias = nn.Parameter(torch.tensor(math.log(1 / tau))), nn.Parameter(torch.tensor(bias))

    def loss(self, batch: dict, progress: Progress) -> dict[str, Tensor]:
        x = cropped(batch, self.image_encoder.image_size, scale=self.crop, flip=self.flip)      # (B, C, S, S)
        a = self.image_head(self.image_encoder.features(x))             # (B, d)
        b = self.text_head(self.text_encoder.features(one_caption(batch)))
        tau = (-self.log_scale).exp()
        return {"loss": each_pair(a, b, tau=tau, bias=self.bias), "tau": tau.detach(), "bias": self.bias.detach()}

    def encode(self, batch: dict) -> dict[str, Tensor]:
        return joint(batch, self.image_encoder, self.image_head, self.text_encoder, self.text_head)

    def dual(self) -> Dual:
        tau = float((-self.log_scale.detach()).exp())
        return Dual(self.image_encoder, self.text_encoder, self.image_head, self.text_head, tau=tau)

    def dense(self, batch: dict) -> Tensor:
        return self.image_encoder.maps(whole(batch, self.image_encoder.image_size))             # (B, D, h, w)

    @torch.no_grad()
    def pictures(self, batch: dict) -> dict[str, Tensor]:
        side = self.image_encoder.image_size
        return {"picture": whole(batch, side), "crop": cropped(batch, side, scale=self.crop, flip=self.flip)}


def example(rows: int, dtype: torch.dtype) -> tuple[SigLIP, dict]:
    from notan.methods._example import captioned, tiny_text_encoder
    from notan.nets.vit import ViT

    torch.manual_seed(0)
    return SigLIP(ViT(image_size=16, patch=4, dim=32, depth=2, heads=2), tiny_text_encoder(), dim=16).to(dtype), captioned(rows)
