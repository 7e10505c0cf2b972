"""Rounds: a method that learns in stages, each with an optimiser, a learning rate and an order of rows of its own.

A method has rounds when it has `rounds`, their shares of the steps, and `enter(number, look)`, which the loop calls when one
begins: `look` gives the features of all training rows, or is None where a saved run goes on and what was found is in its
state. Every other method has one round.
"""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import Any, NamedTuple

from notan.errors import NotanError


class Round(NamedTuple):
    """One round: its number from 0, its first step and the one after its last, counted over the run, and its seed."""

    number: int
    first: int
    last: int
    seed: int


def rounds(method: Any, steps: int, seed: int) -> list[Round]:
    """The rounds of a run of so many steps. Raises `NotanError` when there are more rounds than steps.

    Keys and dropout of round r come from seed + r * 10**6, so that what it sees is new.
    """
    shares = getattr(method, "rounds", (1.0,))
    if 0 < steps < len(shares):
        raise NotanError(f"{steps} steps for {len(shares)} rounds", "a step for each round", "a larger budget, or fewer stages")
    ends = [0, *(round(steps * done / sum(shares)) for done in accumulate(shares))] if steps else [0, 0]
    return [Round(i, first, last, seed + i * 10**6) for i, (first, last) in enumerate(pairwise(ends))]


def round_at(every: list[Round], step: int) -> Round:
    """The round of a step; the end of a run belongs to the last one."""
    return next((r for r in every if step < r.last), every[-1])
