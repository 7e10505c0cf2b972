"""SepCLR's claim (Louiset et al. 2024): a space for what two groups share, and one for what only the targets have."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from notan.claims._statistics import Values, mean, paired
from notan.claims._train import built, fit, subset
from notan.data import Rows, open_data
from notan.methods._contrast import two_views
from notan.methods._progress import Progress
from notan.methods.sepclr import SepCLR
from notan.nets.build import build_encoder
from notan.probes.attributes import attribute_pairs
from notan.probes.features import extract

CLAIM = {
    "sentence": "SepCLR's salient space holds the digit that only targets have and less of the garment than two encoders of "
                "SimCLR do, its common space holds the garment, and joint entropy (k-JEM) takes the digit out of the common "
                "space.",
    "arms": ["random", "simclr", "sepclr", "paper weights", "without k-JEM", "without nothing"],
    "baseline": "simclr",
    "data": "overlay: halves of 6,000 garments of Fashion-MNIST, every second one under half of a handwritten digit; 2,000 to "
            "test",
    "metric": "accuracy of ridge probes on target rows (chance 0.1): garment and digit, each from the common (C) and the salient "
              "(S) encoder's features",
    "shown": ["C garment", "C digit", "S garment", "S digit"],
    "seeds": [0, 1, 2, 3, 4],
    "confirms": "S garment of sepclr is below simclr's and without k-JEM C digit is higher, each by a paired 95% interval; and "
                "neither S digit nor C garment of sepclr is more than 2 points below simclr's",
    "refutes": "S garment of sepclr is not below simclr's, or C digit not below that without k-JEM, in the mean",
    "protocol": "Pictures of 16 x 16, two convnets 32-64-128-128, heads of 128 and 32, crops of at least 0.5, jitter 0.5, no "
                "mirroring. AdamW 1e-3, 10% warm-up then cosine, 300 steps of 128 with both groups in halves, the same rows and "
                "keys in every arm, equal first weights in a seed. Weights b_s / b_r / lam: sepclr 1 / 100 / 10; the paper's for "
                "CIFAR-10 1,000 / 1,000 / 10; without k-JEM 1 / 100 / 0; without nothing 1 / 0 / 10. simclr: each of the two "
                "encoders by the contrast of two views of all rows (tau 0.5). random: untrained. Probes in closed form on 3,000 "
                "target rows. Weights were chosen beforehand; sizes were settled on seed 100.",
    "uses": ["_train.py"], "methods": ["sepclr"],
    "minutes": 20,
}

METRICS = ("C garment", "C digit", "S garment", "S digit")
ARMS = {"sepclr": (1.0, 100.0, 10.0), "paper weights": (1000.0, 1000.0, 10.0), "without k-JEM": (1.0, 100.0, 0.0),
        "without nothing": (1.0, 0.0, 10.0)}
ENCODER = {"name": "convnet", "widths": [32, 64, 128, 128], "strides": [2, 2, 2, 1], "image_size": 16}
VIEW: dict[str, Any] = {"crop": 0.5, "flip": 0.0}


class Twins(SepCLR):
    """SepCLR's two encoders and heads, each trained as SimCLR trains one."""

    def loss(self, batch: dict, progress: Progress) -> dict[str, Tensor]:
        x = torch.cat([self.view(batch, 1), self.view(batch, 2)])
        heads: list[tuple[Any, nn.Module]] = [(self.encoder, self.common_head), (self.salient, self.salient_head)]
        return {"loss": torch.stack([two_views(*head(tower.features(x)).chunk(2), tau=0.5) for tower, head in heads]).sum()}


def run(arm: str, seed: int, quick: bool) -> dict[str, float]:
    data = open_overlay()
    train, test = (subset(data.train, 200), subset(data.test, 100)) if quick else (subset(data.train, 6000), data.test)
    info = data.info

    def make() -> SepCLR:
        towers = [build_encoder(ENCODER, info) for _ in range(2)]
        if arm in ARMS:
            salience, nothing, lam = ARMS[arm]
            return SepCLR(*towers, salience=salience, nothing=nothing, lam=lam, **VIEW)
        return Twins(*towers, **VIEW)

    method = built(seed, make).eval()
    if arm != "random":
        fit(method, train, steps=2 if quick else 300, batch=32 if quick else 128, lr=1e-3, weight_decay=0.0, seed=seed)
    return probed(method, train, test)


def probed(method: SepCLR, train: Rows, test: Rows) -> dict[str, float]:
    spaces, known = [], []
    for rows in (train, test):
        targets = rows.select((rows.values("group") == 1).nonzero()[0])
        z = extract(lambda batch: torch.cat(list(method.encode(batch).values()), 1), targets)
        c, s = z.split([method.encoder.dim, method.salient.dim], 1)
        spaces.append({"C": c, "S": s})
        known.append(torch.from_numpy(targets.values("attributes")))
    found = attribute_pairs(spaces[0], known[0], spaces[1], known[1], ("garment", "digit"))
    return {f"{space} {what}": found[f"{what} from {space}"]["accuracy"] for space in "CS" for what in ("garment", "digit")}


def judge(values: Values) -> tuple[str, str]:
    purer, digit, garment = (paired(values, "sepclr", "simclr", metric) for metric in ("S garment", "S digit", "C garment"))
    apart = paired(values, "sepclr", "without k-JEM", "C digit")
    paper = " / ".join(f"{mean(values, 'paper weights', metric):.3f}" for metric in METRICS)
    sentence = (f"sepclr - simclr: S garment {purer}, S digit {digit}, C garment {garment}. k-JEM changes C digit by {apart}. "
                f"Untrained weights tell the garment to {mean(values, 'random', 'S garment'):.3f} and the digit to "
                f"{mean(values, 'random', 'C digit'):.3f}: what sepclr keeps out is about what training puts in. With the "
                f"paper's weights C garment / C digit / S garment / S digit are {paper}.")
    if purer.mean >= 0 or apart.mean >= 0:
        return "refuted", sentence
    better = purer.high < 0 and apart.high < 0 and digit.mean >= -0.02 and garment.mean >= -0.02
    return ("confirmed" if better else "open"), sentence


@cache
def open_overlay() -> Any:
    return open_data("overlay")
