"""A strategy on given answers: a row of figures for each question of TruthfulQA or FACTOR.

Scores of a strategy with a contrast are differences of log-probabilities. The released scorers take them as they are, so
their MC2 is no share of a probability; every figure therefore comes twice, the second renormalised over the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from notan.errors import NotanError
from notan.probes.answers import factor_official, factor_sum, multiple_choice
from notan.probes.benchmarks import Choice
from notan.runs.score import both_scores

Row = dict[str, float]


def truthfulqa_rows(strategy: Any, model: Any, tokenizer: Any, items: Sequence[Choice], *, amateur: Any = None,
                    chat: bool | None = False, console: Any = None) -> list[Row]:
    """MC1, MC2 and MC3 of every question, and the same "renormalised". As published: with a strategy of beta = 0.

    chat: False reads the prompt as it is, which is what the benchmark defines. console: shows progress there. Raises
    `NotanError` as `answer_scores` does, with the question's number.
    """
    def measured(scores: list[list[float]], item: Choice) -> Row:
        total = [sum(tokens) for tokens in scores]
        return multiple_choice(total[: len(item.true)], total[len(item.true):], item.best)

    return _rows(measured, strategy, model, tokenizer, items, amateur, chat, console)


def factor_rows(strategy: Any, model: Any, tokenizer: Any, items: Sequence[Choice], *, amateur: Any = None,
                chat: bool | None = False, console: Any = None) -> list[Row]:
    """Whether the completion of every item wins, 1 or 0: by its "mean" score per token, officially, and by the "sum", as in
    DoLa's scripts; and the same "renormalised", as in these (with beta = 0.1). Other arguments as `truthfulqa_rows`.
    """
    def measured(scores: list[list[float]], item: Choice) -> Row:
        return {"mean": float(factor_official(scores[0], scores[1:])), "sum": float(factor_sum(scores[0], scores[1:]))}

    return _rows(measured, strategy, model, tokenizer, items, amateur, chat, console)


def means(rows: Sequence[Row]) -> Row:
    """The mean of every figure over the rows."""
    if not rows:
        raise NotanError("there are no questions to average over", "at least one")
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def _rows(measured: Callable[[list[list[float]], Choice], Row], strategy: Any, model: Any, tokenizer: Any,
          items: Sequence[Choice], amateur: Any, chat: bool | None, console: Any) -> list[Row]:
    from rich.progress import track

    rows = []
    for number, item in enumerate(track(items, "scoring", console=console, disable=console is None), start=1):
        try:
            both = both_scores(strategy, model, tokenizer, item.prompt, [*item.true, *item.false], amateur=amateur, chat=chat)
        except NotanError as error:
            raise NotanError(f"question {number}: {error.seen}", error.wanted, error.fix) from None
        plain, again = (measured([scores[k] for scores in both], item) for k in (0, 1))
        rows.append(plain | {f"{name} renormalised": value for name, value in again.items()})
    return rows
