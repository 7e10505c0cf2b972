"""PixPro and PixContrast: the same place in two crops of a picture should look the same to the network.

Xie, Lin, Zhang, Cao, Lin and Hu, "Propagate Yourself: Exploring Pixel-Level Consistency for Unsupervised Visual
Representation Learning", CVPR 2021 (arXiv 2011.10043).

**What it is.** Two crops of a picture give two maps x and x' (the second from a momentum copy of the network). Every
cell of a map knows where in the picture it comes from. Cells i and j match when those places are near each other:

    A(i, j) = 1 when |place_i - place_j| / (diagonal of the larger cell) < T                                    (1)

PixContrast tells the matching cells of the other crop from its other cells (same picture, no other negatives):

    L(i) = -log( sum over matching j of exp(cos(x_i, x'_j) / tau) / sum over all j of exp(cos(x_i, x'_j) / tau) )  (2)

PixPro has no negatives. A propagation module smooths the online map, and the result must agree with the momentum map:

    y_i = sum over all j of s(x_i, x_j) g(x_j)                                                                  (3)
    s(x_i, x_j) = max(cos(x_i, x_j), 0)^gamma                                                                   (4)
    L = -2 mean over matching i, j of cos(y_i, x'_j), both ways                                                 (5)

An instance-level branch (BYOL on the pooled maps) may be added with weight alpha, or stand alone (`pixel=0`).

**When it helps.** Dense tasks: segmentation, detection, anything that reads the map and not its mean. For whole-picture
classes add the instance branch. Crops must overlap, so small pictures want larger crops.

**What it costs.** Two crops, each through the encoder and its momentum copy: four forward and two backward passes.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from notan import world
from notan.errors import NotanError
from notan.losses.info_nce import pixel_info_nce
from notan.methods._progress import Progress
from notan.nets.heads import conv_mlp
from notan.nets.protocols import ConvEncoder
from notan.nets.teacher import cosine_decay, ema_, teacher
from notan.views import colour
from notan.views.geometry import View, cell_centres, crop, crop_boxes, floats, resize
from notan.views.random import bernoulli, fold

CARD = {
    "title": "Propagate Yourself: Exploring Pixel-Level Consistency for Unsupervised Visual Representation Learning",
    "arxiv": "2011.10043",
    "year": 2021,
    "needs": ["image"],
    "task": "features",
    "exports": ["safetensors", "onnx"],
    "encoder": "resnet",
    "claim": "Asking single cells of two crops to agree gives better dense features than asking whole crops to agree, "
             "and the propagation module is what keeps the cells from collapsing.",
    "paper": "ResNet-50, 400 epochs of ImageNet, fine-tuned: Pascal VOC detection (C4) 60.2 AP, COCO 41.4 (FPN, with the "
             "instance branch) and 40.5 (C4) mAP, Cityscapes 77.2 mIoU; +2.6 AP, +0.8 and +1.0 mAP, +1.0 mIoU over the "
             "best instance-level method. PixContrast after 100 epochs: about 58.1 AP and 38.8 mAP, by the gaps reported.",
    "cost": "Two crops, each through the encoder and its momentum copy: four forward and two backward passes an image.",
    "deviations": [
        "Like the official code, unlike the text: the pixel loss counts each cosine twice, values are brought to unit "
        "length before propagation, the matching threshold is strict, the instance branch is BYOL's regression.",
        "PixContrast has no official code. Cells without a match and images without matching cells are left out of its "
        "means, always; negatives are the other cells of the same image only.",
        "Relative coordinates have their 0 and 1 at the edges of the image; the official code has them at the centres "
        "of the border pixels, less than a pixel away.",
        "The blur kernel and the resampling filter are this library's; both are antialiased.",
        "Warm-up is a share of the run (5 of 100 epochs), starts at its first step and the rate ends at 0; the batch "
        "norm of a two-layer transform g is global too.",
    ],
    "floor": {"data": "digits", "metric": "ridge", "steps": 60, "value": 0.87, "random": 0.85},
}

RECIPES = {
    "paper": {
        "encoder": {"name": "resnet50", "stem": "imagenet"},
        "optimiser": {"name": "lars", "lr": 1.0, "lr_rule": "linear256", "momentum": 0.9, "weight_decay": 1e-5},
        "batch": 1024, "epochs": 100, "warmup": 0.05, "method": {},
    },
    "small": {
        "encoder": {"name": "resnet10", "width": 16, "stem": "cifar", "stride": 4},
        "optimiser": {"name": "adamw", "lr": 1e-3, "betas": [0.9, 0.95], "weight_decay": 0.05},
        "batch": 128, "epochs": 0.5, "warmup": 0.05,
        "method": {"hidden": 256, "dim": 64, "crop": 0.2, "blur": [0.0, 0.0], "solarise": 0.0},
    },
}


class PixPro(nn.Module):
    """Pixel-level agreement; `alpha` adds the instance-level branch, `pixel` 0 leaves it alone (BYOL on pooled maps).

    task: pixpro (propagation, no negatives) or pixcontrast (cells of the other crop as positives and negatives).
    pixel: weight of the pixel loss; 0 makes no pixel heads.
    alpha: weight of the instance loss; 0 makes no instance heads.
    propagate: smooth the online map by the propagation module; False puts the identity there (it collapses).
    gamma: sharpness of the propagation module's similarity (eq. 4).
    layers: 1x1 convolutions of its transform g, 0 to 2 (eq. 3).
    threshold: cells match below this distance, in diagonals of the larger cell (eq. 1).
    tau: temperature of pixcontrast (eq. 2).
    momentum: share the target network keeps at the first step; a cosine takes it to 1.
    hidden: width of the heads' hidden layer.
    dim: width of the heads' output.
    crop: smallest share of the image in a crop.
    jitter: strength of the colour jitter, 1 is the paper's.
    blur: probability of blur in the first and the second view.
    solarise: probability of solarising the second view.
    """

    def __init__(
        self, encoder: ConvEncoder, *, task: Literal["pixpro", "pixcontrast"] = "pixpro", pixel: float = 1.0,
        alpha: float = 0.0, propagate: bool = True, gamma: float = 2.0, layers: int = 1, threshold: float = 0.7,
        tau: float = 0.3, momentum: float = 0.99, hidden: int = 4096, dim: int = 256, crop: float = 0.08,
        jitter: float = 1.0, blur: tuple[float, float] = (1.0, 0.1), solarise: float = 0.2,
    ) -> None:
        super().__init__()
        if not pixel and not alpha:
            raise NotanError("pixel=0 and alpha=0 leave no loss", "one of the two above 0", "--alpha 1")
        self.encoder: Any = encoder
        self.target_encoder: Any = teacher(encoder)                     # type: ignore[type-var]
        self.task, self.pixel, self.alpha, self.gamma = task, pixel, alpha, gamma
        self.threshold, self.tau, self.momentum = threshold, tau, momentum
        self.crop, self.jitter, self.blur, self.solarise = crop, jitter, blur, solarise
        if pixel:
            self.projector = conv_mlp(encoder.dim, hidden, dim)
            self.target_projector = teacher(self.projector)
            self.g = _transform(layers, dim) if task == "pixpro" and propagate else None
        if alpha:
            self.instance_projector = conv_mlp(encoder.dim, hidden, dim)
            self.target_instance_projector = teacher(self.instance_projector)
            self.instance_predictor = conv_mlp(dim, hidden, dim)

    def loss(self, batch: dict, progress: Progress) -> dict[str, Tensor]:
        view1, view2 = self.views(batch)
        map1, map2 = self.encoder.maps(view1.pixels), self.encoder.maps(view2.pixels)           # (B, C, h, w)
        with torch.no_grad():
            target1, target2 = self.target_encoder.maps(view1.pixels), self.target_encoder.maps(view2.pixels)
        terms: dict[str, Tensor] = {}
        if self.pixel:
            matched = correspondence(view1.affine, view2.affine, map1.shape[2:], self.threshold)  # (B, P, P)
            terms |= self.pixel_terms(map1, map2, target1, target2, matched)
        if self.alpha:
            terms["instance"] = self.instance_loss(map1, target2) + self.instance_loss(map2, target1)
        loss = sum(w * terms[name] for name, w in (("pixel", self.pixel), ("instance", self.alpha)) if w)
        return {"loss": loss, **terms}                                  # type: ignore[dict-item]

    def pixel_terms(
        self, map1: Tensor, map2: Tensor, target1: Tensor, target2: Tensor, matched: Tensor
    ) -> dict[str, Tensor]:
        """Section 3.1 or 3.2 in both directions, the share of cells with a match, and the spread of the cells."""
        x1, x2 = cells(self.projector(map1)), cells(self.projector(map2))                       # (B, P, D)
        with torch.no_grad():
            t1, t2 = cells(self.target_projector(target1)), cells(self.target_projector(target2))
        if self.task == "pixcontrast":
            one, found = pixel_info_nce(x1, t2, matched, tau=self.tau)  # (B,), (B,)
            two, _ = pixel_info_nce(x2, t1, matched.mT, tau=self.tau)
            pixel = world.mean((one + two).sum() / 2, found.sum())      # eq. 2, images without a match are left out
        else:
            c = consistency(self.smooth(x1), t2, matched) + consistency(self.smooth(x2), t1, matched.mT)
            pixel = world.mean(-2 * c.sum(), c.numel())                 # eq. 5, images without a match count as 0
        overlap = matched.any(2).to(x1.dtype)
        return {"pixel": pixel, "overlap": world.mean(overlap.sum(), overlap.numel()), "spread": spread(x1)}

    def smooth(self, x: Tensor) -> Tensor:
        """The propagation module (eqs. 3 and 4) on cells (B, P, D)."""
        return x if self.g is None else propagate(x, self.g(x.mT.unsqueeze(3)).squeeze(3).mT, self.gamma)

    def instance_loss(self, online: Tensor, target: Tensor) -> Tensor:
        """-2 cos of the pooled online prediction and the pooled target projection (BYOL, eq. 2, less its 2)."""
        p = self.instance_predictor(self.instance_projector(online)).mean((2, 3))               # (B, D)
        with torch.no_grad():
            t = self.target_instance_projector(target).mean((2, 3))
        c = F.cosine_similarity(p, t, dim=1)
        return world.mean(-2 * c.sum(), c.numel())

    def after_step(self, keep: Any, progress: Progress) -> None:
        """The target follows the online network, momentum 1 - (1 - m) (cos(pi k / K) + 1) / 2.

        The paper's code updates at the start of forward pass k, before the targets are computed. Update 0 changes
        nothing there (target and online are still equal), so update k + 1 at the end of step k gives the same targets.
        """
        decay = cosine_decay(self.momentum, (progress.step + 1) / max(progress.steps, 1))
        ema_(self.target_encoder, self.encoder, decay)
        if self.pixel:
            ema_(self.target_projector, self.projector, decay)
        if self.alpha:
            ema_(self.target_instance_projector, self.instance_projector, decay)

    def views(self, batch: dict) -> tuple[View, View]:
        """BYOL's pair of augmentations (section 4.1)."""
        return (self._view(batch["image"], fold(batch["key"], 1), self.blur[0], 0.0),
                self._view(batch["image"], fold(batch["key"], 2), self.blur[1], self.solarise))

    def _view(self, images: Tensor, key: Tensor, blur: float, solarise: float) -> View:
        boxes = crop_boxes(key, height=images.shape[2], width=images.shape[3], scale=(self.crop, 1.0))
        view = crop(images, boxes, bernoulli(key, "flip", 0.5), self.encoder.image_size)
        b, c, s, h = (self.jitter * x for x in (0.4, 0.4, 0.2, 0.1))
        x = colour.jitter(view.pixels, key, brightness=b, contrast=c, saturation=s, hue=h, p=0.8)
        x = colour.grayscale(x, key, 0.2)
        if blur:
            x = colour.blur(x, key, p=blur)
        if solarise:
            x = colour.solarise(x, key, p=solarise)
        return View(x, view.affine)

    def encode(self, batch: dict) -> Tensor:
        return self.encoder.features(self.pixels(batch))                # (B, D)

    def dense(self, batch: dict) -> Tensor:
        return self.encoder.maps(self.pixels(batch))                    # (B, D, h, w)

    def pixels(self, batch: dict) -> Tensor:
        return resize(floats(batch["image"]), self.encoder.image_size)

    @torch.no_grad()
    def pictures(self, batch: dict) -> dict[str, Tensor]:
        """The image and its two views; cells that match no cell of the other view are dark."""
        view1, view2 = self.views(batch)
        grid = (-(-self.encoder.image_size // self.encoder.stride),) * 2
        matched = correspondence(view1.affine, view2.affine, grid, self.threshold)
        return {"image": self.pixels(batch), "view 1": _lit(view1.pixels, matched.any(2), grid),
                "view 2": _lit(view2.pixels, matched.any(1), grid)}


def cells(maps: Tensor) -> Tensor:
    """A map as a list of its cells, in raster order: (B, D, h, w) to (B, P, D)."""
    return maps.flatten(2).mT


def correspondence(affine1: Tensor, affine2: Tensor, grid: tuple[int, ...], threshold: float) -> Tensor:
    """A(i, j) of eq. 1: whether cells i and j of two views (B, 2, 3) lie near each other in the image, bool (B, P, P).

    Distances are between cell centres in relative coordinates, in units of the larger diagonal of the two views' cells.
    """
    h, w = grid
    c1, c2 = cell_centres(affine1, (h, w)), cell_centres(affine2, (h, w))                       # (B, P, 2)
    distance = (c1[:, :, None] - c2[:, None]).norm(dim=3)                                       # (B, P, P)
    diagonal = [torch.hypot(a[:, 0, 0] / w, a[:, 1, 1] / h) for a in (affine1, affine2)]
    return distance / torch.maximum(*diagonal)[:, None, None] < threshold


def propagate(x: Tensor, v: Tensor, gamma: float) -> Tensor:
    """y_i = sum_j max(cos(x_i, x_j), 0)^gamma v_j / |v_j| over the cells of an image (eqs. 3 and 4), (B, P, D)."""
    x, v = F.normalize(x, dim=2), F.normalize(v, dim=2)
    s = (x @ x.mT).clamp(min=0)                                         # (B, P, P)
    if gamma < 1:
        s = s + 1e-6                                                    # the slope at 0 is infinite
    return s**gamma @ v


def consistency(y: Tensor, x: Tensor, matched: Tensor) -> Tensor:
    """Mean cosine of the matching cells of two lists (B, P, D), of each image: (B,), 0 where none match."""
    cos = F.normalize(y, dim=2) @ F.normalize(x, dim=2).mT              # (B, P, P)
    return (cos * matched).sum((1, 2)) / (matched.sum((1, 2)) + 1e-6)


@torch.no_grad()
def spread(x: Tensor) -> Tensor:
    """Mean standard deviation of the unit cells' coordinates, times sqrt(D): 0 is collapse, 1 the most."""
    x = F.normalize(x, dim=2).flatten(0, 1)                             # (B P, D)
    mean = world.mean(x.sum(0), len(x))
    var = world.mean((x - mean).square().sum(0), len(x))
    return var.sqrt().mean() * x.shape[1] ** 0.5


def _transform(layers: int, dim: int) -> nn.Module:
    if layers not in (0, 1, 2):
        raise NotanError(f"a propagation module with {layers} layers", "0, 1 or 2")
    return nn.Identity() if layers == 0 else conv_mlp(*[dim] * (layers + 1))


def _lit(pixels: Tensor, shown: Tensor, grid: tuple[int, ...]) -> Tensor:
    light = shown.view(-1, 1, *grid).to(pixels.dtype) * 0.7 + 0.3
    return pixels * F.interpolate(light, pixels.shape[2:], mode="nearest")


def example(rows: int, dtype: torch.dtype) -> tuple[PixPro, dict]:
    from notan.methods._example import images
    from notan.nets.resnet import ResNet

    torch.manual_seed(0)
    encoder = ResNet(16, 3, depth=10, width=8, stride=4)
    return PixPro(encoder, alpha=1.0, hidden=16, dim=8).to(dtype), images(rows)
