"""PixPro's claim: agreement of cells makes better maps than agreement of pictures, and propagation prevents collapse."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from notan.claims._statistics import Values, column, mean, paired, pooled
from notan.claims._train import built, fit
from notan.data import Data, Rows, open_data
from notan.methods.pixpro import RECIPES, PixPro, cells, spread
from notan.nets.build import build_encoder
from notan.probes.features import extract
from notan.probes.ridge import ridge
from notan.probes.segmentation import segmentation

CLAIM = {
    "sentence": "Maps trained by agreement of cells (PixPro) segment better than maps trained by agreement of whole "
                "pictures (the instance branch alone) and no worse than by pixel contrast, and without the propagation "
                "module the cells collapse.",
    "arms": ["random", "instance", "pixcontrast", "pixpro", "pixpro+instance", "no propagation"],
    "baseline": "instance",
    "data": "earth: tiles of 64 x 64 pixels with the climate of every pixel, training and test in different longitudes",
    "metric": "mean IoU over five main climates and the ocean, by a linear probe on each frozen cell; accuracy of a "
              "ridge probe of the tile's main climate; spread of the projected cells (0: collapsed, 1: the most)",
    "seeds": [0, 1, 2],
    "confirms": "mean IoU of pixpro exceeds that of instance by more than their pooled standard deviation, is at least that "
                "of pixcontrast and above that of random; the spread of pixpro stays above 0.5, and without propagation it "
                "is below 0.3; accuracy of pixpro+instance is above that of pixpro and within the pooled deviation of "
                "instance, or above",
    "refutes": "the spread without propagation stays above 0.5, or instance reaches pixpro's mean IoU in every seed",
    "protocol": "All arms: the method's small recipe and its ResNet-10 of width 16 with total stride 4, on crops of "
                "32 x 32 pixels (maps of 8 x 8), the same pictures, keys and number of steps (200 of 64), equal "
                "first weights in a seed; they differ only in task, weights of the two losses, and propagation. Probes: closed "
                "form, on the frozen online encoder; of maps, fitted to 50,000 keyed cells of the 139,136 of all 2,174 "
                "training tiles at 32 x 32 and scored on all 293 test tiles against the truth at 64 x 64. random: the same "
                "network untrained. Transfer to detection, the paper's own measure, is not tested.",
    "minutes": 14,
}

ARMS: dict[str, dict[str, Any]] = {
    "random": {},
    "instance": {"pixel": 0.0, "alpha": 1.0},
    "pixcontrast": {"task": "pixcontrast"},
    "pixpro": {},
    "pixpro+instance": {"alpha": 1.0},
    "no propagation": {"propagate": False},
}


def run(arm: str, seed: int, quick: bool) -> dict[str, float]:
    """Mean IoU of the frozen map, accuracy of its mean, and the spread of the projected cells."""
    data = open_earth()
    train, test = (rows.select(np.arange(64)) if quick else rows for rows in (data.train, data.test))
    plan: dict[str, Any] = RECIPES["small"]
    spec = {**plan["encoder"], "image_size": 32}
    method = built(seed, lambda: PixPro(build_encoder(spec, data.info), **{**plan["method"], **ARMS[arm]})).eval()
    if arm != "random":
        settings = plan["optimiser"]
        fit(method, train, steps=2 if quick else 200, batch=32 if quick else 64, lr=settings["lr"],
            weight_decay=settings["weight_decay"], warmup=plan["warmup"], seed=seed)
    maps, maps_test = extract(method.dense, train), extract(method.dense, test)
    truth, truth_test = climates(train), climates(test)
    labels = [torch.from_numpy(rows.values("label")) for rows in (train, test)]
    return {
        "miou": segmentation(maps, truth, maps_test, truth_test, classes=6)["miou"],
        "accuracy": ridge(maps.mean((2, 3)), labels[0], maps_test.mean((2, 3)), labels[1])["accuracy"],
        "spread": projected_spread(method, maps_test),
    }


def judge(values: Values) -> tuple[str, str]:
    gain, contrast = (paired(values, "pixpro", arm, "miou") for arm in ("instance", "pixcontrast"))
    sd = pooled(values, "miou", "pixpro", "instance")
    wide, narrow = mean(values, "pixpro", "spread"), mean(values, "no propagation", "spread")
    sentence = (
        f"Mean IoU of pixpro - instance is {gain} (pooled sd {sd:.4f}), pixpro - pixcontrast {contrast}; random weights "
        f"reach {mean(values, 'random', 'miou'):.3f}, pixpro {mean(values, 'pixpro', 'miou'):.3f}. The spread of the cells "
        f"is {wide:.3f} with propagation and {narrow:.3f} without. Accuracy of the main climate: instance "
        f"{mean(values, 'instance', 'accuracy'):.3f}, pixpro {mean(values, 'pixpro', 'accuracy'):.3f}, both "
        f"{mean(values, 'pixpro+instance', 'accuracy'):.3f}."
    )
    pairs = zip(column(values, "instance", "miou"), column(values, "pixpro", "miou"))
    if narrow > 0.5 or all(b >= d for b, d in pairs):
        return "refuted", sentence
    better = gain.mean > sd and contrast.mean >= 0 and paired(values, "pixpro", "random", "miou").mean > 0
    recovers = (paired(values, "pixpro+instance", "pixpro", "accuracy").mean > 0 and paired(
        values, "pixpro+instance", "instance", "accuracy").mean > -pooled(values, "accuracy", "pixpro+instance", "instance"))
    better = better and wide > 0.5 and narrow < 0.3 and recovers
    return ("confirmed" if better else "open"), sentence


@cache
def open_earth() -> Data:
    return open_data("earth")


def climates(rows: Rows) -> Tensor:
    """The main climate (0 to 4) or ocean (5) of every pixel, (N, 64, 64)."""
    from notan.data.sources.earth import GROUP

    return torch.from_numpy(GROUP)[rows.take(np.arange(len(rows)))["segmentation"]]


@torch.no_grad()
def projected_spread(method: PixPro, maps: Tensor) -> float:
    """Spread of the cells of maps (N, D, h, w) after the projector that the arm trained."""
    projector = method.projector if method.pixel else method.instance_projector
    return float(spread(cells(projector.eval()(maps))))
