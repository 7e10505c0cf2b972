"""How a number was measured, as a record that prints itself; numbers of different records are never ranked together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from notan.errors import NotanError


@dataclass(frozen=True)
class Protocol:
    """One way to measure. Two numbers may be compared exactly when their protocols are equal.

    `name` is what was done, `split` the rows it was scored on, `n_train` and `n_test` how many rows fitted and scored
    it, `k` the neighbours of a k-NN (None for others), `seeds` those of the training runs, `notes` what else matters.
    """

    name: str
    split: str
    n_train: int
    n_test: int
    k: int | None = None
    seeds: tuple[int, ...] = ()
    notes: str = ""

    def __str__(self) -> str:
        parts = [
            f"{self.name}" + (f" (k={self.k})" if self.k else ""),
            *([f"fitted on {self.n_train:,} labelled rows"] if self.n_train else []),
            f"scored on {self.n_test:,} rows of {self.split}",
        ]
        parts += [f"seeds {', '.join(map(str, self.seeds))}"] if self.seeds else []
        return ", ".join(parts) + (f"; {self.notes}" if self.notes else "") + "."


def same(protocols: Sequence[Protocol]) -> Protocol:
    """The protocol that all of these are. Raises `NotanError` naming the field in which two differ."""
    if not protocols:
        raise NotanError("there is nothing to compare", "at least one measurement")
    first = protocols[0]
    for other in protocols[1:]:
        for f in fields(Protocol):
            a, b = getattr(first, f.name), getattr(other, f.name)
            if a != b:
                raise NotanError(
                    f"these numbers were measured differently: {f.name} is {a!r} in one and {b!r} in another",
                    "one protocol for all that is ranked",
                    "measure all of them again in one run",
                )
    return first


def rank(results: Sequence[tuple[str, float, Protocol]]) -> list[tuple[str, float]]:
    """(name, value, protocol) from best (largest) to worst, as (name, value). Refuses unequal protocols."""
    same([protocol for _, _, protocol in results])
    return sorted(((name, value) for name, value, _ in results), key=lambda pair: -pair[1])
