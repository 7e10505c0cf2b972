"""Hydra's claim (Wu et al. 2024): any two classes make a pair, once a gate chooses the subspace in which they are one."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from notan.claims._statistics import Values, mean, paired, pooled
from notan.claims._train import built, fit, probes, small
from notan.data import Data, DataInfo, Rows, open_data
from notan.errors import NotanError
from notan.losses.geometry import effective_rank
from notan.methods.hydra import RECIPES, Hydra
from notan.methods.supcon import SupCon
from notan.methods.supervised import Supervised
from notan.nets.build import build_encoder
from notan.nets.gate import PairGate
from notan.probes.features import extract

CLAIM = {
    "sentence": "Contrast of arbitrary pairs of classes teaches better features when a learned gate chooses a subspace for "
                "each pair than without a gate, also where no pair is ever of one class.",
    "arms": ["random", "supervised", "supcon", "identical, open", "arbitrary, open", "arbitrary, other gate", "arbitrary, gate",
             "arbitrary, flat gate", "distinct, open", "distinct, gate"],
    "baseline": "arbitrary, open",
    "data": "Fashion-MNIST, 6,000 pictures by key to train and 4,000 to test; for the gates' relations 6,000 of five of its "
            "kinds, each under one of four drawn fills: 20 classes",
    "metric": "test accuracy of frozen features, averaged over cosine 20-NN and the ridge probe: of the encoder (backbone), "
              "and after the projector, without a gate (projector); effective rank of both; gates on the 20 classes: rank "
              "correlation over all pairs of classes between what they share (kind, fill or nothing) and the cosine of their "
              "own gates (overlap), or the share of dimensions that the pair's gate leaves open (width)",
    "shown": ["backbone", "projector", "backbone rank", "projector rank", "overlap", "width"],
    "seeds": [0, 1, 2, 3, 4],
    "confirms": "with arbitrary and with distinct pairs, at the backbone and in the projector's space, gate minus open has a "
                "paired 95% interval above 0 and a mean of more than two pooled standard deviations; and arbitrary, gate is "
                "above random at the backbone by an interval above 0",
    "refutes": "in all four of these comparisons the mean of gate minus open is at most one pooled standard deviation",
    "protocol": "Pictures of 16 x 16, a convnet 32-64-128-128, the method's small recipe (views, projector 256-64 with a "
                "layer norm, tau 0.1, AdamW 2e-3, decay 0.05, 10% warm-up then cosine), 150 steps of 128, the same rows and "
                "keys in every arm, equal first weights of the encoder in a seed. Pairs: arbitrary (the class of another row "
                "of the batch), distinct (any class but the row's own), identical. open: all dimensions, no gate. gate: "
                "learned, similarities brought to length one again; flat gate: not; other gate: learned, and given another "
                "row's pair, a control for what a gate is besides the pair's own. supcon: SupCon's loss with the same "
                "projector, views and tau; supervised: cross-entropy on one crop a picture, half as many passes; random: "
                "untrained. Gates' relations: arms with gates are trained once more, in the same way, on trousers, dresses, "
                "coats, bags and boots, plain, with stripes either way or in checks; 70 of the 190 pairs of classes share a "
                "kind or a fill; random's gates are untrained. Expected against supcon and supervised: a tie or a loss, "
                "which is no part of the verdict. Sizes were settled on seeds 100 and 101.",
    "uses": ["_train.py"], "methods": ["hydra", "supcon", "supervised"],
    "minutes": 16,
}

ARMS: dict[str, dict[str, Any]] = {
    "random": {}, "identical, open": {"pairs": "identical", "gate": False}, "arbitrary, open": {"gate": False},
    "arbitrary, other gate": {}, "arbitrary, gate": {}, "arbitrary, flat gate": {"similarity": "flat"},
    "distinct, open": {"pairs": "distinct", "gate": False}, "distinct, gate": {"pairs": "distinct"},
}
ENCODER = {"name": "convnet", "widths": [32, 64, 128, 128], "strides": [2, 2, 2, 1], "image_size": 16}
PLAN: dict[str, Any] = RECIPES["small"]
KINDS, FILLS = {1: "trouser", 3: "dress", 4: "coat", 8: "bag", 9: "boot"}, ("plain", "stripes across", "stripes down", "checks")
COMPARED = [(pairs, space) for pairs in ("arbitrary", "distinct") for space in ("backbone", "projector")]


def run(arm: str, seed: int, quick: bool) -> dict[str, float]:
    data = garments()
    if data.info.name != "fashion-mnist" and not quick:
        raise NotanError(f"fashion-mnist could not be reached, this is {data.info.name}", "the data of the claim",
                         "install the Debian package dataset-fashion-mnist")
    train, test = small(data, 300 if quick else 6000, 100 if quick else 4000)
    method = trained(arm, train, data.info, seed, quick)
    spaces = {"backbone": method.encode}
    if arm != "supervised":
        spaces["projector"] = lambda batch: method.projector(method.encode(batch))
    found: dict[str, float] = {}
    for space, encode in spaces.items():
        scores = probes(encode, train, test)
        found |= {f"{space} {probe}": value for probe, value in scores.items()}
        found |= {space: (scores["knn"] + scores["ridge"]) / 2, f"{space} rank": effective_rank(extract(encode, test))}
    if type(getattr(method, "gate", None)) is PairGate:
        found |= relations(trained(arm, *filled(quick), seed, quick).gate)
    return found


def trained(arm: str, rows: Rows, info: DataInfo, seed: int, quick: bool) -> Any:
    method = built(seed, lambda: made(arm, info)).eval()
    if arm != "random":
        fit(method, rows, steps=2 if quick else 150, batch=32 if quick else 128, lr=PLAN["optimiser"]["lr"],
            weight_decay=PLAN["optimiser"]["weight_decay"], warmup=PLAN["warmup"], seed=seed)
    return method


def made(arm: str, info: DataInfo) -> nn.Module:
    encoder, settings = build_encoder(ENCODER, info), PLAN["method"]
    if arm == "supervised":
        return Supervised(encoder, data=info, crop=settings["crop"])
    if arm == "supcon":
        method = SupCon(encoder, data=info, **settings)
        method.projector.append(nn.LayerNorm(settings["dim"]))
        return method
    hydra = Hydra(encoder, data=info, **settings, **ARMS[arm])
    if arm == "arbitrary, other gate":
        hydra.gate = Elsewhere(len(info.classes), settings["dim"])
    return hydra


class Elsewhere(PairGate):
    """As many parameters and as many gates as `PairGate`, each on another row than its own."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return super().forward(a, b).roll(1, 0)


@torch.no_grad()
def relations(gate: PairGate) -> dict[str, float]:
    """Rank correlations of what two of the 20 classes share with the overlap of their gates, and the width of the pair's."""
    from scipy.stats import spearmanr

    i, j = torch.triu_indices(20, 20, 1)                                # class: 4 kind + fill
    shared = (i // 4 == j // 4) | (i % 4 == j % 4)                      # both would be the same class
    a, b = (F.normalize(gate(c, c).double(), dim=1) for c in (i, j))
    weight = gate(i, j).double().square()
    found = {"overlap": (a * b).sum(1), "width": weight.sum(1).square() / weight.square().sum(1) / weight.shape[1]}
    return {name: float(spearmanr(x, shared).statistic) for name, x in found.items()}


def judge(values: Values) -> tuple[str, str]:
    gains = {(p, s): paired(values, f"{p}, gate", f"{p}, open", s) for p, s in COMPARED}
    sd = {(p, s): pooled(values, s, f"{p}, gate", f"{p}, open") for p, s in COMPARED}
    ranks = {space: " / ".join(f"{mean(values, arm, f'{space} rank'):.0f}" for arm in
                               ("arbitrary, open", "arbitrary, gate", "supcon")) for space in ("backbone", "projector")}
    over = {arm: paired(values, "arbitrary, gate", arm, "backbone")
            for arm in ("random", "arbitrary, other gate", "identical, open", "supcon", "supervised")}
    sentence = (
        "Accuracy, gate - open: " + ", ".join(f"{p} pairs, {s} {g} (pooled sd {sd[p, s]:.4f})" for (p, s), g in gains.items())
        + ". Arbitrary pairs with a gate at the backbone: " + ", ".join(f"- {arm} {by}" for arm, by in over.items())
        + ". Effective rank of open / gate / supcon: " + ", ".join(f"{space} {found}" for space, found in ranks.items())
        + ". What classes share is told by gates, trained (untrained): " + ", ".join(
            f"{name} {mean(values, 'arbitrary, gate', name):+.2f} ({mean(values, 'random', name):+.2f})"
            for name in ("overlap", "width")) + ".")
    if all(gains[at].mean <= sd[at] for at in COMPARED):
        return "refuted", sentence
    better = all(gains[at].low > 0 and gains[at].mean > 2 * sd[at] for at in COMPARED) and over["random"].low > 0
    return ("confirmed" if better else "open"), sentence


@cache
def garments() -> Data:
    return open_data("fashion-mnist")


@cache
def filled(quick: bool) -> tuple[Rows, DataInfo]:
    """Garments of five kinds, each with one of four fills at random: the class is 4 kind + fill."""
    rows, draw, count = garments().train, np.random.default_rng(0), 80 if quick else 1200
    index = np.concatenate([np.flatnonzero(rows.values("label") == kind)[:count] for kind in KINDS])
    fill, phase = draw.integers(0, 4, len(index)), draw.integers(0, 8, (2, len(index), 1))
    image = rows.take(index)["image"].numpy()
    across, down = (np.arange(image.shape[2]) + phase) // 4 % 2 == 1    # (N, 28) each
    across, down, f = across[:, :, None], down[:, None], fill[:, None, None]
    dark = (f == 1) & across | (f == 2) & down | (f == 3) & (across ^ down)                     # (N, 28, 28)
    image = np.where(dark[:, None], image // 3, image)
    info = DataInfo("filled", len(index), ("image", "label"), image.shape[2], 1, (float(image.mean() / 255),),
                    (float(image.std() / 255),), tuple(f"{kind}, {name}" for kind in KINDS.values() for name in FILLS))
    return Rows({"image": image, "label": 4 * np.repeat(np.arange(5), count) + fill}), info
