"""Rows and Data: what the rest of the library sees of any data set.

A store is whatever holds one column of a whole table and can be indexed with an integer array: a memory-mapped
array, an array, or an object with `__len__` and `__getitem__(int array)` that decodes pictures on the fly. `Rows` is
one split: stores, and which of their rows belong to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from notan.data.columns import COLUMNS, DataInfo
from notan.errors import NotanError

if TYPE_CHECKING:
    from notan.data.pictures import Form
    from notan.data.shards import Shard


class Rows:
    """One split of a data set. Row numbers run from 0 to len - 1 and are stable as long as the data is the same."""

    def __init__(
        self, stores: Mapping[str, Any], index: np.ndarray | None = None, name: Callable[[int], str] = "row {}".format
    ) -> None:
        """`stores`: column name -> store, all of one length. `index`: the rows of this split in them, int (N,).

        `name` is what a message calls a row of the stores: its file, or its number.
        """
        self.name_of = name
        self.stores = dict(stores)
        lengths = {name: len(store) for name, store in self.stores.items()}
        if len(set(lengths.values())) > 1:
            raise NotanError(f"columns differ in length: {lengths}", "one value per row in every column")
        total = next(iter(lengths.values()), 0)
        self.index = None if index is None else np.asarray(index, dtype=np.int64)
        self._length = total if self.index is None else len(self.index)

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(self.stores)

    def __len__(self) -> int:
        return self._length

    def take(self, index: np.ndarray) -> dict[str, Any]:
        """The given rows, in this order, as a batch: CPU tensors (or lists of strings) and `row` int64 (B,)."""
        index = np.asarray(index, dtype=np.int64)
        if len(index) and (index.min() < 0 or index.max() >= len(self)):
            seen = index.min() if index.min() < 0 else index.max()
            raise NotanError(f"row {seen} was asked for", f"0 to {len(self) - 1}")
        where = index if self.index is None else self.index[index]
        batch: dict[str, Any] = {}
        for name, store in self.stores.items():
            batch.update(tensors(name, store[where] if not isinstance(store, list) else [store[i] for i in where]))
        return batch | {"row": torch.from_numpy(index.copy())}

    def values(self, column: str) -> np.ndarray:
        """A light column (label, target, attributes, group) of all rows, in row order."""
        if column not in self.stores:
            raise NotanError(f"there is no column {column!r}", f"one of {', '.join(self.columns)}")
        if not COLUMNS[column].light:
            raise NotanError(f"column {column!r} is too large to hold at once", "a light column", "use Rows.take")
        store = np.asarray(self.stores[column])
        return COLUMNS[column].collate(store if self.index is None else store[self.index])

    def select(self, index: np.ndarray) -> Rows:
        """These rows alone, renumbered from 0."""
        index = np.asarray(index, dtype=np.int64)
        return Rows(self.stores, index if self.index is None else self.index[index], self.name_of)

    def only(self, *columns: str) -> Rows:
        """The same rows with these columns alone, so that no others are read."""
        return Rows({name: self.stores[name] for name in columns}, self.index, self.name_of)

    def name(self, row: int) -> str:
        """What a message or a figure calls a row: its file, or its number in the table."""
        return self.name_of(int(row if self.index is None else self.index[row]))


class Streamed(NamedTuple):
    """Training rows that are read as they are needed: what `loader_of` makes a `Stream` of."""

    shards: list[Shard]
    form: Form | None  # of pictures
    columns: tuple[str, ...]
    limit_bad: float  # the share of pictures that may be unreadable


@dataclass(frozen=True)
class Data:
    """A data set, split and ready: `fingerprint` changes when rows, labels, pixels or the split do.

    Where the training rows are `streamed`, `train` is a sample of them and `test` one of the test rows.
    """

    train: Rows
    test: Rows
    info: DataInfo
    fingerprint: str
    notes: list[str] = field(default_factory=list)  # what a user should know: skipped rows, the split, the fall-back
    streamed: Streamed | None = None
    spec: str = ""  # what was opened: a name, or a path

    @property
    def rows(self) -> int:
        """How many rows there are to train on."""
        return len(self.train) if self.streamed is None else self.info.rows


def tensors(name: str, values: Any) -> dict[str, Any]:
    """One column's values of a batch's rows, as the column is in a batch (and `length`, where rows are padded)."""
    out = COLUMNS[name].collate(values)
    if COLUMNS[name].padded:
        return {name: torch.from_numpy(out[0]), "length": torch.from_numpy(out[1])}
    return {name: out if isinstance(out, (list, Tensor)) else torch.from_numpy(out)}
