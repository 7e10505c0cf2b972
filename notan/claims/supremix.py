"""SupReMix's claim (Wu et al. 2023): weights and mixed pairs make contrast good for a number, on how high land lies."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from notan import world
from notan.claims._statistics import Values, mean, paired, pooled
from notan.claims._train import built, fit, subset
from notan.data import Data, DataInfo, Rows, open_data
from notan.methods import _inputs
from notan.methods._progress import Progress
from notan.methods.supremix import SupReMix
from notan.nets.build import build_encoder
from notan.nets.protocols import Encoder
from notan.probes.features import extract
from notan.probes.regression import fragmentation, ordering, regression
from notan.views import random
from notan.views.random import fold

CLAIM = {
    "sentence": "SupReMix's features predict how high a place lies with a lower error than supervised contrast by equal targets, "
                "no worse than plain regression end to end, and both kinds of mixed pairs add to what the weights do.",
    "arms": ["random", "L1", "C-Mixup", "SupCon", "SupCon + weight", "+ mixed negatives", "+ mixed positives", "SupReMix"],
    "baseline": "SupCon",
    "data": "elevation: 32 x 32 tiles of the Blue Marble and their mean height in metres, 128 or 1,024 of the 1,544 training "
            "tiles, drawn by the seed; all 229 test tiles lie in other bands of longitude",
    "metric": "mean absolute error in metres of a ridge probe on frozen features, fitted to the same tiles (MAE), with either "
              "number of tiles; order: Spearman's correlation of distances between test features and between heights; fragments: "
              "how unlike in height five nearest neighbours are (1: as any two tiles)",
    "shown": ["MAE 128", "MAE 1024", "order 128", "order 1024", "fragments 128", "fragments 1024"],
    "seeds": [0, 1, 2, 3, 4],
    "confirms": "with both numbers of tiles SupReMix's MAE is below SupCon's by a paired 95% interval below 0 and by more than "
                "twice the root mean square of both arms' standard deviations, and in the mean no more than L1's; and over both "
                "numbers together it is in the mean below SupCon + weight, + mixed negatives and + mixed positives",
    "refutes": "with both numbers of tiles the mean MAE of SupCon + weight is as low as SupReMix's or lower, or with both "
               "SupCon's is",
    "protocol": "All arms: a convnet 16-32-64-128, the same tiles, keys and two views of each (crop of at least 0.5, mirrored, "
                "jitter 0.3), 200 steps of 64 tiles, AdamW with decay 0.05, 10% warm-up then cosine, equal first weights in a "
                "seed; the rate of each arm is the better of 1e-3 and 3e-3 by its mean MAE over both numbers of tiles on seeds "
                "100 and 101. Contrast: heads of 256 and 64, tau 0.3, heights brought to a range of 100. SupCon: rows of equal "
                "height, in practice a row's other view, are positives. + weight: negatives count 1 + distance in label. + "
                "mixed negatives and + mixed positives: either kind beside the weights, Beta(2, 8), window 5. L1: a linear "
                "layer on the features of both views, absolute error. C-Mixup: the same on pictures and targets mixed by "
                "Beta(2, 2) with a partner of the batch, near in target (Gaussian, deviation 10 of 100). random: untrained. "
                "Elevation was chosen by the pilot: on diabetes SupReMix and L1 were not below untrained features, and elpv "
                "has four levels.",
    "uses": ["_train.py"], "methods": ["supremix", "_inputs", "_contrast"],
    "minutes": 20,
}

SIZES, STEPS, BATCH = (128, 1024), 200, 64
ARMS: dict[str, tuple[float, dict[str, Any] | None]] = {                # rate; settings of SupReMix, or None
    "random": (0.0, None),
    "L1": (3e-3, None),
    "C-Mixup": (3e-3, None),
    "SupCon": (1e-3, {"mix_negatives": False, "window": 0.0, "weight": "none"}),
    "SupCon + weight": (1e-3, {"mix_negatives": False, "window": 0.0}),
    "+ mixed negatives": (3e-3, {"window": 0.0}),
    "+ mixed positives": (1e-3, {"mix_negatives": False}),
    "SupReMix": (1e-3, {}),
}
ENCODER = {"name": "convnet", "widths": [16, 32, 64, 128], "strides": [2, 2, 2, 1]}
VIEW: dict[str, Any] = {"crop": 0.5, "flip": 0.5, "jitter": 0.3, "grey": 0.0, "blur": 0.0}
NEAR, ALPHA = 10.0, 2.0                                                 # of C-Mixup: how near partners are, and its Beta


class Regression(nn.Module):
    """A linear layer on the features of two views, trained by absolute error; maybe on mixtures of rows near in target.

    C-Mixup: Yao et al. 2022 (arXiv 2210.05775).
    """

    def __init__(self, encoder: Encoder, data: DataInfo, mixed: bool) -> None:
        super().__init__()
        self.encoder, self.mixed, self.views = encoder, mixed, _inputs.Views(**VIEW, noise=0.0, hide=0.0)
        self.low, high = _inputs.target_range(data)
        self.scale, self.head = 100 / (high - self.low), nn.Linear(encoder.dim, 1)

    def loss(self, batch: dict, progress: Progress) -> dict[str, Tensor]:
        keys = [fold(batch["key"], which) for which in (1, 2)]
        x = torch.cat([_inputs.view(batch, key, self.encoder, self.views)[0] for key in keys])
        t = ((batch["target"] - self.low) * self.scale).repeat(2)
        if self.mixed:
            key = torch.cat(keys)
            other, share = partners(t, key), random.beta(key, "share", ALPHA, ALPHA)
            x = torch.lerp(x[other], x, share[:, None, None, None])
            t = torch.lerp(t[other], t, share)
        error = (self.head(self.encoder.features(x))[:, 0] - t / 100).abs()
        return {"loss": world.mean(error.sum(), len(error))}

    def encode(self, batch: dict) -> Tensor:
        return self.encoder.features(*_inputs.whole(batch, self.encoder))


def partners(t: Tensor, key: Tensor) -> Tensor:
    """Another row of the batch for each, drawn with the Gaussian of its distance in target: int64 (N,)."""
    p = torch.exp(-(t[:, None] - t).square() / (2 * NEAR**2)).double() + 1e-12
    total = p.fill_diagonal_(0).cumsum(1)
    drawn = random.uniform(key, "partner", 1) * total[:, -1:]
    return torch.searchsorted(total, drawn, right=True)[:, 0].clamp(max=len(t) - 1)


def run(arm: str, seed: int, quick: bool) -> dict[str, float]:
    """Of features trained on, and probed with, either number of tiles."""
    data = open_elevation()
    found: dict[str, float] = {}
    for size in SIZES:
        train = subset(data.train, 64 if quick else size, seed)
        test = subset(data.test, 40) if quick else data.test
        method = trained(arm, seed, train, quick)
        found |= {f"{name} {size}": value for name, value in measured(method, train, test).items()}
    return found


def trained(arm: str, seed: int, train: Rows, quick: bool) -> Any:
    rate, settings = ARMS[arm]
    info = open_elevation().info

    def make() -> nn.Module:
        encoder = build_encoder(ENCODER, info)
        if settings is None:
            return Regression(encoder, info, arm == "C-Mixup")
        return SupReMix(encoder, data=info, hidden=256, dim=64, **VIEW, **settings)

    method = built(seed, make).eval()
    if rate:
        fit(method, train, steps=2 if quick else STEPS, batch=16 if quick else BATCH, lr=rate, seed=seed)
    return method


def measured(method: Any, train: Rows, test: Rows) -> dict[str, float]:
    x, x_test = extract(method.encode, train), extract(method.encode, test)
    y, y_test = (torch.from_numpy(rows.values("target")) for rows in (train, test))
    found = regression(x, y, x_test, y_test)
    return {"MAE": found["mae"], "R2": found["r2"], "order": ordering(x_test, y_test), "fragments": fragmentation(x_test, y_test)}


def judge(values: Values) -> tuple[str, str]:
    def gap(arm: str, size: int) -> Any:
        return paired(values, "SupReMix", arm, f"MAE {size}")

    plain = {size: gap("SupCon", size) for size in SIZES}
    twice = {size: 2 * pooled(values, f"MAE {size}", "SupReMix", "SupCon") for size in SIZES}
    parts = {arm: float(np.mean([gap(arm, size).mean for size in SIZES]))
             for arm in ("SupCon + weight", "+ mixed negatives", "+ mixed positives")}
    sentence = (
        "MAE in metres with 128 and 1,024 tiles, SupReMix minus SupCon: "
        f"{plain[128]} and {plain[1024]} (twice the pooled sd: {twice[128]:.1f} and {twice[1024]:.1f}). "
        f"Minus SupCon + weight {gap('SupCon + weight', 128)} and {gap('SupCon + weight', 1024)}, minus L1 {gap('L1', 128)} and "
        f"{gap('L1', 1024)}, minus C-Mixup {gap('C-Mixup', 128)} and {gap('C-Mixup', 1024)}; over both, minus + mixed negatives "
        f"{parts['+ mixed negatives']:+.1f}, minus + mixed positives {parts['+ mixed positives']:+.1f}. Order of features with "
        f"1,024 tiles: SupReMix {mean(values, 'SupReMix', 'order 1024'):.2f}, SupCon + weight "
        f"{mean(values, 'SupCon + weight', 'order 1024'):.2f}, SupCon {mean(values, 'SupCon', 'order 1024'):.2f}, L1 "
        f"{mean(values, 'L1', 'order 1024'):.2f}. Untrained features: {mean(values, 'random', 'MAE 128'):.0f} and "
        f"{mean(values, 'random', 'MAE 1024'):.0f}.")
    if any(all(gap(arm, size).mean >= 0 for size in SIZES) for arm in ("SupCon + weight", "SupCon")):
        return "refuted", sentence
    better = all(plain[size].high < 0 and -plain[size].mean > twice[size] and gap("L1", size).mean <= 0 for size in SIZES)
    return ("confirmed" if better and all(d < 0 for d in parts.values()) else "open"), sentence


@cache
def open_elevation() -> Data:
    return open_data("elevation")
