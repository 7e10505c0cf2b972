"""The claim of Wang and Liu (CVPR 2021): temperature trades uniformity against tolerance, and hardness is what matters."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from notan.claims._statistics import Values, mean, paired
from notan.claims._train import built, fit, small
from notan.data import DataInfo, Rows, open_data
from notan.inspectors.temperature import nearest, shares
from notan.losses.geometry import spearman, tolerance, uniformity
from notan.losses.tiles import cosines, unit
from notan.methods.temperature import Temperature
from notan.nets.build import build_encoder
from notan.probes.features import extract
from notan.probes.knn import knn_cosine
from notan.probes.ridge import ridge
from notan.views.random import fold

TAUS = [0.05, 0.07, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0]

CLAIM = {
    "sentence": "As the temperature rises from 0.07 to 1 embeddings become less uniform and more tolerant; with hard negatives "
                "alone they stay uniform at every temperature; contrast without hardness is the least uniform and worse, and "
                "competes once it sees hard negatives alone.",
    "arms": ["random", "soft 0.05", "soft 0.07", "soft 0.1", "soft 0.2", "soft 0.3", "soft 0.5", "soft 0.7", "soft 1.0",
             "simple", "hard 0.07", "hard 0.3", "hard 0.7", "hard 1.0", "hard-simple"],
    "baseline": "soft 0.3",
    "data": "Fashion-MNIST, 3,000 and 2,000 pictures by key, at 16 x 16",
    "metric": "uniformity (log of the mean kernel, lower: more even), tolerance (mean cosine within a class) and separation "
              "(cosine of two views minus that of the nearest other picture) of the embeddings of test pictures; effective "
              "negatives of the softmax at the arm's temperature among them; accuracy of a ridge probe and of cosine 20-NN on "
              "the encoder's features",
    "seeds": [0, 1, 2, 3, 4],
    "confirms": "in the means over seeds (1) the rank correlation of temperature with uniformity and with tolerance is at least "
                "0.9 over soft 0.07 to 1.0; (2) the least and the most uniform of the hard arms differ by at most 5%; (3) simple "
                "is the least uniform trained arm; (4) accuracy of simple is below soft 0.3's and hard-simple's, each by a "
                "paired 95% interval",
    "refutes": "one of the rank correlations is below 0.5, or simple reaches soft 0.3 in accuracy, or hard-simple does not "
               "exceed simple",
    "protocol": "The paper's set-up: a bank with an embedding of each of the 3,000 pictures, which follows at 0.5; one view a "
                "picture; convnet 16-32-64-128, linear head of 64, crops of at least 0.4 and mirroring, no change of colour. "
                "AdamW 2e-3, decay 0.05, 10% warm-up then cosine, 1,000 steps of 128, equal first weights and the same views in "
                "a seed. AdamW's steps do not depend on the scale of a loss, so that a temperature is not also a learning rate. "
                "Hard: the nearest 8.19% of a row's negatives. Embeddings in eval mode, of pictures as they are. Sizes were "
                "settled on seed 100, where small temperatures were less uniform than 0.3 after 500 steps and no longer after "
                "1,000.",
    "uses": ["_train.py"], "methods": ["temperature"],
    "minutes": 25,
}

ENCODER = {"name": "convnet", "widths": [16, 32, 64, 128], "strides": [2, 2, 2, 1], "image_size": 16}
SOFT = [f"soft {tau}" for tau in TAUS if tau >= 0.07]
HARD = ["hard 0.07", "hard 0.3", "hard 0.7", "hard 1.0"]
VIEW: dict[str, Any] = {"crop": 0.4, "jitter": 0.0, "grey": 0.0}


def run(arm: str, seed: int, quick: bool) -> dict[str, float]:
    train, test = rows(quick)
    objective, _, tau = arm.partition(" ")
    info = DataInfo("fashion-mnist", len(train), ("image", "label"), 28, 1, (0.29,), (0.35,))

    def make() -> Temperature:
        chosen: Any = objective if arm != "random" else "soft"
        return Temperature(build_encoder(ENCODER, info), data=info, objective=chosen, tau=float(tau or 0.3), dim=64, **VIEW)

    method = built(seed, make).eval()
    if arm != "random":
        fit(method, train, steps=2 if quick else 1000, batch=32 if quick else 128, lr=2e-3, seed=seed)
    return measured(method, train, test)


def measured(method: Temperature, train: Rows, test: Rows) -> dict[str, float]:
    x, x_test = (extract(method.encode, r) for r in (train, test))
    y, y_test = (torch.from_numpy(r.values("label")) for r in (train, test))
    u = unit(embedded(method, x_test))
    first, second = (unit(embedded(method, extract(partial(viewed, method, which), test))) for which in (1, 2))
    views = float(cosines(first, second).mean())
    return {"accuracy": ridge(x, y, x_test, y_test)["accuracy"], "knn": knn_cosine(x, y, x_test, y_test, k=20)["accuracy"],
            "uniformity": float(uniformity(u)), "tolerance": float(tolerance(u, y_test)), "views": views,
            "separation": views - nearest(u, 10)[0],
            "effective negatives": shares(u, [method.tau], None)["effective negatives"][0]}


@torch.no_grad()
def embedded(method: Temperature, x: Tensor) -> Tensor:
    return method.head(x).double()


def viewed(method: Temperature, which: int, batch: dict) -> Tensor:
    return method.encoder.features(method.view({**batch, "key": fold(batch["row"], 77)}, which))


def judge(values: Values) -> tuple[str, str]:
    at = {m: [mean(values, arm, m) for arm in SOFT] for m in ("uniformity", "tolerance", "accuracy")}
    rise = {m: rank_correlation(at[m]) for m in ("uniformity", "tolerance")}
    hard = [mean(values, arm, "uniformity") for arm in HARD]
    same = (max(hard) - min(hard)) / -min(hard)
    trained = [arm for arm in values if arm != "random"]
    least = max(trained, key=lambda arm: mean(values, arm, "uniformity"))
    worse, hardness = paired(values, "simple", "soft 0.3", "accuracy"), paired(values, "hard-simple", "simple", "accuracy")
    best = SOFT[int(np.argmax(at["accuracy"]))]
    inner = best not in (SOFT[0], SOFT[-1]) and all(paired(values, best, end, "accuracy").low > 0 for end in (SOFT[0], SOFT[-1]))
    sentence = (
        f"Rank correlation of temperature with uniformity {rise['uniformity']:+.2f} (from {at['uniformity'][0]:.2f} at 0.07 to "
        f"{at['uniformity'][-1]:.2f} at 1), with tolerance {rise['tolerance']:+.2f} ({at['tolerance'][0]:.2f} to "
        f"{at['tolerance'][-1]:.2f}). The hard arms' uniformity lies between {min(hard):.2f} and {max(hard):.2f}; the least "
        f"uniform arm is {least}. Accuracy: simple - soft 0.3 {worse}, hard-simple - simple {hardness}; best of the soft arms is "
        f"{best}, {'above' if inner else 'not clearly above'} both ends.")
    if min(rise.values()) < 0.5 or worse.mean >= 0 or hardness.mean <= 0:
        return "refuted", sentence
    better = min(rise.values()) >= 0.9 and same <= 0.05 and least == "simple" and worse.high < 0 and hardness.low > 0
    return ("confirmed" if better else "open"), sentence


def rank_correlation(values: list[float]) -> float:
    """Spearman's, with the order in which they stand."""
    return spearman(torch.arange(len(values)), torch.tensor(values))


@cache
def rows(quick: bool) -> tuple[Rows, Rows]:
    return small(open_data("fashion-mnist"), 200 if quick else 3000, 100 if quick else 2000)
