"""What a benchmark asks of a strategy, item by item, and what the answers come to: yes or no, given answers, open text.

Where the answer is one token nothing is drawn: its whole distribution is there, so accuracy under sampling is an expectation
without noise and needs no seeds. `best` figures are of the likeliest answer, `drawn` ones of an answer drawn at
temperature 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from notan.errors import NotanError
from notan.probes import answers, text
from notan.probes.benchmarks import Choice, YesNo
from notan.runs.decode import decode, first_scores
from notan.runs.prompts import given_with
from notan.runs.reader import Readers, words_of
from notan.runs.score import answer_scores

Row = dict[str, Any]                                                    # what is kept of one item: JSON


@dataclass(frozen=True)
class Settings:
    """How a benchmark is run: `decode`'s settings for open text, and a judge (model, tokenizer) that wrote none of it."""

    seed: int = 0
    chat: bool | None = None
    max_new_tokens: int = 64
    judge: tuple[Any, Any] | None = None


@dataclass(frozen=True)
class Task:
    """A kind of benchmark.

    measure: strategy, readers, a few items, settings -> a row for each item. summarise: all rows -> named figures. main:
    which number of a row is compared with other strategies', item by item.
    """

    title: str
    main: str
    measure: Callable[[Any, Readers, Sequence[Any], Settings], list[Row]]
    summarise: Callable[[Sequence[Row], Settings], dict[str, float]]


# --------------------------------------------------------------------------------------------------------------- yes or no

def sides(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The tokens that say yes and those that say no: the words in usual spellings that are one token, spaced or not.

    Raises `NotanError` for a tokenizer that has none.
    """
    found = []
    for word in ("yes", "no"):
        spelled = [space + w for w in (word, word.capitalize(), word.upper()) for space in ("", " ")]
        ids = [tokenizer(s, add_special_tokens=False)["input_ids"] for s in spelled]
        found.append(sorted({i[0] for i in ids if len(i) == 1 and tokenizer.decode(i).strip().lower() == word}))
    if not all(found):
        raise NotanError("the model has no token for yes or none for no", "a vocabulary with both", "another model")
    return found[0], found[1]


def say_yes(s: Tensor, yes: Sequence[int], no: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Scores (B, V) of the first token to the probability of yes among yes and no (B,), and of both together (B,).

    Where both are ruled out the first is 1/2 and the second 0.
    """
    p = s.float().softmax(1)
    y, n = p[:, list(yes)].sum(1), p[:, list(no)].sum(1)
    return torch.where(y + n > 0, y / (y + n).clamp(min=1e-30), torch.full_like(y, 0.5)), y + n


def ask_yes_no(strategy: Any, readers: Readers, items: Sequence[YesNo], asked: Settings) -> list[Row]:
    """The probability of yes under the question, and under its leading form where there is one."""
    yes, no = sides(words_of(readers["main"][1]))

    def said(questions: list[str]) -> tuple[Tensor, Tensor]:
        given = given_with(questions, [i.image or None for i in items], asked.seed)
        return say_yes(first_scores(strategy, readers, given, asked.chat), yes, no)

    rows: list[Row] = [{"truth": i.answer, "image": i.image, "task": i.task, "yes": float(q), "said": float(m)}
                       for i, q, m in zip(items, *said([i.query for i in items]))]
    if items[0].leading:
        led = said([i.leading for i in items])
        rows = [r | {"led": float(q), "said_led": float(m)} for r, q, m in zip(rows, *led)]
    return [r | {"drawn": _right(r["led"] if "led" in r else r["yes"], r["truth"])} for r in rows]


def _right(q: float, truth: bool) -> float:
    """Probability of the true answer when yes has q."""
    return q if truth else 1 - q


def sum_yes_no(rows: Sequence[Row], asked: Settings) -> dict[str, float]:
    """Accuracy and the share of yes, drawn and best, F1 of the best; with leading questions, what the hint changes."""
    led = "led" in rows[0]
    truth, q = [r["truth"] for r in rows], [r["led" if led else "yes"] for r in rows]
    best, n = answers.yes_no([x > 0.5 for x in q], truth), len(rows)
    found = {"accuracy, best": best["accuracy"], "accuracy, drawn": sum(map(_right, q, truth)) / n, "F1, best": best["f1"],
             "yes, best": best["yes_ratio"], "yes, drawn": sum(q) / n,
             "says yes or no": sum(r["said_led" if led else "said"] for r in rows) / n}
    if led:
        hint = answers.sycophancy([r["yes"] > 0.5 for r in rows], [x > 0.5 for x in q], truth)
        found |= {"accuracy, neutral": sum((r["yes"] > 0.5) == r["truth"] for r in rows) / len(rows), **hint}
    return found


def sum_mme(rows: Sequence[Row], asked: Settings) -> dict[str, float]:
    """MME's score of each task, 0 to 200, their sum, and the figures of yes and no over all questions."""
    found = {}
    for task in dict.fromkeys(r["task"] for r in rows):
        some = [r for r in rows if r["task"] == task]
        found[task] = answers.mme([r["yes"] > 0.5 for r in some], [r["truth"] for r in some], [r["image"] for r in some])
    return {**found, "total": sum(found.values()), **sum_yes_no(rows, asked)}


# ------------------------------------------------------------------------------------------------------------ given answers

def score_choices(strategy: Any, readers: Readers, items: Sequence[Choice], asked: Settings) -> list[Row]:
    """TruthfulQA: scored as the released code does, and renormalised."""
    rows = []
    for item in items:
        row: Row = {}
        for renormalise, suffix in ((False, ""), (True, ", renormalised")):
            s = [sum(t) for t in _scores(strategy, readers, item.prompt, [*item.true, *item.false], asked, renormalise)]
            n = len(item.true)
            mc = answers.multiple_choice(s[:n], s[n:], item.best)
            row |= {name + suffix: value for name, value in mc.items()}
        rows.append(row)
    return rows


def score_completions(strategy: Any, readers: Readers, items: Sequence[Choice], asked: Settings) -> list[Row]:
    """FACTOR: renormalised; the official variant and the summed one."""
    rows = []
    for item in items:
        right, *wrong = _scores(strategy, readers, item.prompt, [*item.true, *item.false], asked, True)
        rows.append({"official": float(answers.factor_official(right, wrong)), "sum": float(answers.factor_sum(right, wrong))})
    return rows


def _scores(strategy: Any, readers: Readers, prompt: str, given: Sequence[str], asked: Settings,
            renormalise: bool) -> list[list[float]]:
    model, tokenizer = readers["main"]
    amateur = readers["amateur"][0] if "amateur" in readers else None
    return answer_scores(strategy, model, tokenizer, prompt, given, amateur=amateur, renormalise=renormalise, chat=asked.chat)


def mean_of(rows: Sequence[Row], asked: Settings) -> dict[str, float]:
    """The mean of every number."""
    return {name: sum(r[name] for r in rows) / len(rows) for name in rows[0]}


# ---------------------------------------------------------------------------------------------------------------- open text

@dataclass(frozen=True)
class Prompt:
    """Something to write on, and perhaps the picture (a file, "" for none) that it is about."""

    prompt: str
    image: str = ""


def write_on(strategy: Any, readers: Readers, items: Sequence[Prompt], asked: Settings) -> list[Row]:
    """The best continuation, and one that is drawn; a strategy that looks ahead has the one."""
    (model, tokenizer), amateur = readers["main"], readers["amateur"][0] if "amateur" in readers else None
    same = {"images": [i.image or None for i in items], "tokenizer": tokenizer, "amateur": amateur, "chat": asked.chat,
            "max_new_tokens": asked.max_new_tokens, "seed": asked.seed}
    best = decode(strategy, model, [i.prompt for i in items], **same)
    drawn = decode(strategy, model, [i.prompt for i in items], sample=True, **same) if hasattr(strategy, "combine") else best
    rows = [{"prompt": i.prompt, "best": b, "drawn": d} for i, b, d in zip(items, best, drawn)]
    return [r | {"diversity": _diversity([r["drawn"]])} for r in rows]


def sum_text(rows: Sequence[Row], asked: Settings) -> dict[str, float]:
    """Diversity and length in words of both, and what the judge finds likely, in nats per token."""
    found: dict[str, float] = {}
    for kind in ("best", "drawn"):
        texts = [r[kind] for r in rows]
        found[f"diversity, {kind}"] = _diversity(texts)
        found[f"words, {kind}"] = sum(len(t.split()) for t in texts) / len(texts)
        if asked.judge is not None:
            said = [(r["prompt"], r[kind]) for r in rows if r[kind].strip()]
            found[f"coherence, {kind}"] = text.coherence_nll(*asked.judge, *zip(*said)) if said else math.nan
    return found


def _diversity(texts: Sequence[str]) -> float:
    """NaN where no text has four words."""
    try:
        return text.diversity(texts)
    except NotanError:
        return math.nan


YES_NO = Task("yes or no", "drawn", ask_yes_no, sum_yes_no)
MME = Task("MME", "drawn", ask_yes_no, sum_mme)
TRUTHFULQA = Task("TruthfulQA, multiple choice", "MC1", score_choices, mean_of)
FACTOR = Task("FACTOR", "official", score_completions, mean_of)
TEXT = Task("open text", "diversity", write_on, sum_text)
