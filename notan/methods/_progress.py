"""Where a run stands, as a method sees it."""

from __future__ import annotations

from typing import NamedTuple


class Progress(NamedTuple):
    """Optimiser steps done and in all, the 0-based epoch and how many there will be."""

    step: int = 0
    steps: int = 1
    epoch: int = 0
    epochs: int = 1

    @property
    def fraction(self) -> float:
        """Share of the run that is done, 0 at the first step."""
        return self.step / max(self.steps, 1)
