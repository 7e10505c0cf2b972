"""Masked autoencoder: hide three quarters of a picture's patches and paint them from the rest.

He, Chen, Xie, Li, Dollár and Girshick, "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022
(arXiv 2111.06377).

**What it is.** A picture x is cut into N patches. A random share r of them is hidden; the encoder f sees the others and
nothing else. A small decoder g gets what the encoder made of them, one learned vector for every hidden patch, and all
positions, and paints the hidden patches. After training the decoder is thrown away. Section 3 of the paper in symbols:

    M = N - int(N (1 - r)) hidden, uniformly without replacement               masking          (1)
    z = f(x_visible)                                                            encoder          (2)
    p_i = g(z, positions)_i          for every hidden patch i                   decoder          (3)
    t_i = (x_i - mean(x_i)) / sqrt(var(x_i) + 1e-6)                             target           (4)
    L = mean over hidden i of |p_i - t_i|^2 / (values per patch)                reconstruction   (5)

**When it helps.** Unlabelled pictures with structure that spreads over patches; you will fine-tune, or probe dense
features. It needs no colour augmentation, so it suits data where colour or brightness carries meaning. With few steps
and a frozen encoder, contrast (`simclr`) usually separates classes sooner.

**What it costs.** The encoder computes a quarter of the tokens at r = 0.75, once per picture: the cheapest method here.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from notan import world
from notan.losses.regression import masked_mse, normalise_patches
from notan.methods._progress import Progress
from notan.nets.decoder import MaskedDecoder
from notan.nets.pixels import patchify, unpatchify
from notan.nets.protocols import TokenEncoder
from notan.views.geometry import crop, crop_boxes, floats, resize
from notan.views.masks import hidden_count, random_mask
from notan.views.random import bernoulli

CARD = {
    "title": "Masked Autoencoders Are Scalable Vision Learners", "arxiv": "2111.06377", "year": 2022,
    "needs": ["image"], "task": "features", "encoder": "vit", "exports": ["safetensors", "hf", "onnx"],
    "claim": "Painting hidden patches teaches an encoder more than training it on the labels alone.",
    "paper": "ImageNet-1K, fine-tuned top-1: ViT-B/16 83.6, ViT-L/16 85.9, ViT-H/14 86.9 (1600 epochs); ViT-L/16 from "
             "scratch 82.6. Linear probe: ViT-B/16 68.0, ViT-L/16 75.8.",
    "cost": "One pass over a quarter of the tokens and a small decoder per picture.",
    "deviations": [
        "Crops are resampled with an antialiased triangle filter; the paper's are bicubic.",
        "Mask and class tokens are not decayed; the official code decays them.",
        "The small recipe's frozen features are the mean of the patch tokens; the paper probes the class token.",
    ],
    "floor": {"data": "digits", "metric": "loss", "steps": 60, "value": 0.7, "random": 3.1},
}

RECIPES = {
    "paper": {
        "encoder": {"name": "vit-base", "patch": 16, "pool": "cls"},
        "optimiser": {
            "name": "adamw", "lr": 1.5e-4, "lr_rule": "linear256", "betas": [0.9, 0.95], "weight_decay": 0.05,
        },
        "batch": 4096, "epochs": 800, "warmup": 0.05, "method": {},
    },
    "small": {
        "encoder": {"name": "vit", "dim": 128, "depth": 4, "heads": 4, "pool": "mean"},
        "optimiser": {"name": "adamw", "lr": 1e-3, "betas": [0.9, 0.95], "weight_decay": 0.05},
        "batch": 256, "epochs": 20, "warmup": 0.1,
        "method": {"decoder_dim": 64, "decoder_depth": 1, "decoder_heads": 4},
    },
}


class MAE(nn.Module):
    """The masked autoencoder.

    mask_ratio: share of the patches that is hidden.
    norm_pix: paint each patch relative to its own mean and deviation (equation 4); otherwise its normalised pixels.
    decoder_dim: width of the decoder.
    decoder_depth: blocks of the decoder.
    decoder_heads: attention heads of the decoder.
    crop: smallest share of the picture in a crop; 1 keeps the whole picture.
    """

    def __init__(
        self, encoder: TokenEncoder, *, mask_ratio: float = 0.75, norm_pix: bool = True, decoder_dim: int = 512,
        decoder_depth: int = 8, decoder_heads: int = 16, crop: float = 0.2,
    ) -> None:
        super().__init__()
        self.encoder, self.mask_ratio, self.norm_pix, self.crop = encoder, mask_ratio, norm_pix, crop
        hidden_count(encoder.tokens, mask_ratio)                        # an impossible share is refused here
        values = encoder.channels * encoder.patch**2                    # P
        self.decoder = MaskedDecoder(encoder.dim, encoder.grid, decoder_dim, decoder_depth, decoder_heads, values)

    def loss(self, batch: dict, progress: Progress) -> dict[str, Tensor]:
        x = self.view(batch)                                            # (B, C, S, S)
        mask = self.mask(batch)                                         # (B, N), True = hidden
        z = self.encoder(x, mask)                                       # (B, 1 + K, D)           (2)
        pred = self.decoder(z, mask)                                    # (B, M, P)               (3)
        error = masked_mse(pred, self.target(x, mask))                  # (B, M)
        return {"loss": world.mean(error.sum(), error.numel())}         #                         (5)

    def view(self, batch: dict) -> Tensor:
        """A random resized crop, mirrored half of the time: the paper's only augmentation (B, C, S, S)."""
        image, key = batch["image"], batch["key"]
        boxes = crop_boxes(key, height=image.shape[2], width=image.shape[3], scale=(self.crop, 1.0))
        return crop(image, boxes, bernoulli(key, "flip", 0.5), self.encoder.image_size).pixels

    def mask(self, batch: dict) -> Tensor:
        return random_mask(batch["key"], self.encoder.tokens, self.mask_ratio)                  # (1)

    def target(self, x: Tensor, mask: Tensor) -> Tensor:
        """What the hidden patches should be painted as, in raster order (B, M, P)."""
        t = patchify(self.encoder.normalise(x), self.encoder.patch)[mask].unflatten(0, (len(x), -1))
        return normalise_patches(t) if self.norm_pix else t             #                         (4)

    def encode(self, batch: dict) -> Tensor:
        return self.encoder.features(self.whole(batch))                 # (B, D)

    def dense(self, batch: dict) -> Tensor:
        return self.encoder.maps(self.whole(batch))                     # (B, D, h, w)

    def whole(self, batch: dict) -> Tensor:
        return resize(floats(batch["image"]), self.encoder.image_size)  # (B, C, S, S)

    @torch.no_grad()
    def pictures(self, batch: dict) -> dict[str, Tensor]:
        """The crop, what the encoder saw of it, and what the decoder painted into the holes.

        With `norm_pix` the network predicts a patch up to its brightness and contrast, so it gets the true ones back.
        """
        x, mask, patch, grid = self.view(batch), self.mask(batch), self.encoder.patch, self.encoder.grid
        patches = patchify(self.encoder.normalise(x), patch)            # (B, N, P)
        pred = self.decoder(self.encoder(x, mask), mask).to(patches.dtype)                      # (B, M, P)
        if self.norm_pix:
            hidden = patches[mask].view_as(pred)
            pred = pred * (hidden.var(-1, keepdim=True) + 1e-6).sqrt() + hidden.mean(-1, keepdim=True)
        painted = self.encoder.normalise.undo(unpatchify(patches.masked_scatter(mask[..., None], pred), patch, grid))
        seen = unpatchify(patchify(x, patch).masked_fill(mask[..., None], 0.5), patch, grid)
        return {"crop": x, "seen": seen, "painted": painted.clamp(0, 1)}


def example(rows: int, dtype: torch.dtype) -> tuple[MAE, dict]:
    from notan.methods._example import images
    from notan.nets.vit import ViT

    torch.manual_seed(0)
    encoder = ViT(image_size=16, patch=4, dim=32, depth=2, heads=2)
    return MAE(encoder, decoder_dim=16, decoder_depth=1, decoder_heads=2).to(dtype), images(rows)
