"""Selfie's claim: where labels are few, weights that learned to put patches back beat a fresh start."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from notan.claims._statistics import Values, column, mean, paired
from notan.claims._train import built, fit
from notan.data import Data, Rows, keys, open_data
from notan.errors import NotanError
from notan.methods.selfie import RECIPES, Selfie
from notan.nets.build import build_encoder
from notan.nets.pixels import patchify
from notan.probes.features import extract
from notan.probes.finetune import finetune
from notan.views.geometry import pad_crop
from notan.views.random import bernoulli, fold

CLAIM = {
    "sentence": "Fine-tuned on 5% of the labels, a ResNet whose first three groups were pre-trained by Selfie is more "
                "accurate than the same ResNet from scratch, and varies less between runs; with all labels the gain is "
                "smaller.",
    "arms": ["scratch", "selfie", "token", "place", "frozen", "scratch, longer"],
    "baseline": "scratch",
    "data": "fashion-mnist, at its own 28 x 28 pixels",
    "metric": "test accuracy after end-to-end fine-tuning on 5% and on all of the labels of 10,000 pictures; accuracy "
              "of the jigsaw itself over hidden patches that are not of one grey (chance 0.25)",
    "seeds": [0, 1, 2, 3, 4],
    "confirms": "selfie - scratch at 5% of the labels has a paired 95% interval above 0 and the smaller standard "
                "deviation, the mean gain is smaller with all labels, and the jigsaw is solved better than 0.35",
    "refutes": "the jigsaw stays below 0.30, or the mean gain at 5% of the labels is not positive",
    "protocol": "Each seed draws 10,000 training pictures; 5% of the labels are 50 of each class among them. "
                "Pre-training: 400 steps of 128 (5 epochs) on the 10,000 without labels, by the method's small recipe, on "
                "a pre-activation ResNet-10 at width 8, without the fourth group; patches are 7 x 7. Fine-tuning: the "
                "whole network, its fourth group and classifier fresh (and equal in all arms of a seed), SGD with Nesterov "
                "momentum, weight decay 1e-4, batch 64, zero-padded crops and flips; 150 steps on 5%, 400 steps on all "
                "labels. The rate is chosen for each arm out of 0.01, 0.03, 0.1 and 0.3, at 5% of the labels, on 2,000 "
                "other training pictures, with a seed that is used for nothing else, and kept for all labels. Test: all "
                "10,000 pictures. selfie: the paper's additive query; token: a query that reads the context; place: the "
                "context left out (u = 0); frozen: a control, other random weights, which stay as they are while the jigsaw "
                "is learned on top of them; scratch, longer: as many more steps of fine-tuning as see the pictures of the "
                "pre-training, at 5% of the labels. About a sixth of the patches show one grey: no place can be told for "
                "them, so they count neither as solved nor as missed. Smaller than the paper in every way: its "
                "pre-training is hundreds of times longer, and five seeds tell spreads apart only roughly.",
    "minutes": 55,
}

RATES = (0.01, 0.03, 0.1, 0.3)
TUNING = 100                                                            # the seed that chooses rates, and only that
TOWER = {"name": "resnet10", "width": 8, "stem": "cifar", "preact": True}
PRETRAINING = (400, 128)                                                # steps, batch


def run(arm: str, seed: int, quick: bool) -> dict[str, float]:
    """Accuracy at both shares of labels, the rates used, and for pre-trained arms the accuracy of the jigsaw."""
    data = _data(quick)
    rows = _pictures(data, seed, quick)
    network, found = pretrained(arm, seed, data, rows, quick)
    lr = RATES[1] if quick else chosen_rate(arm)
    test = data.test.select(np.arange(300)) if quick else data.test
    for share in ("5%",) if arm == "scratch, longer" else ("5%", "100%"):
        found[f"accuracy {share}"] = _finetune(network, rows, test, share, lr, seed, _steps(arm, share, quick))
    return found | {"rate": lr}


def judge(values: Values) -> tuple[str, str]:
    few, all_labels = (paired(values, "selfie", "scratch", f"accuracy {share}") for share in ("5%", "100%"))
    sd = {arm: column(values, arm, "accuracy 5%").std(ddof=1) for arm in ("selfie", "scratch")}
    jigsaw = mean(values, "selfie", "jigsaw")
    sentence = (
        f"At 5% of the labels selfie - scratch is {few}, with standard deviations {sd['selfie']:.4f} and "
        f"{sd['scratch']:.4f}; with all labels {all_labels}. The jigsaw is solved at {jigsaw:.3f} (chance 0.25, "
        f"random features {mean(values, 'frozen', 'jigsaw'):.3f}). Without the context (u = 0) accuracy at 5% changes by "
        f"{paired(values, 'place', 'selfie', 'accuracy 5%')}, with the token query by "
        f"{paired(values, 'token', 'selfie', 'accuracy 5%')}. Scratch with the pre-training's pictures as more fine-tuning: "
        f"selfie - it is {paired(values, 'selfie', 'scratch, longer', 'accuracy 5%')}. Rates: {_rates(values)}."
    )
    if jigsaw < 0.30 or few.mean <= 0:
        return "refuted", sentence
    better = few.low > 0 and sd["selfie"] < sd["scratch"] and all_labels.mean < few.mean and jigsaw > 0.35
    return ("confirmed" if better else "open"), sentence


def _rates(values: Values) -> str:
    """The chosen rates; one at the end of the grid is marked, for a better one may lie beyond it."""
    found = {arm: values[arm][min(values[arm])]["rate"] for arm in values}
    return ", ".join(f"{arm} {lr:g}{' (end of the grid)' if lr in (RATES[0], RATES[-1]) else ''}" for arm, lr in found.items())


def pretrained(arm: str, seed: int, data: Data, rows: Rows, quick: bool) -> tuple[Any, dict[str, float]]:
    """The full network of an arm before fine-tuning, and how well its jigsaw was solved."""
    plan: dict[str, Any] = RECIPES["small"]
    spec = {**TOWER, "last_group": 3}
    network = built(seed, lambda: build_encoder({**spec, "last_group": 4}, data.info))
    if arm.startswith("scratch"):
        return network, {}
    query = arm if arm in ("token", "place") else "additive"
    start = seed + 1000 if arm == "frozen" else seed
    method = built(start, lambda: Selfie(build_encoder(spec, data.info), **{**plan["method"], "query": query}))
    method.encoder.requires_grad_(arm != "frozen")
    settings = plan["optimiser"]
    fit(method, rows, steps=3 if quick else PRETRAINING[0], batch=PRETRAINING[1], lr=settings["lr"],
        weight_decay=settings["weight_decay"], warmup=plan["warmup"], seed=seed)
    network.load_state_dict(method.encoder.state_dict(), strict=False)
    return network, {"jigsaw": _jigsaw(method, data, quick)}


def _steps(arm: str, share: str, quick: bool) -> int:
    """Steps of fine-tuning, 64 pictures each."""
    more = PRETRAINING[0] * PRETRAINING[1] // 64 if arm == "scratch, longer" else 0
    return 3 if quick else (150 if share == "5%" else 400) + more


@cache
def chosen_rate(arm: str) -> float:
    """The rate of RATES with the best accuracy on held-out training pictures of the tuning seed."""
    data = _data(False)
    rows = _pictures(data, TUNING, False)
    held_out = data.train.select(keys.shuffle(TUNING, 0, len(data.train))[10_000:12_000])
    network = _tuning_network(arm)
    return max(RATES, key=lambda lr: _finetune(network, rows, held_out, "5%", lr, TUNING, _steps(arm, "5%", False)))


@cache
def _tuning_network(arm: str) -> Any:
    data = _data(False)
    return pretrained(arm, TUNING, data, _pictures(data, TUNING, False), False)[0]


@cache
def _data(quick: bool) -> Data:
    data = open_data("fashion-mnist")
    if data.info.name != "fashion-mnist" and not quick:
        raise NotanError(f"fashion-mnist could not be reached, this is {data.info.name}", "the data of the claim",
                         "install the Debian package dataset-fashion-mnist")
    return data


def _pictures(data: Data, seed: int, quick: bool) -> Rows:
    count = 500 if quick else 10_000
    return data.train.select(keys.shuffle(seed, 0, len(data.train))[:count])


def _few(labels: np.ndarray, each: int) -> np.ndarray:
    """The first `each` rows of every class."""
    return np.sort(np.concatenate([np.flatnonzero(labels == k)[:each] for k in np.unique(labels)]))


def _finetune(network: Any, rows: Rows, test: Rows, share: str, lr: float, seed: int, steps: int) -> float:
    labels = rows.values("label")
    index = _few(labels, len(rows) // 200) if share == "5%" else np.arange(len(rows))
    found = finetune(
        network, rows, index, test, classes=10, steps=steps, lr=lr, seed=seed, batch=64,
        optimiser=partial(torch.optim.SGD, momentum=0.9, nesterov=True), weight_decay=1e-4, augment=_jitter,
    )
    return float(found["accuracy"])


def _jitter(pixels: Tensor, key: Tensor) -> Tensor:
    x = pad_crop(pixels, key, pixels.shape[3] // 8).pixels
    return torch.where(bernoulli(key, "flip", 0.5)[:, None, None, None], x.flip(3), x)


def _jigsaw(method: Selfie, data: Data, quick: bool) -> float:
    """Share of the hidden patches of test pictures that are put where they belong, of those with more than one grey."""
    rows = data.test.select(np.arange(200 if quick else 5000))

    def hits(batch: dict[str, Any]) -> Tensor:
        x, order = method.puzzle({**batch, "key": fold(batch["row"], 0)})
        right = (method.logits(x, order).argmax(2) == torch.arange(method.targets)).float()     # (B, K), by place
        hidden = patchify(x, method.patch).gather(1, order[:, :method.targets, None].expand(-1, -1, method.patch**2))
        return torch.stack([right, (hidden.std(2) > 0).float()], 2).flatten(1)

    right, varied = extract(hits, rows).unflatten(1, (-1, 2)).unbind(2)
    return float((right * varied).sum() / varied.sum())
