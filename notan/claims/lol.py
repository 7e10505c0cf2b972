"""LOL's claim: the contrast of a lower layer, and an instruction to be truthful, add to that of the last layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import lru_cache, partial
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from notan.claims._answers import Reader, of_answers, streams
from notan.claims._facts import TRUTH, VALUES, Question, World, make_world, questions, text, untruths, vocabulary
from notan.claims._statistics import Interval, Values, column, mean, paired, t_interval
from notan.claims._train import built
from notan.claims._words import BATCH, fit_words, language_model, rows, words_tokenizer
from notan.probes.answers import factor_official, multiple_choice
from notan.strategies._reference import Reference
from notan.strategies.contrastive_decoding import ContrastiveDecoding
from notan.strategies.dola import DoLa
from notan.strategies.icd import ICD
from notan.strategies.lol import LOL

CLAIM = {
    "sentence": "Set against a copy that was made to hallucinate, at a lower layer too and under an instruction to be truthful "
                "(LOL), a model prefers true answers more often than with the last layer's contrast alone (ICD).",
    "arms": ["E", "E, instructed", "DoLa", "CD", "ICD", "LOL", "LOL, shuffled", "ICD, c = 1", "ICD, instructed"],
    "baseline": "ICD",
    "strategies": ["lol", "icd", "dola", "contrastive_decoding"],
    "methods": [],
    "uses": ["_facts.py", "_words.py", "_answers.py"],
    "shown": ["MC1", "MC2", "MC3", "MC1, renormalised", "MC2, renormalised", "MC3, renormalised", "MC1 of myths", "FACTOR"],
    "data": "made-up people with facts and myths, a new world for each seed",
    "metric": "MC1, MC2 and MC3 of TruthfulQA, FACTOR's accuracy",
    "seeds": [0, 1, 2, 3, 4],
    "confirms": "ICD - E on MC1 has a paired 95% interval above 0, LOL - ICD has one on at least two of MC1, MC2 and MC3, scores "
                "as the papers take them (not renormalised), and LOL - its control with shuffled layers on the mean of the three",
    "refutes": "LOL - ICD has no interval above 0 on any of the three, renormalised or not, or only on MC2 of scores that "
               "are not renormalised",
    "protocol": "Each seed has a world of 600 made-up people with 4 attributes of 12 values. A text of 13,000 statements in"
                " six wordings says every fact 3 to 5 times; half of the facts have one myth, said 2 to 4 times. A quarter "
                "of the true statements follow the word truthfully and no myth does; half of the myths follow the word "
                "supposedly: so the instruction means something to the models, and a myth can be known for one. Models are "
                "Llamas with a token for a word, trained by AdamW (1e-3, embeddings 5e-3, half cosine, batches of 32, no "
                "decay) with the loss on what follows the question or is the value: E of 6 layers of width 128, and a small"
                " one of 2 layers of width 64, 4 epochs on the text each; A is E after 150 steps at 3e-4, all weights, on "
                "questions about the first 300 people with wrong answers, the myth where there is one. Questions are about "
                "the other 300: 1 or 2 true answers and 4 false ones, the myth among them, in two wordings. Settings are "
                "chosen on 400 questions about 100 people, by the mean of MC1, MC2 and MC3, once for the scores as they are"
                " and once for renormalised ones, and reported on 800 about 200 others. Every tuned arm has 12 settings: "
                "LOL and its control omega and the layer m at b = c = 1, ICD c, contrastive decoding c and tau, DoLa (low) "
                "c and the final norm. No head for MC; FACTOR within the head of 0.1, renormalised, mean over tokens. LOL "
                "reads E behind the word truthfully and A without it. Control: the layer of A is another of the three lower"
                " ones than that of E, drawn anew for every token. Untuned, to read the others by: ICD at c = 1, alone and "
                "with E instructed. LOL's formula is reconstructed from its abstracts; models a thousand times smaller than"
                " the paper's know facts by rote and may not have lower layers that differ in what the paper means.",
    "minutes": 30,
}

METRICS, RENORMALISED = ("MC1", "MC2", "MC3"), ", renormalised"
DEPTH, LOWER = 6, (1, 2, 3)
STRENGTHS = (0.1, 0.25, 0.5, 1.0)
EPOCHS, RATE, INDUCED, INDUCED_RATE = 4, 1e-3, 150, 3e-4


class Shuffled:
    """LOL whose lower contrast sets layer m of the model against *another* lower layer of its copy, drawn for every token."""

    def __init__(self, *, m: int, omega: float, beta: float = 0.1) -> None:
        self.m, self.lol = m, LOL(omega=omega, lower=m / DEPTH, beta=beta, truth=TRUTH)

    def layers(self, depth: int, tied: bool) -> tuple[int, ...]:
        return LOWER

    def combine(self, z: Sequence[Tensor], t: int) -> Tensor:
        e, a, *early = z
        ours, others = early[LOWER.index(self.m)], [early[len(LOWER) + i] for i, m in enumerate(LOWER) if m != self.m]
        drawn = torch.randint(2, (len(e), 1), generator=torch.Generator().manual_seed(self.m))
        return self.lol.combine([e, a, ours, torch.where(drawn == 0, others[0], others[1])], t)


def _lol(m: int, omega: float, beta: float) -> LOL:
    return LOL(omega=omega, lower=m / DEPTH, beta=beta, truth=TRUTH)


class Arm(NamedTuple):
    """A strategy made of `beta` and settings, the grid its settings are chosen from, and its streams: (model, what it reads
    before the prompt), the main one first."""

    make: Callable[..., Any]
    streams: tuple[tuple[str, str], ...]
    grid: tuple[dict[str, float], ...] = ({},)


FUSED = tuple({"m": m, "omega": w} for m, w in product(LOWER, STRENGTHS))
ARMS = {
    "E": Arm(Reference, (("E", ""),)),
    "E, instructed": Arm(Reference, (("E", TRUTH),)),
    "DoLa": Arm(DoLa, (("E", ""),), tuple({"c": c, "norm": n} for c, n in product((0.1, 0.25, 0.5, 0.75, 1.0, 1.5), (0, 1)))),
    "CD": Arm(ContrastiveDecoding, (("E", ""), ("small", "")),
              tuple({"c": c, "tau": tau} for c, tau in product(STRENGTHS, (0.5, 1.0, 2.0)))),
    "ICD": Arm(ICD, (("E", ""), ("A", "")),
               tuple({"c": c} for c in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.25, 1.5))),
    "LOL": Arm(_lol, (("E", TRUTH), ("A", "")), FUSED),
    "LOL, shuffled": Arm(Shuffled, (("E", TRUTH), ("A", "")), FUSED),
    "ICD, c = 1": Arm(ICD, (("E", ""), ("A", "")), ({"c": 1.0},)),
    "ICD, instructed": Arm(ICD, (("E", TRUTH), ("A", "")), ({"c": 1.0},)),
}


def run(arm: str, seed: int, quick: bool) -> dict[str, float]:
    """All measures of one arm, on the questions of the test, with settings that were chosen on those of the validation."""
    study, chosen = studied(seed, quick), ARMS[arm]
    tried = [(s, choices(study, study.validation, chosen, s)) for s in chosen.grid]
    found: dict[str, float] = {}
    for way in ("", RENORMALISED):
        settings = max(tried, key=lambda pair: sum(pair[1][m + way] for m in METRICS))[0]
        scores = choices(study, study.test, chosen, settings)
        found |= {k: v for k, v in scores.items() if k.endswith(RENORMALISED) == bool(way)}
        found |= {k + way: float(v) for k, v in settings.items()}
    found["FACTOR"] = factor(study, study.test, chosen, settings)
    return found | (spreads(study) if arm == "LOL" else {})


def judge(values: Values) -> tuple[str, str]:
    parent = paired(values, "ICD", "E", "MC1")
    gains, again = ({m: paired(values, "LOL", "ICD", m + way) for m in METRICS} for way in ("", RENORMALISED))
    control = _mean_gain(values, "LOL", "LOL, shuffled")
    sizes = ", ".join(f"{mean(values, 'LOL', f'spread m={m}'):.1f} at m = {m}" for m in LOWER)
    sentence = (
        f"LOL - ICD: {_said(gains)}; renormalised {_said(again)}. ICD - E on MC1: {parent}. On the mean of the three, LOL - its "
        f"shuffled control {control}; LOL - ICD at its own strength, c = 1, {_mean_gain(values, 'LOL', 'ICD, c = 1')}, and the "
        f"instruction alone {_mean_gain(values, 'ICD, instructed', 'ICD, c = 1')}; LOL - E {_mean_gain(values, 'LOL', 'E')}. "
        f"The lower contrast's deviation is that of the last, times {sizes}. Chosen: {_settings(values)}."
    )
    if parent.low <= 0:
        sentence += (" ICD itself gains nothing over E here, so this world cannot show what LOL would add to a contrast that "
                     "helps.")
    clear = [m for m in METRICS if gains[m].low > 0]
    if parent.low > 0 and len(clear) >= 2 and control.low > 0:
        return "confirmed", sentence
    return ("open" if {*clear} - {"MC2"} or any(g.low > 0 for g in again.values()) else "refuted"), sentence


def _mean_gain(values: Values, arm: str, other: str) -> Interval:
    """The gain on the mean of MC1, MC2 and MC3, scores as they are."""
    return t_interval(sum(column(values, arm, m) - column(values, other, m) for m in METRICS) / len(METRICS))


def _said(gains: dict[str, Interval]) -> str:
    return ", ".join(f"{m} {gain}" for m, gain in gains.items())


def _settings(values: Values) -> str:
    """What each tuned arm chose for scores as they are, seed by seed."""
    found = {arm: [" ".join(f"{k}={values[arm][s][k]:g}" for k in ARMS[arm].grid[0]) for s in sorted(values[arm])]
             for arm in values if len(ARMS[arm].grid) > 1}
    return "; ".join(f"{arm} {', '.join(rows)}" for arm, rows in found.items())


class Sheet(NamedTuple):
    """Questions with what the models say before every token of their answers, and of FACTOR's endings."""

    questions: list[Question]
    answers: Reader
    endings: Reader


class Study(NamedTuple):
    """What the arms of a seed share."""

    models: dict[str, Any]
    validation: Sheet
    test: Sheet


def choices(study: Study, sheet: Sheet, arm: Arm, settings: dict[str, float]) -> dict[str, float]:
    """MC1, MC2 and MC3, and MC1 of the questions that a myth competes in, of the scores as they are and renormalised; no
    head, as the papers score them."""
    s = combined(study, sheet.answers, arm, settings, 0.0)
    found: dict[str, float] = {}
    for way in ("", RENORMALISED):
        totals = iter([sum(tokens) for tokens in of_answers(s, sheet.answers, bool(way))])
        rows = [multiple_choice([next(totals) for _ in q.true], [next(totals) for _ in q.false]) for q in sheet.questions]
        myths = [row["MC1"] for row, q in zip(rows, sheet.questions) if q.has_myth]
        found |= {m + way: sum(row[m] for row in rows) / len(rows) for m in METRICS}
        found[f"MC1 of myths{way}"] = sum(myths) / len(myths)
    return found


def factor(study: Study, sheet: Sheet, arm: Arm, settings: dict[str, float]) -> float:
    """Share of statements whose true ending has the highest mean score; renormalised, within the head of beta = 0.1."""
    found = iter(of_answers(combined(study, sheet.endings, arm, settings, 0.1), sheet.endings, True))
    right = [factor_official(next(found), [next(found) for _ in q.endings[1:]]) for q in sheet.questions]
    return sum(right) / len(right)


@torch.no_grad()
def combined(study: Study, reader: Reader, arm: Arm, settings: dict[str, float], beta: float) -> Tensor:
    """The arm's scores (n, V) before every token of the reader's answers."""
    strategy = arm.make(beta=beta, **settings)
    return strategy.combine(streams(strategy, reader, [(study.models[name], system) for name, system in arm.streams]), 0)


@torch.no_grad()
def spreads(study: Study) -> dict[str, float]:
    """std(F_m) / std(F_N) over answers' tokens and the vocabulary: how large a lower layer's contrast is beside the last's."""
    reader, (e, a) = study.test.answers, (study.models["E"], study.models["A"])
    last = (reader.says(e, TRUTH) - reader.says(a, "")).std()
    return {f"spread m={m}": float((reader.says(e, TRUTH, m) - reader.says(a, "", m)).std() / last) for m in LOWER}


@lru_cache(maxsize=1)
def studied(seed: int, quick: bool) -> Study:
    """World, models and questions of a seed; the arms of one seed run one after another."""
    world = make_world(seed, 24 if quick else 600)
    tokenizer = words_tokenizer(vocabulary(world.people))
    first, third = world.induced, world.induced // 3
    validation, test = questions(world, first, third), questions(world, first + third, 2 * third)
    return Study(trained(world, tokenizer, quick), sheet(tokenizer, validation), sheet(tokenizer, test))


def sheet(tokenizer: Any, asked: list[Question]) -> Sheet:
    answers = Reader(tokenizer, [(q.prompt, a) for q in asked for a in (*q.true, *q.false)])
    return Sheet(asked, answers, Reader(tokenizer, [(q.statement, a) for q in asked for a in q.endings]))


def trained(world: World, tokenizer: Any, quick: bool) -> dict[str, Any]:
    """E and a small model that have read the text, and A, a copy of E that has learned wrong answers."""
    starts = ["?", *(v for names in VALUES for v in names)]
    said, wrong = (rows(tokenizer, found, starts) for found in (text(world), untruths(world)))
    steps = len(said[0]) // BATCH * (1 if quick else EPOCHS)
    large, small = (built(world.seed, partial(language_model, len(tokenizer), *size)) for size in ((DEPTH, 128), (2, 64)))
    for model in (large, small):
        fit_words(model, said, steps=steps, lr=RATE, seed=world.seed)
    amateur = fit_words(deepcopy(large), wrong, steps=5 if quick else INDUCED, lr=INDUCED_RATE, seed=world.seed)
    return {"E": large, "small": small, "A": amateur}
