"""The contrastive gap's claim (Fahim et al. 2024): it needs no second modality, and closing it helps."""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from notan.claims._composites import FACTORS, caption, composites, words
from notan.claims._statistics import Values, column, mean, paired
from notan.claims._train import built, fit
from notan.data import DataInfo, Rows
from notan.inspectors.gap import separability
from notan.losses.geometry import alignment, uniformity
from notan.methods._contrast import both_ways
from notan.methods._pairs import whole
from notan.methods._progress import Progress
from notan.methods.contrastive_gap import ContrastiveGap
from notan.nets.build import build_encoder
from notan.nets.dual import head
from notan.nets.language import new_tokenizer
from notan.nets.text import TextTransformer
from notan.probes.features import extract
from notan.probes.retrieval import retrieval
from notan.probes.zero_shot import zero_shot

CLAIM = {
    "sentence": "A contrast of two encoders opens a gap between them, even of two encoders of the same pictures whose outputs "
                "were aligned before; adding uniformity and alignment to CLIP's loss closes it, and that helps zero-shot "
                "classification or arithmetic of pictures and words.",
    "arms": ["CLIP 32", "CUA 32", "CUAXU 32", "CLIP 128", "CLIP 128 shifted", "CUA 128", "CUAXU 128", "twins 128"],
    "baseline": "CLIP 128",
    "data": "pictures made of emoji with six known factors and a sentence that names them all; 8,000 to train on, 1,000 for "
            "test, drawn apart from a seed of their own, the same for all arms",
    "metric": "of test pairs: distance of the means of both sides, separability (accuracy of a logistic regression that tells "
              "the sides apart, on a fifth of the pairs), R@1 both ways; classes: zero-shot accuracy, mean over object, colour, "
              "count, place and size, a class being the mean direction of 32 sentences that have it; arithmetic: picture + (its "
              "sentence with another object or colour) - (its sentence): the share of nearest other pictures that have the new "
              "value and keep the other one of object and colour",
    "shown": ["distance", "separability", "R@1 to text", "R@1 to picture", "classes", "arithmetic"],
    "seeds": [0, 1, 2, 3, 4],
    "confirms": "in at least 4 of 5 seeds the separability of CLIP 128 and of the twins is at least .95 and that of CUA 128 and "
                "of CUAXU 128 at most .85; and each of these two is above CLIP 128 in classes or in arithmetic, the paired 95% "
                "interval above 0",
    "refutes": "neither CUA 128 nor CUAXU 128 is above CLIP 128 in classes or in arithmetic by that rule; or CLIP 128 shifted, "
               "whose sides have had their means subtracted, comes below a quarter of CLIP 128's distance without being above "
               "it in either",
    "protocol": "All arms: a convnet 16-32-64-128 on 64 px, a text transformer of 2 layers of width 96, heads without a bias to "
                "32 or 128 numbers, tau .01 fixed, 600 steps of 128 pairs, AdamW at 1e-3 with decay 0.1 (betas .9, .99), 10% "
                "warm-up then cosine, no augmentation, equal first weights in a seed. CUA: + uniformity of each side + "
                "alignment; CUAXU: + uniformity across, all weights 1. Shifted: CLIP 128 with the mean of each side's unit "
                "vectors over 2,000 training pairs subtracted, then brought to length 1 again. Twins: a second convnet with "
                "other first weights in the text transformer's place, on the same pictures; its output is turned at the start "
                "by the orthogonal matrix that aligns 2,000 training pictures best, which stays in place. 'at start' is before "
                "the first step. The paper fine-tunes a released CLIP at a constant 1e-6; these start from nothing. A pilot on "
                "seed 100 checked that everything runs (CUAXU 128 kept a separability of .99 there); nothing was changed after.",
    "methods": ["contrastive_gap", "_pairs", "_contrast"], "uses": ["_composites.py", "_train.py"],
    "minutes": 45,
}

TERMS: dict[str, dict[str, float]] = {"CLIP": {"uniformity": 0.0, "align": 0.0, "cross": 0.0}, "CUA": {"cross": 0.0}, "CUAXU": {}}
ENCODER = {"name": "convnet", "widths": [16, 32, 64, 128], "strides": [2, 2, 2, 2]}
STEPS, BATCH, LR, TRAIN, TEST, HELD = 600, 128, 1e-3, 8000, 1000, 2000
NAMED = ("object", "colour", "count", "place", "size")


class Space(NamedTuple):
    """Unit vectors float64 of test pictures and their sentences (or the twins' other side), and what reads further sentences."""

    x: Tensor
    y: Tensor
    read: Any


class Twins(nn.Module):
    """Two encoders of the same pictures, the second turned by a fixed orthogonal matrix."""

    def __init__(self, one: Any, other: Any, dim: int) -> None:
        super().__init__()
        self.encoders, self.heads = nn.ModuleList([one, other]), nn.ModuleList([head(one.dim, dim), head(other.dim, dim)])
        self.register_buffer("turn", torch.eye(dim))

    def encode(self, batch: dict) -> Tensor:                            # (B, 2 d): both sides
        x = whole(batch, self.encoders[0].image_size)                   # type: ignore[arg-type]
        a, b = (to(encoder.features(x)) for encoder, to in zip(self.encoders, self.heads))      # type: ignore[operator]
        return torch.cat([F.normalize(a, dim=1), F.normalize(b, dim=1) @ self.turn.T], dim=1)   # type: ignore[operator]

    def loss(self, batch: dict, progress: Progress) -> dict[str, Tensor]:
        return {"loss": both_ways(*self.encode(batch).chunk(2, dim=1), tau=0.01)}


def run(arm: str, seed: int, quick: bool) -> dict[str, float]:
    loss, dim = arm.split()[0], int(arm.split()[1])
    if loss == "twins":
        return of_twins(seed, dim, quick)
    method = trained(loss, dim, seed, quick)
    shift = arm.endswith("shifted")
    space = spaces(method, pictures(quick)[1], means(method, quick) if shift else None)
    return gap(space) | use(space, quick)


@lru_cache(maxsize=1)
def trained(loss: str, dim: int, seed: int, quick: bool) -> ContrastiveGap:
    (rows, _), info, tokenizer = pictures(quick)[0], about(quick), sentences(quick)

    def made() -> ContrastiveGap:
        text = TextTransformer(tokenizer, dim=96, depth=2, heads=4, context=32)
        return ContrastiveGap(build_encoder(ENCODER, info), text, dim=dim, crop=1.0, **TERMS[loss])

    return fitted(built(seed, made), rows, seed, quick)


def fitted(method: Any, rows: Rows, seed: int, quick: bool) -> Any:
    return fit(method, rows, steps=2 if quick else STEPS, batch=32 if quick else BATCH, lr=LR, weight_decay=0.1,
               betas=(0.9, 0.99), seed=seed)


def of_twins(seed: int, dim: int, quick: bool) -> dict[str, float]:
    (rows, _), (test, _), info = *pictures(quick), about(quick)
    twins = built(seed, lambda: Twins(build_encoder(ENCODER, info), build_encoder(ENCODER, info), dim)).eval()
    a, b = extract(twins.encode, rows, np.arange(min(HELD, len(rows)))).double().chunk(2, dim=1)
    u, _, v = torch.linalg.svd(a.T @ b)
    twins.turn.copy_(u @ v)                                             # argmin over rotations of |a - b R^T|

    def measured() -> dict[str, float]:
        x, y = extract(twins.encode, test).double().chunk(2, dim=1)
        return gap(Space(x, y, None))

    before = measured()
    fitted(twins, rows, seed, quick)
    return measured() | {f"{name} at start": before[name] for name in ("distance", "separability", "matched")}


def spaces(method: Any, test: tuple[Rows, np.ndarray], shift: tuple[Tensor, Tensor] | None) -> Space:
    """Both sides of the test pairs, less the means where there are any."""
    def put(z: Tensor, side: int) -> Tensor:
        z = F.normalize(z.double(), dim=1)
        return z if shift is None else F.normalize(z - shift[side], dim=1)

    @torch.no_grad()
    def read(texts: list[str]) -> Tensor:
        return torch.cat([put(method.encode({"text": texts[i : i + 512]})["text"], 1) for i in range(0, len(texts), 512)])

    rows, _ = test
    x = put(extract(lambda batch: method.encode({"image": batch["image"]})["image"], rows), 0)
    return Space(x, read(rows.stores["text"]), read)


def means(method: Any, quick: bool) -> tuple[Tensor, Tensor]:
    """The mean unit vector of each side over training pairs."""
    rows = pictures(quick)[0][0].select(np.arange(40 if quick else HELD))
    z = extract(lambda batch: torch.cat([F.normalize(v, dim=1) for v in method.encode(batch).values()], dim=1), rows)
    a, b = z.double().chunk(2, dim=1)
    return a.mean(0), b.mean(0)


@torch.no_grad()
def gap(space: Space) -> dict[str, float]:
    x, y, _ = space
    held = np.zeros(len(x), dtype=bool)
    held[np.random.default_rng(0).permutation(len(x))[: len(x) // 5]] = True
    pairs = torch.arange(len(x))[:, None].expand(-1, 2)
    there, back = retrieval(x, y, pairs), retrieval(y, x, pairs)
    return {"distance": float((x.mean(0) - y.mean(0)).norm()), "separability": separability(x, y, held),
            "matched": float((x * y).sum(1).mean()), "uniformity of pictures": float(uniformity(x)),
            "uniformity of texts": float(uniformity(y)), "alignment": float(alignment(x, y).mean()),
            "R@1 to text": there["r1"], "R@1 to picture": back["r1"]}


def use(space: Space, quick: bool) -> dict[str, float]:
    """Zero-shot accuracy of each named factor and their mean, and arithmetic."""
    factors, found = pictures(quick)[1][1], {}
    for name in NAMED:
        every = [caption({**said, name: value}) for value in FACTORS[name] for said in others()]
        classes = F.normalize(space.read(every).unflatten(0, (len(FACTORS[name]), -1)).mean(1), dim=1)
        labels = torch.from_numpy(factors[:, [*FACTORS].index(name)])
        found[name] = zero_shot(space.x, labels, classes)["accuracy"]
    return found | {"classes": float(np.mean([found[name] for name in NAMED])), "arithmetic": arithmetic(space, factors)}


@cache
def others() -> list[dict[str, str]]:
    """32 pictures' words, to put a class's name into."""
    return [words(factors) for factors in composites(3, range(32)).factors]


def arithmetic(space: Space, factors: np.ndarray) -> float:
    """The share of pictures whose nearest other picture is as they are with another object or colour; see CLAIM's metric."""
    rng, old, new, wanted = np.random.default_rng(0), [], [], factors[:, :2].copy()
    for row, factor in zip(wanted, factors):
        which = int(rng.integers(2))                                    # object or colour
        name = ("object", "colour")[which]
        row[which] = (row[which] + rng.integers(1, len(FACTORS[name]))) % len(FACTORS[name])
        said = words(factor)
        old.append(caption(said))
        new.append(caption({**said, name: FACTORS[name][row[which]]}))
    query = space.x + space.read(new) - space.read(old)
    nearest = (F.normalize(query, dim=1) @ space.x.T).fill_diagonal_(-torch.inf).argmax(1).numpy()
    return float((factors[nearest, :2] == wanted).all(1).mean())


def judge(values: Values) -> tuple[str, str]:
    clip, added, shifted = "CLIP 128", ("CUA 128", "CUAXU 128"), "CLIP 128 shifted"
    wide = [np.minimum(column(values, clip, "separability"), column(values, "twins 128", "separability")) >= 0.95]
    narrow = [column(values, arm, "separability") <= 0.85 for arm in added]
    shaped = int(np.all([*wide, *narrow], axis=0).sum()) >= len(values[clip]) - 1
    gains = {(arm, m): paired(values, arm, clip, m) for arm in (*added, shifted) for m in ("classes", "arithmetic")}
    gained = {arm: any(gains[arm, m].low > 0 for m in ("classes", "arithmetic")) for arm in (*added, shifted)}
    closed = mean(values, shifted, "distance") < mean(values, clip, "distance") / 4
    sentence = (
        "Over CLIP 128 in classes and arithmetic: "
        + ", ".join(f"{arm} {gains[arm, 'classes']} and {gains[arm, 'arithmetic']}" for arm in (*added, shifted))
        + f", though subtracting the means brings their distance from {mean(values, clip, 'distance'):.2f} to "
        + f"{mean(values, shifted, 'distance'):.2f}. Separability: "
        + ", ".join(f"{arm} {mean(values, arm, 'separability'):.2f}" for arm in values)
        + f" (twins at start {mean(values, 'twins 128', 'separability at start'):.2f}). Distance of means: "
        + ", ".join(f"{arm} {mean(values, arm, 'distance'):.2f}" for arm in values)
        + ". Over CLIP 32 in classes: " + ", ".join(f"{arm} {paired(values, arm, 'CLIP 32', 'classes')}" for arm in
                                                    ("CUA 32", "CUAXU 32"))
        + ". R@1 to picture over CLIP 128: " + ", ".join(f"{arm} {paired(values, arm, clip, 'R@1 to picture')}" for arm in added)
        + ".")
    if not any(gained[arm] for arm in added) or (closed and not gained[shifted]):
        return "refuted", sentence
    return ("confirmed" if shaped and all(gained[arm] for arm in added) else "open"), sentence


# ----------------------------------------------------------------------------------------------------------------- the data

@cache
def pictures(quick: bool) -> tuple[tuple[Rows, np.ndarray], tuple[Rows, np.ndarray]]:
    """Rows with `image` and `text`, and their factors, to train on and for test."""
    found = []
    for seed, count in ((1, 200 if quick else TRAIN), (2, 60 if quick else TEST)):
        made = composites(seed, range(count))
        found.append((Rows({"image": made.pictures, "text": [caption(words(f)) for f in made.factors]}), made.factors))
    return found[0], found[1]


@cache
def about(quick: bool) -> DataInfo:
    (rows, _), _ = pictures(quick)
    image = rows.take(np.arange(min(500, len(rows))))["image"].double() / 255
    return DataInfo("composites", len(rows), ("image", "text"), image.shape[2], 3, tuple(image.mean((0, 2, 3)).tolist()),
                    tuple(image.std((0, 2, 3)).tolist()))


@cache
def sentences(quick: bool) -> Any:
    return new_tokenizer(pictures(quick)[0][0].stores["text"], vocabulary=400, context=32)
