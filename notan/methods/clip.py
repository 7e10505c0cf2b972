"""CLIP: a picture must find its caption among those of the batch, and a caption its picture.

Radford, Kim, Hallacy, Ramesh, Goh, Agarwal and others, "Learning Transferable Visual Models From Natural Language
Supervision", ICML 2021 (arXiv 2103.00020).

**What it is.** Two encoders, one of pictures and one of texts, each with a linear head W into one space. For N pairs all
N x N cosines are taken; a row's and a column's own pair is the right answer of a softmax (figure 3):

    a_i = W_image f(picture_i) / |.|,   b_i = W_text g(caption_i) / |.|
    L = 1/2 mean_i -log softmax_j(a_i . b_j / tau)[i]  +  1/2 mean_j -log softmax_i(a_i . b_j / tau)[j]

tau is learned, as log(1/tau), and kept at 1/100 or more (section 2.5). What comes out compares any picture with any text:
classes by their names, search by a sentence.

**When it helps.** You have captions, however noisy, and want to search by words or to classify by names that no one
labelled. Pictures whose captions repeat each other are told apart nevertheless: many equal captions in a batch hurt.

**What it costs.** One pass of each encoder per pair, captions in groups of like length, and a large batch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from notan.methods._contrast import both_ways
from notan.methods._pairs import check_tau, cropped, joint, learned_tau, one_caption, whole
from notan.methods._progress import Progress
from notan.nets.dual import Dual, head
from notan.nets.protocols import ImageEncoder, TextEncoder

CARD = {
    "title": "Learning Transferable Visual Models From Natural Language Supervision", "arxiv": "2103.00020", "year": 2021,
    "needs": ["image", "text or captions"], "task": "features", "image_encoder": "vit", "text_encoder": "text",
    "exports": ["safetensors", "hf", "onnx"],
    "claim": "Matching pictures with their captions gives a picture encoder that classifies by class names alone, without a "
             "labelled picture.",
    "paper": "400 million pairs, batch 32,768, ViT-L/14 at 336 px: 76.2 zero-shot on ImageNet, as a supervised ResNet-50.",
    "cost": "One pass of each encoder per pair.",
    "deviations": [
        "The tokenizer is made from the captions at hand (byte-level BPE) unless the text encoder brings one.",
        "GELU is exact, CLIP's is an approximation; weights of a released CLIP come through transformers with its own.",
        "Crops are resampled with an antialiased triangle filter; the paper's are bicubic.",
        "Of several captions one is drawn by key each epoch.",
    ],
    "floor": {"data": "emoji", "metric": "loss", "steps": 60, "value": 3.1, "random": 4.315},
}

RECIPES = {
    "paper": {
        "image_encoder": {"name": "vit-base", "patch": 32, "pool": "cls", "positions": "learned"},
        "text_encoder": {"name": "text", "dim": 512, "depth": 12, "heads": 8, "context": 77, "vocabulary": 49408},
        "optimiser": {"name": "adamw", "lr": 5e-4, "betas": [0.9, 0.98], "weight_decay": 0.2},
        "batch": 32768, "epochs": 32, "warmup": 0.005, "method": {"dim": 512, "crop": 0.9},
    },
    "small": {
        "image_encoder": {"name": "convnet", "widths": [32, 64, 128, 256], "strides": [2, 2, 2, 1]},
        "text_encoder": {"name": "text", "dim": 128, "depth": 2, "heads": 4, "context": 32},
        "optimiser": {"name": "adamw", "lr": 1e-3, "betas": [0.9, 0.98], "weight_decay": 0.1},
        "batch": 128, "epochs": 40, "warmup": 0.1, "method": {"dim": 128},
    },
}


class CLIP(nn.Module):
    """Two encoders and a joint space.

    tau: temperature at first; learned, and never below 0.01.
    dim: width of the joint space.
    crop: smallest share of a picture in a crop.
    flip: probability of mirroring a picture; captions may name sides.
    """

    def __init__(self, image_encoder: ImageEncoder, text_encoder: TextEncoder, *, tau: float = 0.07, dim: int = 512,
                 crop: float = 0.6, flip: float = 0.0) -> None:
        super().__init__()
        check_tau(tau, 0.01)
        self.image_encoder, self.text_encoder, self.crop, self.flip = image_encoder, text_encoder, crop, flip
        self.image_head, self.text_head = head(image_encoder.dim, dim), head(text_encoder.dim, dim)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / tau)))

    def loss(self, batch: dict, progress: Progress) -> dict[str, Tensor]:
        x = cropped(batch, self.image_encoder.image_size, scale=self.crop, flip=self.flip)      # (B, C, S, S)
        a = self.image_head(self.image_encoder.features(x))             # (B, d)
        b = self.text_head(self.text_encoder.features(one_caption(batch)))
        return {"loss": both_ways(a, b, tau=self.tau), "tau": self.tau.detach()}                # figure 3

    @property
    def tau(self) -> Tensor:
        return learned_tau(self.log_scale)

    def encode(self, batch: dict) -> dict[str, Tensor]:
        return joint(batch, self.image_encoder, self.image_head, self.text_encoder, self.text_head)

    def dual(self) -> Dual:
        return Dual(self.image_encoder, self.text_encoder, self.image_head, self.text_head, tau=float(self.tau.detach()))

    def dense(self, batch: dict) -> Tensor:
        return self.image_encoder.maps(whole(batch, self.image_encoder.image_size))             # (B, D, h, w)

    @torch.no_grad()
    def pictures(self, batch: dict) -> dict[str, Tensor]:
        side = self.image_encoder.image_size
        return {"picture": whole(batch, side), "crop": cropped(batch, side, scale=self.crop, flip=self.flip)}


def example(rows: int, dtype: torch.dtype) -> tuple[CLIP, dict]:
    from notan.methods._example import captioned, tiny_text_encoder
    from notan.nets.vit import ViT

    torch.manual_seed(0)
    return CLIP(ViT(image_size=16, patch=4, dim=32, depth=2, heads=2), tiny_text_encoder(), dim=16).to(dtype), captioned(rows)
