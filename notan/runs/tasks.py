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

from notan.errors import NotanError
from notan.probes import answers, text
from notan.probes.benchmarks import Choice, YesNo
from notan.runs.benchmark import factor_rows, means, truthfulqa_rows
from notan.runs.decode import decode, first_scores
from notan.runs.prompts import given_with
from notan.runs.reader import Readers, words_of

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

def ask_yes_no(strategy: Any, readers: Readers, items: Sequence[YesNo], asked: Settings) -> list[Row]:
    """The probability of yes under the question, and under its leading form where there is one."""
    yes, no = answers.yes_no_tokens(words_of(readers["main"][1]))

    def said(questions: list[str]) -> list[tuple[float, float]]:
        given = given_with(questions, [i.image or None for i in items], asked.seed)
        s = first_scores(strategy, readers, given, asked.chat)
        return list(zip(answers.yes_share(s, yes, no).tolist(), s.softmax(1)[:, yes + no].sum(1).tolist()))

    rows: list[Row] = [{"truth": i.answer, "image": i.image, "task": i.task, "yes": q, "said": m}
                       for i, (q, m) in zip(items, said([i.query for i in items]))]
    if items[0].leading:
        rows = [r | {"neutral": r["yes"], "yes": q, "said": m} for r, (q, m) in zip(rows, said([i.leading for i in items]))]
    return [r | {"drawn": 0.0 if math.isnan(r["yes"]) else r["yes"] if r["truth"] else 1 - r["yes"]} for r in rows]


def sum_yes_no(rows: Sequence[Row], asked: Settings) -> dict[str, float]:
    """Accuracy and the share of yes, drawn and best, F1 of the best; with leading questions, what the hint changes. A
    question whose head holds neither is answered wrong.
    """
    truth = [r["truth"] for r in rows]
    best = answers.yes_no(_best([r["yes"] for r in rows], truth), truth)
    drawn = answers.yes_no_expected([r["yes"] for r in rows], truth)
    found = {"accuracy, best": best["accuracy"], "accuracy, drawn": drawn["accuracy"], "F1, best": best["f1"],
             "yes, best": best["yes_ratio"], "yes, drawn": drawn["yes_ratio"],
             "says yes or no": sum(r["said"] for r in rows) / len(rows)}
    if "neutral" not in rows[0]:
        return found
    neutral = _best([r["neutral"] for r in rows], truth)
    return {**found, "accuracy, neutral": sum(a == t for a, t in zip(neutral, truth)) / len(rows),
            **answers.sycophancy(neutral, _best([r["yes"] for r in rows], truth), truth)}


def _best(yes: Sequence[float], truth: Sequence[bool]) -> list[bool]:
    """The likelier answer; the wrong one where there is none."""
    return [not t if math.isnan(q) else q > 0.5 for q, t in zip(yes, truth)]


def sum_mme(rows: Sequence[Row], asked: Settings) -> dict[str, float]:
    """MME's score of each task, 0 to 200, their sum, and the figures of yes and no over all questions."""
    found = {}
    for task in dict.fromkeys(r["task"] for r in rows):
        some = [r for r in rows if r["task"] == task]
        found[task] = answers.mme(_best([r["yes"] for r in some], [r["truth"] for r in some]), [r["truth"] for r in some],
                                  [r["image"] for r in some])
    return {**found, "total": sum(found.values()), **sum_yes_no(rows, asked)}


# ------------------------------------------------------------------------------------------------------------ given answers

def score_choices(strategy: Any, readers: Readers, items: Sequence[Choice], asked: Settings) -> list[Row]:
    """TruthfulQA: scored as the released code does, and renormalised."""
    return truthfulqa_rows(strategy, *readers["main"], items, amateur=_amateur(readers), chat=bool(asked.chat))


def score_completions(strategy: Any, readers: Readers, items: Sequence[Choice], asked: Settings) -> list[Row]:
    """FACTOR: by the mean score of a token, officially, and by the sum."""
    return factor_rows(strategy, *readers["main"], items, amateur=_amateur(readers), chat=bool(asked.chat))


def _amateur(readers: Readers) -> Any:
    return readers["amateur"][0] if "amateur" in readers else None


def mean_of(rows: Sequence[Row], asked: Settings) -> dict[str, float]:
    """The mean of every number."""
    return means(rows)


# ---------------------------------------------------------------------------------------------------------------- open text

@dataclass(frozen=True)
class Prompt:
    """Something to write on, and perhaps the picture (a file, "" for none) that it is about."""

    prompt: str
    image: str = ""


def write_on(strategy: Any, readers: Readers, items: Sequence[Prompt], asked: Settings) -> list[Row]:
    """The best continuation, and one that is drawn; a strategy that looks ahead has the one."""
    model, tokenizer = readers["main"]
    same = {"images": [i.image or None for i in items], "tokenizer": tokenizer, "amateur": _amateur(readers), "chat": asked.chat,
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
FACTOR = Task("FACTOR", "mean renormalised", score_completions, mean_of)
TEXT = Task("open text", "diversity", write_on, sum_text)
