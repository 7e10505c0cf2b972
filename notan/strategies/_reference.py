"""What a strategy must beat: the model alone, the plausible head alone, the head at the temperature that the weights come to.

Sampling from a contrast whose weights come to S is sampling at temperature 1 / S wherever the streams agree, among the head's
tokens alone. Both make text more certain without any contrast, so a gain over plain sampling may be theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from notan.strategies._strategy import Context, plausible, within


class Reference:
    """One stream: s = S z among the tokens with at least beta of the largest probability. S = 0 is uniform on the head.

    main: what the stream reads instead of what was given.
    """

    def __init__(self, S: float = 1.0, beta: float = 0.0, main: Callable[[Context], Context] = lambda given: given) -> None:
        self.S, self.beta, self.main = S, beta, main

    def contexts(self, given: Context, amateur: bool) -> list[Context]:
        return []

    def weights(self, t: int) -> tuple[float, ...]:
        return (self.S,)

    def combine(self, z: Sequence[Tensor], t: int) -> Tensor:
        return within(plausible(z[0], self.beta), self.S * z[0])


def references(strategies: dict[str, Any]) -> dict[str, Reference]:
    """The rows that are shown beside these strategies (name to object), by name, the model alone first.

    For every head its row, for every sum S of weights but 1 the head at temperature 1 / S, and for a strategy that changes
    what the main stream reads, that stream alone.
    """
    rows = {"model": Reference()}
    for name, strategy in strategies.items():
        if not hasattr(strategy, "combine"):
            continue                                                    # it looks ahead, and has no head
        beta, S = strategy.beta, round(sum(strategy.weights(0)), 6)
        if beta:
            rows.setdefault(f"head {beta:g}", Reference(1.0, beta))
        head = f"head {beta:g}" if beta else "all tokens"
        if S != 1:
            rows.setdefault(f"{head}, " + (f"T = 1/{S:g}" if S else "uniform"), Reference(S, beta))
        if hasattr(strategy, "main"):
            rows[f"{name}'s main stream alone"] = Reference(1.0, beta, strategy.main)
    return rows
