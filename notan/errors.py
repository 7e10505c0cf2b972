"""The one error a user can cause: it says what was seen, what was wanted, and the fix."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable


class NotanError(Exception):
    """Raised for anything that comes from outside: data, names, settings, disks.

    `seen` names the file, key or value and what is wrong with it; `wanted` and `fix` are sentences without the final
    full stop. The command line prints the three without a traceback.
    """

    def __init__(self, seen: str, wanted: str = "", fix: str = "") -> None:
        self.seen, self.wanted, self.fix = seen, wanted, fix
        parts = [seen.rstrip(".")]
        parts += [f"Wanted: {wanted.rstrip('.')}"] if wanted else []
        parts += [f"Fix: {fix.rstrip('.')}"] if fix else []
        super().__init__(". ".join(parts) + ".")

    def __reduce__(self) -> tuple:
        return NotanError, (self.seen, self.wanted, self.fix)


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """A sentence that names the nearest of `choices`, or all of them when none is near."""
    choices = sorted(choices)
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(choices)}"


def check_between(low: float, high: float, **settings: float) -> None:
    """Raises `NotanError` for a setting outside of the range, ends included, or NaN."""
    for name, value in settings.items():
        if not low <= value <= high:
            wanted = f"of at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
            raise NotanError(f"{name} = {value}", f"{name} {wanted}", "correct the value")
