"""CoCa's claim (Yu et al. 2022, table 8): contrast and captioning in one model do what either does alone, on drawn scenes."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache, partial
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from notan.claims._composites import FACTORS, SIDE, Composites, caption, composites, words
from notan.claims._statistics import Values, mean, paired, standard_error
from notan.claims._train import built, fit
from notan.data import Rows
from notan.methods._progress import Progress
from notan.methods.coca import CoCa
from notan.nets.language import new_tokenizer
from notan.nets.pooler import Pooler
from notan.nets.text import TextTransformer
from notan.nets.vit import ViT
from notan.probes.captions import caption_scores
from notan.probes.retrieval import retrieval

CLAIM = {
    "sentence": "One model trained for contrast and captioning finds captions as well as one trained for contrast alone, answers "
                "questions about a picture as well as one trained for captioning alone and better than contrast, and costs no "
                "more than captioning.",
    "arms": ["Con", "Cap", "CoCa", "CoCa-parallel"],
    "baseline": "Con",
    "data": "scenes of emoji with a sentence each that names six factors (object, colour of the ground, count, place, size, "
            "other object), 64 x 64: 8,000 to train on and 2,000 to fit answers to, of Google's drawings, and 1,000 to test on, "
            "of Twitter's; a seed has its own scenes",
    "metric": "all on the held-out style of drawing: R@1 of finding the caption of a picture among 1,000 and the picture of a "
              "caption, the mean of both; answers: mean accuracy of the six factors, from what fuses picture and words; "
              "patches: the same from the picture encoder's tokens; CE: nats a token of the true captions; CIDEr-D of written "
              "captions; cost: time of a step over that of Cap's",
    "shown": ["R@1", "answers", "patches", "CE", "CIDEr-D", "cost"],
    "seeds": [0, 1, 2, 3, 4],
    "confirms": "in paired differences over seeds, (a) R@1 of CoCa is not below Con's by more than one standard error, (b) "
                "answers of CoCa are above Con's by more than two and not below Cap's by more than one, and (c) the mean cost of "
                "CoCa is at most 1.05",
    "refutes": "(a) R@1 of CoCa and of CoCa-parallel are below Con's by more than two standard errors, or (b) the mean of CoCa's "
               "answers is not above Con's",
    "protocol": "All arms: ViT of 3 blocks (width 64, patch 8), text decoder of 2 + 2 blocks, 16 queries, a joint space of 64, "
                "whole pictures, 600 steps of 64 rows, AdamW 2e-3, decay 0.05, 10% warm-up then cosine, equal first weights "
                "and batches in a seed. Con and Cap are CoCa with the other weight at 0; weights are 1 and 2 else. Answers: "
                "the frozen model reads each picture with one sentence, the same for all; a pooler with a query a factor and "
                "linear layers read the decoder's outputs, and of Con, which has no decoder, the vectors of picture and "
                "sentence side by side; 300 steps of 128, AdamW 3e-3. patches: the same pooler on the picture encoder's "
                "tokens, for all arms. cost: CPU time on one thread, medians of 15 steps in turn with those of Cap. Sizes were "
                "settled on seed 100, where CoCa learned every factor but the place.",
    "uses": ["_train.py", "_composites.py"], "methods": ["coca", "_contrast", "_pairs"],
    "minutes": 40,
}

Scenes = tuple[Composites, list[str]]                                   # and a sentence of each

TRAIN, FIT, TEST = range(8000), range(8000, 10_000), range(10_000, 11_000)
STEPS, BATCH, RATE = 600, 64, 2e-3
FITTED, ROWS, HEAD_RATE = 300, 128, 3e-3                                # of the answers
TURNS = 15                                                              # of timing
WIDTH, CONTEXT = 64, 24
ARMS: dict[str, dict[str, Any]] = {
    "Con": {"caption_weight": 0.0}, "Cap": {"contrast_weight": 0.0}, "CoCa": {}, "CoCa-parallel": {"pooler": "parallel"},
}
SENTENCE = "one large dog on the left beside one key on red ground"     # beside which pictures are read for answers


def run(arm: str, seed: int, quick: bool) -> dict[str, float]:
    train, fitted, test = ((scenes(seed, rows, artist)) for rows, artist in parts(quick))
    method = trained(arm, seed, train, quick)
    found = {"cost": cost(arm, seed, train, 2 if quick else TURNS)}
    if arm != "Cap":
        found["R@1"] = found_by_words(method, test)
    if arm != "Con":
        found |= written(method, test)
    for name, read in (("answers", beside if arm == "Con" else fused), ("patches", patches)):
        each = answered(method, read, fitted, test, seed, quick)
        found |= {name: float(np.mean(list(each.values())))} | {f"{name} {factor}": value for factor, value in each.items()}
    return found


# ---- scenes and models --------------------------------------------------------------------------------------------------

def parts(quick: bool) -> list[tuple[range, int]]:
    """Rows and artist of what is trained on, what answers are fitted to, and what is tested."""
    most = 64 if quick else 10**6
    return [(rows[:most], artist) for rows, artist in ((TRAIN, 0), (FIT, 0), (TEST, 1))]


@cache
def scenes(seed: int, rows: range, artist: int) -> Scenes:
    """Scenes and their sentences."""
    made = composites(seed, rows, artist=artist)
    return made, [caption(words(factors)) for factors in made.factors]


@cache
def tokenizer() -> Any:
    """One token a word: made from sentences that no seed has."""
    return new_tokenizer(scenes(2**32 - 1, range(1000), 0)[1], vocabulary=400, context=CONTEXT)


def model(arm: str, seed: int) -> CoCa:
    def make() -> nn.Module:
        pictures = ViT(SIDE, patch=8, dim=WIDTH, depth=3, heads=4)
        texts = TextTransformer(tokenizer(), dim=WIDTH, depth=2, heads=4, context=CONTEXT)
        return CoCa(pictures, texts, queries=16, decoder_depth=2, dim=64, crop=1.0, **ARMS[arm])

    return built(seed, make)


def trained(arm: str, seed: int, train: Scenes, quick: bool) -> CoCa:
    rows = Rows({"image": train[0].pictures, "text": train[1]})
    return fit(model(arm, seed), rows, steps=2 if quick else STEPS, batch=16 if quick else BATCH, lr=RATE, seed=seed)


def cost(arm: str, seed: int, train: Scenes, turns: int) -> float:
    """CPU time of a step of the arm over that of a step of Cap, taken in turn: medians."""
    batch = Rows({"image": train[0].pictures, "text": train[1]}).take(np.arange(min(BATCH, len(train[1]))))
    batch["key"] = batch["row"]
    methods = [model(name, seed) for name in (arm, "Cap")]

    def taken(method: CoCa) -> float:
        start = time.process_time()
        method.zero_grad(set_to_none=True)
        method.loss(batch, Progress())["loss"].backward()
        return time.process_time() - start

    times = [[taken(method) for method in methods] for _ in range(turns + 1)][1:]
    ours, theirs = zip(*times)
    return median(ours) / median(theirs)


# ---- what is measured ---------------------------------------------------------------------------------------------------

def found_by_words(method: CoCa, test: Scenes) -> float:
    """R@1, the mean of both directions."""
    v = in_parts(lambda x: method.encode({"image": x})["image"], test[0].pictures)
    texts = list(dict.fromkeys(test[1]))
    with torch.no_grad():
        t = method.encode({"text": texts})["text"]
    pairs = torch.tensor([(i, texts.index(text)) for i, text in enumerate(test[1])])
    return (retrieval(v, t, pairs)["r1"] + retrieval(t, v, pairs.flip(1))["r1"]) / 2


def written(method: CoCa, test: Scenes) -> dict[str, float]:
    said, nats, tokens = [], 0.0, 0
    for start in range(0, len(test[1]), 128):
        x = torch.from_numpy(test[0].pictures[start : start + 128]) / 255
        said += method.caption(x)
        nll, count = method.caption_nll(x, test[1][start : start + 128])
        nats, tokens = nats + float(nll.sum()), tokens + int(count.sum())
    found = caption_scores(said, nats, tokens, [[text] for text in test[1]])
    return {"exact": found["exact"], "CE": found["ce"], "CIDEr-D": found["cider"]}


def fused(method: CoCa, x: Tensor) -> Tensor:
    """The decoder's outputs for pictures uint8 (B, 3, S, S), each beside SENTENCE: (B, T, d)."""
    states = method.text_encoder.states(*method.text_encoder.tokens([SENTENCE]))
    return method.decoder(states.expand(len(x), -1, -1), method.seen(x / 255))


def beside(method: CoCa, x: Tensor) -> Tensor:
    """The vectors of pictures and of SENTENCE: (B, 1, 2 d)."""
    z = method.encode({"image": x, "text": [SENTENCE]})
    return torch.cat([z["image"], z["text"].expand(len(x), -1)], dim=1)[:, None]


def patches(method: CoCa, x: Tensor) -> Tensor:
    """The picture encoder's tokens: (B, 1 + N, D)."""
    return method.image_encoder(x / 255)


def answered(method: CoCa, read: Callable[[CoCa, Tensor], Tensor], fitted: Scenes, test: Scenes, seed: int,
             quick: bool) -> dict[str, float]:
    """Test accuracy for each factor, by a head on what is read of the pictures."""
    z, z_test = (in_parts(partial(read, method), part[0].pictures) for part in (fitted, test))
    y, y_test = (torch.from_numpy(part[0].factors) for part in (fitted, test))
    head = built(seed, partial(Answers, z.shape[2], [len(names) for names in FACTORS.values()]))
    return dict(zip(FACTORS, learned(head, z, y, z_test, y_test, 2 if quick else FITTED, seed).tolist()))


class Answers(nn.Module):
    """A query and a linear layer for each factor: (B, T, width) to logits of its answers."""

    def __init__(self, width: int, answers: list[int]) -> None:
        super().__init__()
        self.pool = Pooler(len(answers), WIDTH, 4, width)
        self.heads = nn.ModuleList([nn.Linear(WIDTH, n) for n in answers])

    def forward(self, z: Tensor) -> list[Tensor]:
        return [head(x) for head, x in zip(self.heads, self.pool(z).unbind(1))]


def learned(head: Answers, z: Tensor, y: Tensor, z_test: Tensor, y_test: Tensor, steps: int, seed: int) -> Tensor:
    """Test accuracy for each factor (Q,) after training by cross-entropy with AdamW, the rate falling as a half cosine."""
    drawn = np.random.default_rng(seed)
    optimiser = torch.optim.AdamW(head.parameters(), lr=HEAD_RATE, weight_decay=0.01)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        rows = torch.from_numpy(drawn.integers(len(z), size=min(ROWS, len(z))))
        optimiser.zero_grad(set_to_none=True)
        torch.stack([F.cross_entropy(z, right) for z, right in zip(head(z[rows]), y[rows].unbind(1))]).sum().backward()
        optimiser.step()
        falling.step()
    with torch.no_grad():
        guess = torch.stack([logits.argmax(1) for logits in head(z_test)], dim=1)
    return (guess == y_test).double().mean(0)


@torch.no_grad()
def in_parts(read: Callable[[Tensor], Tensor], pictures: np.ndarray) -> Tensor:
    """`read` of pictures uint8 (N, 3, S, S), some at a time."""
    return torch.cat([read(torch.from_numpy(pictures[i : i + 250])) for i in range(0, len(pictures), 250)])


def judge(values: Values) -> tuple[str, str]:
    def gap(metric: str, arm: str = "CoCa", other: str = "Con") -> tuple[float, float]:
        """A paired difference in its standard errors, and as it is."""
        by = paired(values, arm, other, metric).mean
        return by / max(standard_error(values, arm, other, metric), 1e-12), by

    price = mean(values, "CoCa", "cost")
    sentence = (
        f"CoCa minus Con: R@1 {paired(values, 'CoCa', 'Con', 'R@1')}, answers {paired(values, 'CoCa', 'Con', 'answers')}; minus "
        f"Cap: answers {paired(values, 'CoCa', 'Cap', 'answers')}, nats of captions {paired(values, 'CoCa', 'Cap', 'CE')}; a "
        f"step costs {price:.2f} of Cap's (Con's {mean(values, 'Con', 'cost'):.2f}). Parallel minus cascade: R@1 "
        f"{gap('R@1', 'CoCa-parallel', 'CoCa')[1]:+.3f}, answers {gap('answers', 'CoCa-parallel', 'CoCa')[1]:+.3f}. Answers from "
        f"the picture encoder's tokens: Con {mean(values, 'Con', 'patches'):.3f}, Cap {mean(values, 'Cap', 'patches'):.3f}, CoCa "
        f"{mean(values, 'CoCa', 'patches'):.3f}.")
    worse = all(gap("R@1", arm)[0] < -2 for arm in ("CoCa", "CoCa-parallel"))
    if worse or gap("answers")[1] <= 0:
        return "refuted", sentence
    confirmed = gap("R@1")[0] >= -1 and gap("answers")[0] > 2 and gap("answers", other="Cap")[0] >= -1 and price <= 1.05
    return ("confirmed" if confirmed else "open"), sentence
