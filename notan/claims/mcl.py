"""MCL's claim (Zhang et al. 2024): a second stage, against what the first could not tell apart, learns what it left out."""

from __future__ import annotations

import colorsys
from functools import cache, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from notan.claims._statistics import Values, column, mean, paired, t_interval
from notan.claims._train import built, fit, small
from notan.data import DataInfo, Rows, open_data
from notan.methods.mcl import MCL
from notan.nets.build import build_encoder
from notan.probes.features import extract
from notan.probes.knn import knn_cosine
from notan.probes.ridge import ridge

CLAIM = {
    "sentence": "Contrast that stops at a colour which every view shares learns the shape when it is run again within clusters "
                "of its features, and both stages together tell kinds better than two ordinary runs do, without losing the "
                "colour.",
    "arms": ["random", "stage 0", "two seeds", "shuffled", "twice as long", "mcl", "mcl, K=5", "mcl, K=20"],
    "baseline": "two seeds",
    "data": "Fashion-MNIST, 6,000 and 2,000 pictures by key, each tinted in one of ten hues at random: the same in all its views",
    "metric": "accuracy of a ridge probe of the kind of clothes, on all stages' features side by side; knn: of cosine 20-NN; "
              "hue: of a ridge probe of the tint; last stage: of kinds, on the features of the last stage alone; purity: share "
              "of rows whose tint is the most frequent one of their cluster",
    "seeds": [0, 1, 2, 3, 4],
    "confirms": "mcl is above two seeds and above shuffled in accuracy of kinds, each by a paired 95% interval above 0; its last "
                "stage is above stage 0 in the same sense; purity is above 0.7; and hue is at most 2 points below stage 0's",
    "refutes": "two seeds or shuffled reaches mcl: the mean difference is 0 or below",
    "protocol": "Contrast of the two views of a picture among those of the batch (the soft loss of `temperature`, tau 0.2, "
                "linear head of 64); crops of at least 0.4 and mirroring, no change of colour. A ResNet-10 of width 16 with "
                "group norm: batches of one cluster would have their own statistics in batch norm. AdamW 2e-3, decay 0.05, 10% "
                "warm-up then cosine, 250 steps of 128 in each stage, of which every arm has two, except random, stage 0, and "
                "twice as long, whose one stage has 500. In a seed all arms begin with the same first stage. The second begins "
                "with fresh weights: mcl within 10 clusters (k-means) of the first's features, K = 5 and 20 likewise; shuffled "
                "within the same groups dealt to rows at random; two seeds without groups. Probes: closed form on frozen "
                "features of pictures as they are. Sizes were settled on seed 100.",
    "uses": ["_train.py"], "methods": ["mcl", "temperature"],
    "minutes": 20,
}

ENCODER = {"name": "resnet10", "width": 16, "stem": "imagenet", "norm": "group"}
BASE = "temperature:negatives=batch,tau=0.2,dim=64,crop=0.4,jitter=0.0,grey=0.0"
ARMS = {"two seeds": 1, "shuffled": 10, "mcl": 10, "mcl, K=5": 5, "mcl, K=20": 20}      # clusters of the second stage
STEPS, BATCH, RATE, HUES = 250, 128, 2e-3, 10


def run(arm: str, seed: int, quick: bool) -> dict[str, float]:
    data = tinted(quick)
    (train, hue), (test, test_hue) = data
    steps = 2 if quick else STEPS * (2 if arm == "twice as long" else 1)
    info = DataInfo("tinted", len(train), ("image", "label"), 28, 3, (0.2,) * 3, (0.3,) * 3)

    def make(extra: int) -> MCL:
        return MCL(build_encoder(ENCODER, info), data=info, base=BASE, extra=extra, clusters=ARMS.get(arm, 1))

    method = built(seed, partial(make, int(arm in ARMS)))
    found: dict[str, float] = {}
    if arm in ARMS:
        method.load_state_dict({**method.state_dict(), **first_stage(seed, quick)})
        method.enter(1, partial(extract, rows=train))
        if arm == "shuffled":
            method.codes.copy_(method.codes[torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))])
        found["purity"] = purity(method.codes, hue)
        learn(method, train, steps, seed + 10**6)
    elif arm != "random":
        learn(method, train, steps, seed)
    return found | measured(method, train, test, hue, test_hue)


def learn(method: MCL, train: Rows, steps: int, seed: int) -> None:
    fit(method, train, steps=steps, batch=min(BATCH, len(train) // 40), lr=RATE, seed=seed)


@cache
def first_stage(seed: int, quick: bool) -> dict[str, Tensor]:
    """The weights of the first stage after its steps, under the names they have in `MCL`."""
    (train, _), _ = tinted(quick)
    info = DataInfo("tinted", len(train), ("image", "label"), 28, 3, (0.2,) * 3, (0.3,) * 3)
    method = built(seed, lambda: MCL(build_encoder(ENCODER, info), data=info, base=BASE, extra=0, clusters=1))
    learn(method, train, 2 if quick else STEPS, seed)
    return {k: v for k, v in method.state_dict().items() if k.startswith(("stages.0.", "encoder.parts.0."))}


def measured(method: MCL, train: Rows, test: Rows, hue: Tensor, test_hue: Tensor) -> dict[str, float]:
    x, x_test = (extract(method.encode, rows) for rows in (train, test))
    y, y_test = (torch.from_numpy(rows.values("label")) for rows in (train, test))
    last = slice(-method.learner.encoder.dim, None)
    return {"accuracy": ridge(x, y, x_test, y_test)["accuracy"], "knn": knn_cosine(x, y, x_test, y_test, k=20)["accuracy"],
            "hue": ridge(x, hue, x_test, test_hue)["accuracy"],
            "last stage": ridge(x[:, last], y, x_test[:, last], y_test)["accuracy"]}


def judge(values: Values) -> tuple[str, str]:
    ensemble, shuffled, first = (paired(values, "mcl", arm, "accuracy") for arm in ("two seeds", "shuffled", "stage 0"))
    last = t_interval(column(values, "mcl", "last stage") - column(values, "stage 0", "accuracy"))
    hue, pure = paired(values, "mcl", "stage 0", "hue"), mean(values, "mcl", "purity")
    sentence = (
        f"Kinds by all features: mcl - two seeds {ensemble}, mcl - shuffled {shuffled}, mcl - stage 0 {first}; the second stage "
        f"alone - stage 0 {last}. The clusters are of one hue to {pure:.2f}; hue: mcl - stage 0 {hue}. Twice as long reaches "
        f"{mean(values, 'twice as long', 'accuracy'):.3f}, mcl {mean(values, 'mcl', 'accuracy'):.3f}.")
    if ensemble.mean <= 0 or shuffled.mean <= 0:
        return "refuted", sentence
    better = ensemble.low > 0 and shuffled.low > 0 and last.low > 0 and hue.mean >= -0.02 and pure > 0.7
    return ("confirmed" if better else "open"), sentence


def purity(codes: Tensor, hue: Tensor) -> float:
    counts = F.one_hot(codes).T @ F.one_hot(hue, HUES)                  # (clusters, hues)
    return float(counts.max(1).values.sum() / len(hue))


@cache
def tinted(quick: bool) -> tuple[tuple[Rows, Tensor], tuple[Rows, Tensor]]:
    """Training and test rows in colour, and the hue of each."""
    splits: list[Any] = []
    for i, rows in enumerate(small(open_data("fashion-mnist"), 320 if quick else 6000, 100 if quick else 2000)):
        grey = rows.take(np.arange(len(rows)))["image"].numpy()         # (N, 1, 28, 28)
        hue = np.random.default_rng(i).integers(0, HUES, len(rows))
        rgb = np.array([colorsys.hsv_to_rgb(h / HUES, 1, 1) for h in range(HUES)])[hue]         # (N, 3)
        image = (grey * rgb[:, :, None, None]).round().astype(np.uint8)
        splits.append((Rows({"image": image, "label": rows.values("label")}), torch.from_numpy(hue)))
    return splits[0], splits[1]
