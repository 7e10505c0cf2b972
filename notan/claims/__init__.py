"""One file per paper: arms, data, metric, seeds, what would refute it."""

from notan.claims._framework import run_and_print, run_claim

__all__ = ["run_and_print", "run_claim"]
