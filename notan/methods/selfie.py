"""Selfie: which of the patches that were taken out belongs here?

Trinh, Luong and Le, "Selfie: Self-supervised Pretraining for Image Embedding", 2019 (arXiv 1906.02940).

**What it is.** BERT's masked prediction for pictures, without regressing pixels. A picture is cut into N patches and K
of them are taken out. A convolutional patch network P turns every patch into a vector, an attention pool A summarises
the patches that are left, and each empty place asks for its own patch among the K taken out of the same picture.

    h_i = P(patch_i)                                     patch network, one for both roles                      (1)
    u = A(u0, h_j + p_j, ...)  for every j left          attention pooling, u0 and positions p learned          (2)
    v_q = u + p_q              for every place q taken   query of a place                                       (3)
    L = mean over q of -log( exp(v_q . h_q) / sum over the K patches k of exp(v_q . h_k) )                      (4)

By equation 3 the context adds the same u . h_k to all queries of a picture: it can make a patch likelier everywhere,
but not here rather than there. `query="token"` lets each place read the context itself; `query="place"` drops u.

**When it helps.** A convolutional network that will be fine-tuned end to end on few labels, on pictures whose layout is
stable enough for a patch to tell where it comes from. It needs no colour augmentation and no large batch.

**What it costs.** Each patch passes once through the patch network: about one pass over the picture's pixels per step.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from notan import world
from notan.errors import NotanError
from notan.methods._progress import Progress
from notan.nets.attention_pool import AttentionPool
from notan.nets.pixels import patchify, unpatchify
from notan.nets.protocols import ConvEncoder
from notan.views.geometry import floats, pad_crop, resize
from notan.views.random import bernoulli, permutation

CARD = {
    "title": "Selfie: Self-supervised Pretraining for Image Embedding",
    "arxiv": "1906.02940",
    "year": 2019,
    "needs": ["image"],
    "task": "features",
    "exports": ["safetensors", "onnx"],
    "encoder": "resnet",
    "claim": "Weights that first learned to put patches back give a convolutional network more accuracy, and less "
             "spread between runs, than starting from scratch; most of all where labels are few.",
    "paper": "ResNet-50 fine-tuned on 5% of ImageNet's labels: 35.6% from scratch, 46.7% after Selfie. Gains on "
             "CIFAR-10, ImageNet 32x32 and 224x224 from 5% to 100% of the labels, with less spread between runs.",
    "cost": "Each patch once through the patch network: one forward and one backward pass over the picture's pixels.",
    "deviations": [
        "No official code exists; what the paper leaves open follows a public re-implementation or is ours.",
        "The tower is the whole patch network: the paper's is a ResNet that ends after its third group (last_group=3), "
        "as in the paper recipe. The claim fine-tunes the full ResNet, with a fresh fourth group, as the paper does; "
        "`notan probe --protocol finetune` fine-tunes the tower alone.",
        "The paper only fine-tunes. Where frozen features are asked for, they are the tower's map of the whole image, "
        "averaged over places.",
        "Context tokens carry their positions, the pooling layers normalise first, and u0 starts at N(0, 0.02).",
        "Images of every size are zero-padded and cropped, as the paper does for 32x32.",
    ],
    "floor": {"data": "digits", "metric": "accuracy", "steps": 60, "value": 0.36, "random": 0.25},
}

RECIPES = {
    "paper": {
        "encoder": {"name": "resnet50", "stem": "imagenet", "preact": True, "last_group": 3},
        "optimiser": {"name": "sgd", "lr": 0.4, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4},
        "batch": 1024, "epochs": 96, "warmup": 0.001, "method": {"grid": 7, "positions": "axial"},
    },
    "small": {
        "encoder": {"name": "convnet", "widths": [32, 64, 128, 256], "strides": [2, 2, 2, 1]},
        "optimiser": {"name": "adamw", "lr": 3e-3, "betas": [0.9, 0.95], "weight_decay": 0.05},
        "batch": 128, "epochs": 0.5, "warmup": 0.05,
        "method": {"depth": 2, "heads": 4, "feedforward": 128, "scaled": True},
    },
}


class Selfie(nn.Module):
    """Hidden patches of an image are told apart by where they belong.

    grid: patches along each side of the picture; 4 for small pictures, 7 in the paper's 224 x 224.
    ratio: share of the patches that are taken out, int(ratio * N) of N.
    query: how a place asks for its patch: additive, summary of the context plus the place's embedding (the paper);
        token, the place reads the context itself as one more token; place, its embedding alone.
    positions: embeddings of places, one free vector each, or axial: the sum of a row's and a column's.
    depth: transformer layers of the attention pooling.
    heads: its heads.
    feedforward: its hidden width.
    dropout: its dropout, in training only.
    scaled: divide the logits by sqrt(D).
    pad: zero padding before the random crop, as a share of the side.
    """

    def __init__(
        self, encoder: ConvEncoder, *, grid: int = 4, ratio: float = 0.25,
        query: Literal["additive", "token", "place"] = "additive", positions: Literal["free", "axial"] = "free",
        depth: int = 3, heads: int = 32, feedforward: int = 640, dropout: float = 0.1, scaled: bool = False,
        pad: float = 0.125,
    ) -> None:
        super().__init__()
        side = encoder.image_size
        if side % grid:
            raise NotanError(f"{grid} patches along {side} pixels", "a grid that divides the side of the images",
                             f"--grid {_divisor(side, grid)}")
        self.encoder: Any = encoder
        self.grid, self.patch, self.pad = grid, side // grid, round(pad * side)
        self.query, self.scaled = query, scaled
        self.tokens = grid**2                                           # N
        self.targets = int(ratio * self.tokens)                         # K
        if not 2 <= self.targets < self.tokens:
            raise NotanError(f"ratio={ratio} hides {self.targets} of {self.tokens} patches",
                             "at least two to choose from, and one left to see", "change --ratio or --grid")
        self.positions = nn.Parameter(torch.empty(2 * grid if positions == "axial" else self.tokens, encoder.dim))
        nn.init.normal_(self.positions, std=0.02)
        if query != "place":
            self.pool = AttentionPool(encoder.dim, depth, heads, feedforward, dropout=dropout)

    def loss(self, batch: dict, progress: Progress) -> dict[str, Tensor]:
        logits = self.logits(*self.puzzle(batch))                       # (B, K, K)
        right = torch.arange(self.targets, device=logits.device)
        rows = F.cross_entropy(logits.mT, right.expand(len(logits), -1), reduction="none")      # (B, K)
        hits = (logits.argmax(2) == right).to(rows.dtype)
        return {"loss": world.mean(rows.sum(), rows.numel()),
                "accuracy": world.mean(hits.sum(), hits.numel())}       # chance is 1 / K

    def puzzle(self, batch: dict) -> tuple[Tensor, Tensor]:
        """Augmented pixels (B, C, S, S), and each row's order of places (B, N), of which the first K are taken out."""
        key = batch["key"]
        x = pad_crop(self.pixels(batch), key, self.pad).pixels
        x = torch.where(bernoulli(key, "flip", 0.5)[:, None, None, None], x.flip(3), x)
        return x, permutation(key, "mask", self.tokens)

    def logits(self, pixels: Tensor, order: Tensor) -> Tensor:
        """v_q . h_k of equation 4: how well hidden patch k fits hidden place q, (B, K, K)."""
        K = self.targets
        h = self.patch_features(pixels)                                 # (B, N, D)
        h, p = _pick(h, order), self.table()[order]                     # (B, N, D), the K hidden ones first
        if self.query == "token":
            v = self.pool(torch.cat([h[:, K:] + p[:, K:], p[:, :K]], 1))[:, -K:]
        elif self.query == "additive":
            v = self.pool(h[:, K:] + p[:, K:])[:, :1] + p[:, :K]        # equations 2 and 3
        else:
            v = p[:, :K]
        s = v.to(h.dtype) @ h[:, :K].mT
        return s / h.shape[2] ** 0.5 if self.scaled else s

    def patch_features(self, pixels: Tensor) -> Tensor:
        """Equation 1: every patch on its own through the tower, averaged over its places, (B, N, D)."""
        B, C, _, _ = pixels.shape
        patches = patchify(pixels, self.patch).view(-1, self.patch, self.patch, C).permute(0, 3, 1, 2)
        return self.encoder.trunk(patches.contiguous()).mean((2, 3)).view(B, self.tokens, -1)

    def table(self) -> Tensor:
        """The embedding of each place in raster order, (N, D)."""
        if len(self.positions) == self.tokens:
            return self.positions
        row, column = self.positions.chunk(2)
        return (row[:, None] + column).flatten(0, 1)

    def encode(self, batch: dict) -> Tensor:
        return self.encoder.features(self.pixels(batch))                # (B, D)

    def dense(self, batch: dict) -> Tensor:
        return self.encoder.maps(self.pixels(batch))                    # (B, D, h, w)

    def pixels(self, batch: dict) -> Tensor:
        return resize(floats(batch["image"]), self.encoder.image_size)

    @torch.no_grad()
    def pictures(self, batch: dict) -> dict[str, Tensor]:
        """The picture, the picture without its hidden patches, and with the patch that each place asks for."""
        x, order = self.puzzle(batch)
        chosen = self.logits(x, order).argmax(2)                        # (B, K)
        places = order[:, : self.targets]
        patches = patchify(x, self.patch)
        grid = (self.grid, self.grid)
        guess = patches.scatter(1, _wide(places, patches), _pick(patches, places.gather(1, chosen)))
        hidden = patches.scatter(1, _wide(places, patches), 0.5)
        pieces = {"hidden": hidden, "guess": guess}
        return {"image": x, **{name: unpatchify(p, self.patch, grid) for name, p in pieces.items()}}


def _pick(x: Tensor, index: Tensor) -> Tensor:
    """Tokens `index` (B, M) of x (B, N, D)."""
    return x.gather(1, _wide(index, x))


def _wide(index: Tensor, x: Tensor) -> Tensor:
    return index[:, :, None].expand(-1, -1, x.shape[2])


def _divisor(side: int, near: int) -> int:
    return min((d for d in range(2, side + 1) if side % d == 0), key=lambda d: abs(d - near))


def example(rows: int, dtype: torch.dtype) -> tuple[Selfie, dict]:
    from notan.methods._example import images
    from notan.nets.resnet import ResNet

    torch.manual_seed(0)
    encoder = ResNet(16, 3, depth=10, width=8, preact=True, last_group=3)
    return Selfie(encoder, depth=1, heads=2, feedforward=16, dropout=0.0).to(dtype), images(rows)
