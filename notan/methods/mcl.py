"""MCL: learn again, against only what could not be told apart.

Zhang, Lan, Wang, Zhang, Yan, Wang and Lu, "Learning the Unlearned: Mitigating Feature Suppression in Contrastive Learning",
ECCV 2024 (arXiv 2402.11816).

**What it is.** A contrast is won by whatever separates rows most easily, colour say, and what it has no need of it does not
learn. So it is run again: the features of stage j are clustered, rows in one cluster are alike to it, and stage j + 1 draws its
negatives from those alone. What told clusters apart is of no more use, and something else must be learned. In the end the
features of all stages stand side by side.

    y_j = k-means cluster of f_j(x) / |f_j(x)|, from pictures as they are
    code(x) = (y_0, ..., y_j)                                                   what no stage so far could tell apart
    L_{j+1} = -log( exp(z . z+ / tau) / (exp(z . z+ / tau) + sum over z- of the same code of exp(z . z- / tau)) )
    R(x) = [f_0(x), ..., f_J(x)]

The loss itself is that of any contrastive method here (`base`): batches of one code each make it the restricted one.

**When it helps.** Features miss what you need though the pictures show it, because something easier stands beside it: one
camera per site, a background per class, a colour per batch of products.

**What it costs.** The steps of the run are shared among the stages, and features are as many times as long and as slow. In
between, one pass over the data and k-means. Rows of codes with less than a batch of rows are left out of a stage.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from copy import deepcopy
from importlib import import_module
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from notan import catalogue, world
from notan.data import DataInfo, keys
from notan.data.loader import shuffled
from notan.errors import NotanError, check_between
from notan.methods._progress import Progress
from notan.nets.build import build_encoder
from notan.nets.protocols import ImageEncoder
from notan.nets.queue import Bank, Queue
from notan.nets.stages import Stages
from notan.views.geometry import floats, resize

CARD = {
    "title": "Learning the Unlearned: Mitigating Feature Suppression in Contrastive Learning", "arxiv": "2402.11816",
    "year": 2024, "needs": ["image"], "task": "features", "encoder": "vit", "exports": ["safetensors", "onnx"],
    "exports_why": "its features are those of several encoders side by side", "contrasts_rows": True,
    "claim": "Contrast in stages, each against what earlier ones could not tell apart, learns features that one contrast leaves "
             "out.",
    "paper": "CLIP models on MMVP's pairs, which look alike and differ in one attribute: up to three times as many right; with "
             "one tower of pictures, consistent gains over SimCLR and MoCo, as its authors report.",
    "cost": "One run's steps, shared among the stages; features of every stage.",
    "deviations": [
        "The released code, by mistake, forms its code from the last clustering alone; here all of them count.",
        "Pictures only. Clusters are of the encoder's features.",
        "Stages after the first begin with fresh weights; the released code begins each with the pretrained ones (--init base).",
        "Features are not brought to length one: probes standardise them, and a search takes cosines.",
        "Batches of one code have their own statistics in batch norm, of the encoder or the base's projector.",
    ],
    "floor": {"data": "digits", "metric": "ridge", "steps": 60, "value": 0.94, "random": 0.919},
}

RECIPES = {
    "paper": {                                                          # with one tower of pictures, from scratch
        "encoder": {"name": "resnet18"},
        "optimiser": {"name": "sgd", "lr": 0.06, "lr_rule": "linear256", "momentum": 0.9, "weight_decay": 5e-4},
        "batch": 256, "epochs": 600, "warmup": 0.016, "method": {},
    },
    "small": {
        "encoder": {"name": "convnet", "widths": [32, 64, 128, 256], "strides": [2, 2, 2, 1]},
        "optimiser": {"name": "adamw", "lr": 2e-3, "betas": [0.9, 0.95], "weight_decay": 0.05},
        "batch": 128, "epochs": 20, "warmup": 0.1,
        "method": {"base": "simclr:tau=0.2,crop=0.5,jitter=0.5,blur=0.0,hidden=256,dim=64", "extra": 1},
    },
}


class MCL(nn.Module):
    """Contrast in stages.

    base: what each stage learns by: a contrastive method, or NAME:option=value,option=value.
    extra: stages after the first.
    clusters: k-means clusters of each stage's features.
    init: how a later stage begins: fresh (new weights), base (as the first one began) or prev (as the last one ended).
    """

    codes: Tensor                                                       # of each row of the training split: (N,)

    def __init__(self, encoder: ImageEncoder, *, data: DataInfo, base: str = "simclr", extra: int = 2, clusters: int = 10,
                 init: Literal["fresh", "base", "prev"] = "fresh") -> None:
        super().__init__()
        check_between(0, 20, extra=extra)
        check_between(1, data.rows, clusters=clusters)
        self.clusters, self.init, self.rounds = clusters, init, [1 / (extra + 1)] * (extra + 1)
        first = base_method(base, encoder, data)
        later = [deepcopy(first) if init != "fresh" else base_method(base, build_encoder(encoder.config), data)
                 for _ in range(extra)]
        self.stages = nn.ModuleList([first, *later])
        self.encoder = Stages([stage.encoder for stage in self.stages])  # type: ignore[misc]
        self.register_buffer("codes", torch.zeros(data.rows, dtype=torch.int64))
        self.learning = [[p for p in stage.parameters() if p.requires_grad] for stage in self.stages]
        self.enter(0, None)

    def enter(self, number: int, look: Callable[[Callable[[dict], Tensor]], Tensor] | None) -> None:
        """Stage `number` begins: the one before is clustered, unless `look` is None because a saved run goes on."""
        if look is not None:
            before: Any = self.stages[number - 1]
            found = k_means(look(before.encode), self.clusters, seed=number)
            self.codes.copy_(torch.as_tensor(world.broadcast_object(join(self.codes.cpu().numpy(), found))))
            if self.init == "prev":
                self.stages[number].load_state_dict(before.state_dict())
        self.encoder.learn(number + 1)
        for i, parameters in enumerate(self.learning):
            for p in parameters:
                p.requires_grad_(i == number)

    @property
    def learner(self) -> Any:
        """The stage that learns."""
        return self.stages[self.encoder.count - 1]

    def batches(self, columns: dict[str, np.ndarray], batch_size: int, seed: int, epoch: int) -> np.ndarray:
        """Rows of one code in each batch; in the first stage all rows have the same."""
        if self.encoder.count == 1:
            return shuffled(len(self.codes), batch_size, seed, epoch)
        return pure(self.codes.cpu().numpy(), batch_size, seed, epoch)

    def loss(self, batch: dict, progress: Progress) -> dict[str, Any]:
        return self.learner.loss(batch, progress)

    def after_step(self, keep: Any, progress: Progress) -> None:
        if hasattr(self.learner, "after_step"):
            self.learner.after_step(keep, progress)

    def encode(self, batch: dict) -> Tensor:
        return self.encoder.features(self.whole(batch))                 # (B, D_0 + ... + D_j)

    def dense(self, batch: dict) -> Tensor:
        return self.encoder.maps(self.whole(batch))                     # (B, D_0 + ... + D_j, h, w)

    def whole(self, batch: dict) -> Tensor:
        return resize(floats(batch["image"]), self.encoder.image_size)  # (B, C, S, S)

    def pictures(self, batch: dict) -> dict[str, Tensor]:
        return self.learner.pictures(batch)


def base_method(spec: str, encoder: ImageEncoder, data: DataInfo) -> nn.Module:
    """The method that a stage learns by.

    Raises `NotanError` for one that is unknown, needs other columns, contrasts no rows, chooses its own batches, or keeps keys
    of earlier batches, which are of other codes.
    """
    name, options = catalogue.parse_arm(spec)
    entry = catalogue.method(name)
    if missing := entry.lacking(data.columns):
        raise NotanError(f"base {name} needs the column {missing[0]!r}; {data.name} has {', '.join(data.columns)}",
                         ", ".join(entry.card["needs"]), f"--column THEIRS={missing[0]}, or --base simclr")
    if not entry.contrasts_rows or "batches" in entry.has or name == "mcl" or [t.name for t in entry.towers] != ["encoder"]:
        raise NotanError(f"base {name}", "a method that sets the rows of a shuffled batch against each other, by one encoder",
                         "--base simclr")
    cls = getattr(import_module(f"notan.methods.{name}"), entry.cls)
    made = cls(encoder, **options, **({"data": data} if "data" in cls.__init__.__annotations__ else {}))
    if any(isinstance(part, (Queue, Bank)) for part in made.modules()):
        raise NotanError(f"base {spec} keeps keys of earlier batches, which are of other clusters",
                         "negatives of the batch alone", "--base simclr, or --base temperature:negatives=batch")
    return made


def k_means(z: Tensor, clusters: int, seed: int) -> np.ndarray:
    """The cluster of each row of features (N, D) by direction, int64 (N,). Rows that are all equal are one cluster."""
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1), warnings.catch_warnings():               # sums in another order would move borders
        warnings.simplefilter("ignore", ConvergenceWarning)             # fewer distinct rows than clusters
        found = MiniBatchKMeans(clusters, batch_size=min(len(z), 10**6), max_iter=100, tol=1e-5, n_init=3, random_state=seed)
        return found.fit_predict(F.normalize(z, dim=1).numpy()).astype(np.int64)


def join(codes: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """New codes (N,), from 0: two rows share one where they shared the old one and the cluster."""
    return np.unique(np.stack([codes, clusters], 1), axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)


def pure(codes: np.ndarray, batch_size: int, seed: int, epoch: int) -> np.ndarray:
    """Batches of rows of one code each, the codes by turns, int64 (steps, B).

    Rows are in a new order every epoch; of each code those left over at its end are not used in it. Raises `NotanError` when
    no code has a batch of rows.
    """
    order = keys.shuffle(seed, epoch, len(codes))
    order = order[np.argsort(codes[order], kind="stable")]
    count = np.bincount(codes)
    if count.max() < batch_size:
        raise NotanError(f"the largest of {len(count)} codes has {count.max()} rows, a batch {batch_size}",
                         "a code with at least a batch of rows", "a smaller --batch, fewer --clusters or fewer --extra stages")
    groups = [g[: len(g) // batch_size * batch_size].reshape(-1, batch_size) for g in np.split(order, np.cumsum(count)[:-1])]
    return np.stack([g[i] for i in range(max(map(len, groups))) for g in groups if i < len(g)])


def example(rows: int, dtype: torch.dtype) -> tuple[MCL, dict]:
    from notan.methods._example import images
    from notan.nets.vit import ViT

    torch.manual_seed(0)
    data = DataInfo("example", rows, ("image", "label"), 16, 3)
    encoder = ViT(image_size=16, patch=4, dim=32, depth=2, heads=2)
    return MCL(encoder, data=data, base="simclr:hidden=32,dim=16", extra=1, clusters=2).to(dtype), images(rows)
