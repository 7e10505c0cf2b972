"""cMIM (Livne 2025): does a contrast without augmented views make the codes of MIM better?"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from notan import world
from notan.claims._statistics import Interval, Values, column, mean, paired, t_interval
from notan.claims._train import built, fit, probes, small
from notan.data import DataInfo, Rows, open_data
from notan.losses.info_nce import nt_xent
from notan.losses.latent import self_contrast
from notan.methods._progress import Progress
from notan.methods.cmim import CMIM, BernoulliDecoder
from notan.nets.headed import Headed
from notan.nets.mlp import MLP
from notan.probes.features import extract
from notan.views.geometry import floats
from notan.views.random import fold, uniform

CLAIM = {
    "sentence": "At equal reconstruction the codes of cMIM classify better than those of MIM and of InfoNCE, depend "
                "less on the batch size than InfoNCE's, and the decoder's hidden layer is better than the code.",
    "arms": ["ae", "vae", "mim", "cmim 0.1", "cmim 0.5", "cmim 1", "infonce", "cmim 0.1, B=8", "cmim 0.1, B=512",
             "mim, B=8", "mim, B=512", "infonce, B=8", "infonce, B=512"],
    "baseline": "mim",
    "data": "scikit-learn digits (1,438 + 359 pictures) and Fashion-MNIST (5,000 + 5,000 by key)",
    "metric": "mu",
    "shown": ["mu", "h", "random h", "hidden", "digits mu", "fashion-mnist mu", "fashion-mnist nats",
              "fashion-mnist cosine", "fashion-mnist contrast"],
    "seeds": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9],
    "confirms": "All four parts hold, each as a paired 95% interval over seeds that lies above 0: (1) cMIM at tau 0.1 "
                "minus MIM, with a reconstruction within 2% either way on each data set; (2) cMIM minus InfoNCE; (3) "
                "the change of accuracy between B = 8 and B = 512 on digits is smaller for cMIM than for InfoNCE; (4) "
                "on both probes the decoder's hidden layer h minus mu, and minus the hidden layer of an untrained "
                "decoder.",
    "refutes": "Any part fails clearly. Part 1: the interval of cMIM minus MIM holds 0 or lies below it, and ends below "
               "+0.5 points; or reconstruction is more than 2% worse on a data set. Parts 2, 3, 4: the interval, or "
               "one of part 4's four, lies below 0. Anything else is open.",
    "protocol": "Encoder pixels-400-400, code of 64, decoder 400-400, no augmentation. AdamW 1e-3, no decay, 5% "
                "warm-up then cosine. B = 128: 440 steps on digits, 780 on Fashion-MNIST, which stands in for the "
                "5,000 pictures of MNIST that were planned. The batch sweep on digits has the same 440 steps at the "
                "same rate, so B = 512 sees 64 times as many pictures as B = 8; MIM, whose loss has no pairs, is the "
                "control for what that alone does. B = 32 is left out. InfoNCE: two views with 30% of the pixels "
                "set to 0, tau 0.1, the same encoder and linear code, loss on the code. The arm's number is the test "
                "accuracy of frozen features, averaged over 5-NN (cosine) and the closed-form ridge probe, and over "
                "both data sets. mu: the code's mean. h: the decoder's last hidden layer at mu (for InfoNCE the "
                "decoder is untrained). random h: the same layer of a fresh decoder. hidden: the encoder's last "
                "hidden layer, as wide as h. nats: -log p(x | mu) of a test picture. cosine: mean cosine of two "
                "different test codes. contrast: mean -log p(k = 1) at tau 0.1, for every arm, of mu of the first 256 "
                "test pictures as one batch.",
    "minutes": 18,
}

ARMS: dict[str, tuple[str, float, int]] = {                             # objective, tau, batch
    "ae": ("ae", 0.1, 128), "vae": ("vae", 0.1, 128), "mim": ("mim", 0.1, 128), "cmim 0.1": ("cmim", 0.1, 128),
    "cmim 0.5": ("cmim", 0.5, 128), "cmim 1": ("cmim", 1.0, 128), "infonce": ("infonce", 0.1, 128),
    "cmim 0.1, B=8": ("cmim", 0.1, 8), "cmim 0.1, B=512": ("cmim", 0.1, 512),
    "mim, B=8": ("mim", 0.1, 8), "mim, B=512": ("mim", 0.1, 512),
    "infonce, B=8": ("infonce", 0.1, 8), "infonce, B=512": ("infonce", 0.1, 512),
}
DATA = {"digits": (1438, 359, 440), "fashion-mnist": (5000, 5000, 780)}                # training, test rows, steps
CODE, WIDTH = 64, 400
CONTRASTED = 256                                                        # codes in the one batch of `contrast`


class InfoNCE(nn.Module):
    """The rival: two views with pixels dropped, contrasted at the code; the decoder is never trained."""

    def __init__(self, encoder: MLP, tau: float) -> None:
        super().__init__()
        self.encoder, self.tau = Headed(encoder, CODE), tau
        self.decoder = BernoulliDecoder(CODE, [WIDTH, WIDTH], (encoder.channels, encoder.image_size))
        self.decoder.requires_grad_(False)

    def loss(self, batch: dict, progress: Progress) -> dict[str, Tensor]:
        z1, z2 = (world.gather(self.encoder.features(self.view(batch, i))) for i in (1, 2))
        return {"loss": nt_xent(z1, z2, tau=self.tau)}

    def view(self, batch: dict, which: int) -> Tensor:
        x = floats(batch["image"])                                      # (B, C, S, S)
        keep = uniform(fold(batch["key"], which), "pixels", x[0].numel()) >= 0.3
        return x * keep.view_as(x)

    def encode(self, batch: dict) -> Tensor:
        return self.encoder.features(floats(batch["image"]))            # (B, d)


def run(arm: str, seed: int, quick: bool) -> dict[str, float]:
    batch = ARMS[arm][2]
    found: dict[str, float] = {}
    for name in ["digits"] if quick or batch != 128 else list(DATA):
        found |= {f"{name} {k}": v for k, v in _measure(arm, name, seed, quick).items()}
    if batch == 128:
        for part in ("mu", "h", "random h", "hidden"):
            found[part] = float(np.mean([v for k, v in found.items() if k in _probed(part)]))
    return found


def _measure(arm: str, name: str, seed: int, quick: bool) -> dict[str, float]:
    """Train one arm on one data set; the accuracies of its four kinds of features, and three diagnostics."""
    batch = ARMS[arm][2]
    rows, test_rows, steps = DATA[name]
    data = open_data(name)
    train, test = small(data, rows, 100 if quick else test_rows)
    method = fit(built(seed, lambda: _make(arm, data.info)), train, steps=10 if quick else steps, batch=batch, lr=1e-3,
                 seed=seed, weight_decay=0.0, betas=(0.9, 0.999), warmup=0.05)
    fresh = built(1000 + seed, lambda: _make("infonce", data.info)).decoder
    mu = method.encode
    kinds = {"mu": mu, "h": lambda b: method.decoder.hidden(mu(b), floats(b["image"])),
             "random h": lambda b: fresh.hidden(mu(b), floats(b["image"])),
             "hidden": lambda b: method.encoder.base.features(floats(b["image"]))}
    scores = {k: probes(encode, train, test, k=5) for k, encode in kinds.items() if batch == 128 or k == "mu"}
    found = {f"{k} {probe}": value for k, both in scores.items() for probe, value in both.items()}
    found["mu"] = (found["mu knn"] + found["mu ridge"]) / 2
    return found | _diagnostics(method, test)


def _make(arm: str, info: DataInfo) -> nn.Module:
    objective, tau, _ = ARMS[arm]
    encoder = MLP(info.image_size or 0, info.channels or 0, [WIDTH, WIDTH], mean=info.mean, std=info.std)
    if objective == "infonce":
        return InfoNCE(encoder, tau)
    options: dict[str, Any] = {"objective": objective, "latent": CODE, "tau": tau, "decoder_hidden": [WIDTH, WIDTH]}
    return CMIM(encoder, **options)


@torch.no_grad()
def _diagnostics(method: Any, test: Rows) -> dict[str, float]:
    z = F.normalize(extract(method.encode, test), dim=1)
    n = len(z)
    found = {"cosine": float((z.sum(0).square().sum() - n) / (n * (n - 1))),
             "contrast": float(-self_contrast(z[:CONTRASTED], tau=0.1).mean())}
    if isinstance(method, CMIM):
        nats = extract(lambda b: -method.log_px(method.encode(b), method.whole(b))[:, None], test)
        found["nats"] = float(nats.mean())
    return found


def _probed(part: str) -> set[str]:
    return {f"{name} {part} {probe}" for name in DATA for probe in ("knn", "ridge")}


def judge(values: Values) -> tuple[str, str]:
    parts, grounds = weigh(values)
    verdict = "confirmed" if all(parts) else "refuted" if any(grounds) else "open"
    contrast, rival, nats, swing, steady = _measured(values)
    knn, ridge = ([_points(_gain(values, probe, over)) for over in ("mu", "random h", "hidden")]
                  for probe in ("knn", "ridge"))
    held = ", ".join(str(i + 1) for i, part in enumerate(parts) if part) or "none"
    change = {arm: 100 * by.mean() for arm, by in swing.items()}
    return verdict, (
        f"Accuracy in points: cMIM minus MIM {_points(contrast)} at "
        f"{' and '.join(f'{100 * (ratio - 1):+.1f}%' for ratio in nats)} nats, minus InfoNCE {_points(rival)}; from B = 8 "
        f"to 512 cMIM changes by {change['cmim 0.1']:.1f}, MIM, which has no pairs, by {change['mim']:.1f}, InfoNCE by "
        f"{_points(steady)} more than cMIM; the decoder's hidden layer (k-NN, ridge) minus mu: {knn[0]}, "
        f"{ridge[0]}, minus an untrained decoder's: {knn[1]}, {ridge[1]}, minus the encoder's hidden layer: {knn[2]}, "
        f"{ridge[2]}. Parts that hold: {held}. The plain autoencoder has {100 * mean(values, 'ae', 'mu'):.1f}%, cMIM "
        f"{100 * mean(values, 'cmim 0.1', 'mu'):.1f}%.")


def weigh(values: Values) -> tuple[list[bool], list[bool]]:
    """Whether each of the four parts holds, and the grounds on which they fail clearly; never all of one and any other."""
    contrast, rival, nats, _, steady = _measured(values)
    gains = [_gain(values, probe, over) for probe in ("knn", "ridge") for over in ("mu", "random h")]
    parts = [contrast.low > 0 and max(abs(ratio - 1) for ratio in nats) < 0.02, rival.low > 0, steady.low > 0,
             all(g.low > 0 for g in gains)]
    grounds = [contrast.low <= 0 and contrast.high < 0.005, max(nats) > 1.02, rival.high < 0, steady.high < 0,
               any(g.high < 0 for g in gains)]
    return parts, grounds


def _measured(values: Values) -> tuple[Interval, Interval, list[float], dict[str, np.ndarray], Interval]:
    """cMIM minus MIM and minus InfoNCE, its nats as a ratio to MIM's per data set, the changes with B, and part 3."""
    contrast, rival = (paired(values, "cmim 0.1", arm, "mu") for arm in ("mim", "infonce"))
    nats = [mean(values, "cmim 0.1", f"{n} nats") / mean(values, "mim", f"{n} nats") for n in _places(values)]
    swing = {a: np.abs(column(values, f"{a}, B=512", "digits mu") - column(values, f"{a}, B=8", "digits mu"))
             for a in ("cmim 0.1", "mim", "infonce")}
    return contrast, rival, nats, swing, t_interval(swing["infonce"] - swing["cmim 0.1"])


def _places(values: Values) -> list[str]:
    """The data sets that were measured: a quick run leaves one out."""
    return [name for name in DATA if f"{name} nats" in values["mim"][min(values["mim"])]]


def _gain(values: Values, probe: str, over: str) -> Interval:
    """cMIM's h minus `over`, on one probe, over the data sets."""
    rows = [values["cmim 0.1"][s] for s in sorted(values["cmim 0.1"])]
    gains = [[r[f"{n} h {probe}"] - r[f"{n} {over} {probe}"] for n in _places(values)] for r in rows]
    return t_interval(np.mean(gains, axis=1))


def _points(x: Interval) -> str:
    return f"{100 * x.mean:+.1f} [{100 * x.low:+.1f}, {100 * x.high:+.1f}]"
