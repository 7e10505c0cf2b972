"""Hard patches mining: a masked autoencoder that learns which patches are hard, and hides those.

Wang, Song, Fan, Wang, Xie and Zhang, "Hard Patches Mining for Masked Image Modeling", CVPR 2023, arXiv 2304.05919, and
its extension "Bootstrap Masked Visual Modeling via Hard Patches Mining", arXiv 2312.13714.

**What it is.** A masked autoencoder (see `mae`) with a second decoder q, which predicts how badly the first, g, will
paint each patch. Before each step a slow copy of encoder and q, the teacher, grades all N patches of the whole picture.
Of the M hidden patches a share, growing from nothing to a half over the run, are those it finds hardest; the others are
random. At epoch e of E, counted from 0:

    s = mean over outputs of q_teacher(f_teacher(x)),     nothing hidden, no gradient                     (1)
    a = 0.5 (e + 1) / E;  the int(M a) highest s are hidden, the other hidden ones are uniform            (2)
    l_i = |g(z)_i - x_i|^2 / (values per patch),          z = f(x_visible)                                (3)
    L_rec = mean of l_i over all hidden patches                                                           (4)
    p_i = mean over outputs of q(z)_i                                                                     (5)
    L_pred = -mean over ordered pairs (i, j) of a picture's hidden patches with l_i != l_j of
             [l_i > l_j] log(sig(p_i - p_j) + 1e-6) + [l_i < l_j] log(1 - sig(p_i - p_j) + 1e-6)          (6)
    L = L_rec + L_pred                                                                                    (7)
    teacher <- d teacher + (1 - d) student after each step,  d = 0.999 + 0.0009 min(e, 100) / 100         (8)

Only the *order* of the losses is learned. The gradient of L_pred reaches q and the encoder, never g; that of L_rec
never q.

**When it helps.** Where `mae` does and most patches are easy: one object before a plain background. The paper gains 0.6
to 0.8 points of top-1 over MAE, so expect little, and compare at equal minutes too: a step costs more.

**What it costs.** A second decoder and, once patches are chosen by hardness, a forward pass over *all* patches.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from notan import world
from notan.errors import NotanError
from notan.losses.ranking import absolute_ranking, pairwise_ranking, stable_pairwise_ranking, widened
from notan.losses.regression import masked_mse, normalise_patches
from notan.methods._progress import Progress
from notan.nets.decoder import MaskTokens, TokenDecoder
from notan.nets.pixels import patchify, unpatchify
from notan.nets.protocols import TokenEncoder
from notan.nets.teacher import ema_, teacher
from notan.views.geometry import crop, crop_boxes, floats, resize
from notan.views.masks import guided_mask, hidden_count, random_mask
from notan.views.random import bernoulli

CARD = {
    "title": "Hard Patches Mining for Masked Image Modeling", "arxiv": "2304.05919", "year": 2023,
    "needs": ["image"], "task": "features", "encoder": "vit", "exports": ["safetensors", "hf", "onnx"],
    "claim": "Hiding the patches that the model itself predicts to be hard, more of them as training goes on, gives "
             "better features than hiding random ones.",
    "paper": "ImageNet-1K, fine-tuned top-1: ViT-B/16, 200 epochs, 83.0 (MAE 82.2); 800 epochs 84.2 (MAE 1600: 83.6); "
             "ViT-L/16, 800 epochs, 85.8 (MAE 1600: 85.1). ADE20K mIoU of ViT-B/16: 42.1 (MAE 40.5), 48.5 (48.1).",
    "cost": "A second decoder and a forward pass over all patches on top of MAE: about twice its time a step.",
    "deviations": [
        "The teacher holds what grades need, encoder and loss predictor; the official one has the reconstructor too.",
        "Crops are resampled with an antialiased triangle filter; the paper's are bicubic.",
        "Pictures whose hidden patches all have the same loss count no pair; the official code gives NaN.",
        "The official decay of the teacher ignores the length of the run: in a short one the teacher would stay near "
        "its start. ema=scaled stretches it to the run; the small recipe does so.",
        "A run of at most one epoch has no curriculum: the hard share is at its end from the start.",
        "Mask and class tokens are not decayed; the official code decays them.",
        "The small recipe's frozen features are the mean of the patch tokens; the paper probes the class token.",
        "Feature targets (DINO, CLIP, the teacher's tokens) and video are not here.",
    ],
    "floor": {"data": "digits", "metric": "reconstruction", "steps": 60, "value": 0.8, "random": 3.8},
}

RECIPES = {
    "paper": {
        "encoder": {"name": "vit-base", "patch": 16, "pool": "cls"},
        "optimiser": {
            "name": "adamw", "lr": 1.5e-4, "lr_rule": "linear256", "betas": [0.9, 0.95], "weight_decay": 0.05,
        },
        "batch": 2048, "epochs": 200, "warmup": 0.2, "method": {},
    },
    "small": {
        "encoder": {"name": "vit", "dim": 128, "depth": 4, "heads": 4, "pool": "mean"},
        "optimiser": {"name": "adamw", "lr": 1e-3, "betas": [0.9, 0.95], "weight_decay": 0.05},
        "batch": 256, "epochs": 20, "warmup": 0.1,
        "method": {"ema": "scaled", "decoder_dim": 64, "decoder_depth": 1, "decoder_heads": 4},
    },
}

PAPER_STEPS = 125_000                                                   # 200 epochs of 625 steps of 2048 pictures


class HPM(nn.Module):
    """A masked autoencoder whose teacher chooses what to hide.

    mask_ratio: share of the patches that is hidden.
    hard_start: share of the hidden patches chosen by hardness before the first epoch.
    hard_end: that share in the last epoch (equation 2); 0 for both keeps masks random.
    prediction: what the loss predictor learns: relative (equation 6), stable (the same without its 1e-6, so that no
        pair saturates) or absolute (the loss itself, standardised within a picture).
    ema: the teacher's decay by epoch as in the paper, or the same course stretched to this run's steps (scaled).
    norm_pix: paint each patch relative to its own mean and deviation; the released runs do not.
    decoder_dim: width of both decoders.
    decoder_depth: blocks of each decoder.
    decoder_heads: attention heads of each decoder.
    crop: smallest share of the picture in a crop; 1 keeps the whole picture.
    """

    def __init__(
        self, encoder: TokenEncoder, *, mask_ratio: float = 0.75, hard_start: float = 0.0, hard_end: float = 0.5,
        prediction: Literal["relative", "stable", "absolute"] = "relative", ema: Literal["paper", "scaled"] = "paper",
        norm_pix: bool = False, decoder_dim: int = 512, decoder_depth: int = 8, decoder_heads: int = 16,
        crop: float = 0.2,
    ) -> None:
        super().__init__()
        if not 0 <= hard_start <= 1 or not 0 <= hard_end <= 1:
            raise NotanError(f"hard shares from {hard_start} to {hard_end}", "shares in [0, 1]")
        self.encoder, self.mask_ratio, self.norm_pix, self.crop = encoder, mask_ratio, norm_pix, crop
        self.hard_start, self.hard_end, self.prediction, self.ema = hard_start, hard_end, prediction, ema
        self.hidden = hidden_count(encoder.tokens, mask_ratio)          # M
        values = encoder.channels * encoder.patch**2                    # P
        self.tokens = MaskTokens(encoder.dim, encoder.grid, decoder_dim)
        self.reconstructor = TokenDecoder(decoder_dim, decoder_depth, decoder_heads, values)       # g
        self.predictor = TokenDecoder(decoder_dim, decoder_depth, decoder_heads, values)           # q
        self.teacher = teacher(self.student())

    def loss(self, batch: dict, progress: Progress) -> dict[str, Tensor]:
        x = self.view(batch)                                            # (B, C, S, S)
        mask = self.mask(batch, x, progress)                            # (B, N), True = hidden
        seen = self.tokens(self.encoder(x, mask), mask)                 # (B, 1 + N, D): class, visible, hidden
        pred = self.reconstructor(seen, last=self.hidden)               # (B, M, P)
        l = masked_mse(pred, self.target(x, mask))                      # (B, M)                          (3)
        reconstruction = world.mean(l.sum(), l.numel())                 #                                 (4)
        p = widened(self.predictor(seen, last=self.hidden)).mean(-1)    # (B, M)                          (5)
        ranking = self.ranking(p, l)                                    #                                 (6)
        return {"loss": reconstruction + ranking,                       #                                 (7)
                "reconstruction": reconstruction, "prediction": ranking}

    def view(self, batch: dict) -> Tensor:
        """A random resized crop, mirrored half of the time (B, C, S, S)."""
        image, key = batch["image"], batch["key"]
        boxes = crop_boxes(key, height=image.shape[2], width=image.shape[3], scale=(self.crop, 1.0))
        return crop(image, boxes, bernoulli(key, "flip", 0.5), self.encoder.image_size).pixels

    def mask(self, batch: dict, x: Tensor, progress: Progress) -> Tensor:
        """The hardest patches of x and some random ones; the teacher is asked only when it has a say."""
        share = self.hard_share(progress)
        if int(self.hidden * share) == 0:
            return random_mask(batch["key"], self.encoder.tokens, self.mask_ratio)
        return guided_mask(batch["key"], self.scores(x), self.mask_ratio, share)                  # (2)

    def hard_share(self, progress: Progress) -> float:
        """a of equation 2, constant within an epoch."""
        return self.hard_start + (self.hard_end - self.hard_start) * (progress.epoch + 1) / max(progress.epochs, 1)

    @torch.no_grad()
    def scores(self, x: Tensor) -> Tensor:
        """The teacher's grades in raster order, higher is harder: (B, N)."""
        tokens = self.teacher["tokens"](self.teacher["encoder"](x))     # (B, 1 + N, D), no mask vector among them
        return widened(self.teacher["predictor"](tokens)[:, 1:]).mean(-1)                         #       (1)

    def target(self, x: Tensor, mask: Tensor) -> Tensor:
        """What the hidden patches should be painted as, in raster order (B, M, P)."""
        t = patchify(self.encoder.normalise(x), self.encoder.patch)[mask].unflatten(0, (len(x), -1))
        return normalise_patches(t) if self.norm_pix else t

    def ranking(self, p: Tensor, l: Tensor) -> Tensor:
        """L_pred of predicted p and true l (B, M), which gets no gradient: the mean over the pairs of all ranks."""
        if self.prediction == "absolute":
            error = absolute_ranking(p, l)
            return world.mean(error.sum(), error.numel())
        pairs = pairwise_ranking if self.prediction == "relative" else stable_pairwise_ranking
        return world.mean(*pairs(p, l))

    def after_step(self, keep: Any, progress: Progress) -> None:
        ema_(self.teacher, self.student(), self.decay(progress))        #                                 (8)

    def decay(self, progress: Progress) -> float:
        """d of equation 8. In `scaled` each of this run's steps stands for 125,000 / steps of the paper's."""
        if self.ema == "paper":
            return 0.999 + 0.0009 * min(progress.epoch, 100) / 100
        return (0.999 + 0.0009 * min(2 * progress.fraction, 1)) ** (PAPER_STEPS / max(progress.steps, 1))

    def student(self) -> nn.ModuleDict:
        """The parts that the teacher is a copy of."""
        parts: dict[str, Any] = {"encoder": self.encoder, "tokens": self.tokens, "predictor": self.predictor}
        return nn.ModuleDict(parts)

    def encode(self, batch: dict) -> Tensor:
        return self.encoder.features(self.whole(batch))                 # (B, D)

    def dense(self, batch: dict) -> Tensor:
        return self.encoder.maps(self.whole(batch))                     # (B, D, h, w)

    def whole(self, batch: dict) -> Tensor:
        return resize(floats(batch["image"]), self.encoder.image_size)  # (B, C, S, S)

    @torch.no_grad()
    def pictures(self, batch: dict) -> dict[str, Tensor]:
        """The crop, what is seen of it in the last epoch, what is painted, and how hard each patch looks (rank)."""
        x, patch, grid = self.view(batch), self.encoder.patch, self.encoder.grid
        scores = self.scores(x)                                         # (B, N)
        mask = guided_mask(batch["key"], scores, self.mask_ratio, self.hard_end)
        patches = patchify(self.encoder.normalise(x), patch)            # (B, N, P)
        pred = self.reconstructor(self.tokens(self.encoder(x, mask), mask), last=self.hidden).to(patches.dtype)
        if self.norm_pix:                                               # give the true brightness and contrast back
            hidden = patches[mask].view_as(pred)
            pred = pred * (hidden.var(-1, keepdim=True) + 1e-6).sqrt() + hidden.mean(-1, keepdim=True)
        painted = self.encoder.normalise.undo(unpatchify(patches.masked_scatter(mask[..., None], pred), patch, grid))
        seen = unpatchify(patchify(x, patch).masked_fill(mask[..., None], 0.5), patch, grid)
        return {"crop": x, "seen": seen, "painted": painted.clamp(0, 1), "hardness": heat(scores, grid, x.shape[-1])}


def heat(scores: Tensor, grid: tuple[int, int], size: int) -> Tensor:
    """The ranks of scores (B, N) as colours from black over red and yellow to white: (B, 3, size, size)."""
    rank = scores.argsort(1).argsort(1).float().unflatten(1, grid) / (scores.shape[1] - 1)      # (B, h, w), 0 to 1
    colours = torch.stack([3 * rank, 3 * rank - 1, 3 * rank - 2], dim=1).clamp(0, 1)
    return F.interpolate(colours, size=(size, size), mode="nearest")


def example(rows: int, dtype: torch.dtype) -> tuple[HPM, dict]:
    from notan.methods._example import images
    from notan.nets.vit import ViT

    torch.manual_seed(0)
    encoder = ViT(image_size=16, patch=4, dim=32, depth=2, heads=2)
    return HPM(encoder, decoder_dim=16, decoder_depth=1, decoder_heads=2).to(dtype), images(rows)
