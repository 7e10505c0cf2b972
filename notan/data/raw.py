"""Raw: what a reader found, before splitting, decoding and checking."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass
class Raw:
    """`train` and `test` map columns to arrays, lists or `Pictures`; a missing `test` is split off by key.

    `ids` (int64) are stable names of the train rows for that split: hashes of paths; the row number when None.
    """

    name: str
    train: dict[str, Any]
    test: dict[str, Any] | None = None
    classes: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)
    ids: np.ndarray | None = None
    stamp: str = ""  # changes when the data changes

    @property
    def tables(self) -> dict[str, dict[str, Any]]:
        """The columns by split, of those that there are."""
        return {"train": self.train} | ({"test": self.test} if self.test is not None else {})
