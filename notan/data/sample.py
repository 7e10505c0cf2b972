"""Rows of shards that are kept at hand: a sample to look at and to measure with, the rows held out for test, or all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from notan.data import keys
from notan.data.columns import COLUMNS
from notan.data.shards import BLOCK, Shard, undressed


class Kept(NamedTuple):
    """Some rows of shards: their undecoded columns, what a message calls them, and where they were."""

    columns: dict[str, list[Any]]
    names: list[str]
    places: dict[tuple[int, int], np.ndarray]  # (shard, start of a block) -> which rows of the block


def draw(shards: Sequence[Shard], wanted: Sequence[int]) -> list[Kept]:
    """So many rows for each of several purposes, no row for two of them: a function of the shards' sizes alone.

    They come from blocks in an order by key, at most BLOCK rows from each where there are enough blocks; from the first
    blocks of shards that can only be read forwards.
    """
    chosen, most = _blocks(shards, sum(wanted))
    room = sum(min(b - a, most) for _, a, b in chosen)
    kept, passed = [Kept({}, [], {}) for _ in wanted], 0
    for s, a, b in sorted(chosen):
        passed += min(b - a, most)
        turn = keys.shuffle(keys.fold(keys.word("sample"), s).item(), a, b - a)
        turn = turn[: sum(wanted) * passed // room - sum(len(part.names) for part in kept)]
        columns = shards[s].read(a, b)
        for want, part in zip(wanted, kept):
            n = len(turn) if part is kept[-1] else want * passed // room - len(part.names)
            mine, turn = np.sort(turn[:n]), turn[n:]
            part.places[s, a] = mine
            part.names.extend(shards[s].where(a + int(i)) for i in mine)
            for name, values in columns.items():
                part.columns.setdefault(name, []).extend(values[i] for i in mine)
    return kept


def everything(shards: Sequence[Shard]) -> Kept:
    """All rows, in order."""
    kept = Kept({}, [], {})
    for shard in shards:
        for a, b in shard.blocks:
            kept.names.extend(map(shard.where, range(a, b)))
            for name, values in shard.read(a, b).items():
                kept.columns.setdefault(name, []).extend(values)
    return kept


def table_of(kept: Kept, stamp: str) -> dict[str, Any]:
    """Kept columns as stores. `stamp` changes when they do."""
    table: dict[str, Any] = {}
    for name, values in kept.columns.items():
        if COLUMNS[name].picture:
            table[name] = Cells(values, kept.names, f"{stamp} {name}")
        else:
            table[name] = values if COLUMNS[name].dtype == "str" or COLUMNS[name].padded else np.asarray(values)
    return table


class Cells:
    """Encoded pictures in memory, or where they are: `Pictures` for the cache."""

    def __init__(self, cells: Sequence[Any], names: Sequence[str], stamp: str) -> None:
        self.cells, self.stamp = cells, stamp
        self.name = names.__getitem__  # not a method: who keeps the names does not keep the pictures

    def __len__(self) -> int:
        return len(self.cells)

    def read(self, i: int) -> Any:
        return undressed(self.cells[i])


class Rest:
    """A shard without some rows of its blocks; the others are numbered from 0."""

    def __init__(self, shard: Shard, without: Mapping[int, np.ndarray]) -> None:
        """`without`: start of a block -> which of its rows are left out."""
        self.shard, self.name, self.seekable = shard, shard.name, shard.seekable
        self._kept = {a: np.setdiff1d(np.arange(b - a), without.get(a, [])) for a, b in shard.blocks if a in without}
        stops = np.cumsum([0, *(len(self._kept[a]) if a in self._kept else b - a for a, b in shard.blocks)]).tolist()
        self.blocks = [(a, b) for a, b in pairwise(stops) if b > a]
        self._inner = {a: block for block, (a, b) in zip(shard.blocks, pairwise(stops)) if b > a}

    def read(self, start: int, stop: int) -> Mapping[str, Sequence[Any]]:
        a, b = self._inner[start]
        columns = self.shard.read(a, b)
        return {n: [v[i] for i in self._kept[a]] for n, v in columns.items()} if a in self._kept else columns

    def where(self, row: int) -> str:
        start = next(a for a, b in self.blocks if a <= row < b)
        a, _ = self._inner[start]
        return self.shard.where(a + int(self._kept[a][row - start] if a in self._kept else row - start))


def _blocks(shards: Sequence[Shard], total: int) -> tuple[list[tuple[int, int, int]], int]:
    """Blocks (shard, start, stop) that hold `total` rows between them, and how many rows of each count at most."""
    blocks = [(s, a, b) for s, shard in enumerate(shards) for a, b in shard.blocks]
    if all(shard.seekable for shard in shards):
        blocks = [blocks[i] for i in keys.shuffle(keys.word("sample"), 0, len(blocks))]
    biggest = max(b - a for _, a, b in blocks)
    for most in (BLOCK, biggest):
        held = np.cumsum([min(b - a, most) for _, a, b in blocks])
        if held[-1] >= total:
            return blocks[: int(np.searchsorted(held, total)) + 1], most
    return blocks, biggest
