"""Streaming: data that does not fit, read in shards, at a position of three integers (seed, epoch, step).

A shard is a file (or a share of a folder) that knows how many rows it has and which blocks of them it can read. In an
epoch the shards are ordered by key, then the blocks of each `window` shards together, so that files of one class each
are mixed; `window` neighbouring blocks are read together and their rows ordered by key. All of that is a function of
(seed, epoch) and of the shards' row counts, so any step can be found without reading what comes before it, and there is
no random buffer whose content would have to be saved.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from notan.data import keys
from notan.data.cache import workers
from notan.data.columns import COLUMNS
from notan.data.loader import Batches, Loader, ahead
from notan.data.pictures import Form, decode, why
from notan.data.shards import Shard, undressed
from notan.data.table import Data, tensors
from notan.errors import NotanError


def loader_of(
    data: Data, *, batch_size: int, seed: int, batches: Batches | None = None, rank: int = 0, size: int = 1
) -> Loader | Stream:
    """What training reads: a `Stream` where the data is streamed, else a `Loader`."""
    if data.streamed is None:
        return Loader(data.train, batch_size=batch_size, seed=seed, batches=batches, rank=rank, size=size)
    if batches is not None:
        raise NotanError("the method chooses its own batches from the labels of all rows, which a stream does not have",
                         "data that is not streamed", "leave out --stream, or choose another method")  # fmt: skip
    shards, form, columns, limit_bad = data.streamed
    return Stream(shards, form=form, batch_size=batch_size, seed=seed, rank=rank, size=size, limit_bad=limit_bad,
                  columns=columns)  # fmt: skip


class Stream:
    """Batches from shards, forever, from any step: what `Loader` is for data that fits.

    The same interface: `steps_per_epoch`, `at(step)`, `batch(step)`, `dropped`, a contiguous slice for each rank.
    Pictures take the given `form`. A batch has `row` (the number over all shards) and `key`. Unreadable pictures are
    left out of their batch, counted and named in `bad`; beyond `limit_bad` of all rows a NotanError names them. Label
    columns hold class numbers, or names out of `classes`. Only `columns` are kept, all when None.
    """

    def __init__(
        self, shards: Sequence[Shard], *, form: Form | None, batch_size: int, seed: int, rank: int = 0, size: int = 1,
        prefetch: int = 2, window: int = 4, limit_bad: float = 0.01, classes: Sequence[str] = (),
        columns: Sequence[str] | None = None,
    ) -> None:  # fmt: skip
        self.shards, self.form, self.batch_size, self.seed, self.prefetch = list(shards), form, batch_size, seed, prefetch
        self.rows = sum(b - a for shard in shards for a, b in shard.blocks)
        if not 1 <= batch_size <= self.rows:
            raise NotanError(f"a batch of {batch_size:,} rows from a stream of {self.rows:,}", "1 or more, no more than all",
                             f"--batch {self.rows} or less")  # fmt: skip
        if size > batch_size:
            raise NotanError(f"a batch of {batch_size} rows for {size} ranks", "a row for every rank", "a larger --batch")
        self.steps_per_epoch, self.dropped = divmod(self.rows, batch_size)
        self.bad: dict[int, str] = {}
        self._said, self._names = 0, None if columns is None else {*columns}
        self._rank, self._size, self._window, self._limit = rank, size, window, limit_bad
        self._first = np.cumsum([0, *(shard.blocks[-1][1] if shard.blocks else 0 for shard in shards)]).tolist()
        self._plan: tuple[int, list[list[tuple[int, int, int]]], np.ndarray] | None = None
        self._open: OrderedDict[tuple[int, int], dict[str, list[Any]]] = OrderedDict()
        self._lock = threading.Lock()  # steps may be timed by one iterator while another reads ahead
        self._number = {name: i for i, name in enumerate(classes)}
        self._pool = ThreadPoolExecutor(workers(), thread_name_prefix="notan-decode")

    def at(self, step: int) -> Iterator[dict[str, Any]]:
        """Batches from global step `step` on, without end."""
        walk = map(self.batch, iter(range(step, 2**62)))
        return ahead(walk, self.prefetch) if self.prefetch > 0 else walk

    def batch(self, step: int) -> dict[str, Any]:
        """The batch of one step: this rank's slice of the global one."""
        epoch, place = divmod(step, self.steps_per_epoch)
        mine = np.array_split(np.arange(place * self.batch_size, (place + 1) * self.batch_size), self._size)[self._rank]
        with self._lock:
            columns = self._columns(epoch, int(mine[0]), int(mine[-1]) + 1)
        row = np.array(columns.pop("row"), dtype=np.int64)
        batch: dict[str, Any] = {}
        good = np.arange(len(row))
        for name in [name for name in columns if COLUMNS[name].picture]:
            pixels = list(self._pool.map(self._decode, columns[name]))
            columns[name] = pixels
            good = np.array([i for i in good if not isinstance(pixels[i], str)], dtype=np.int64)
            self._note({int(row[i]): p for i, p in enumerate(pixels) if isinstance(p, str)})
        if not len(good):
            raise NotanError(f"no picture of step {step:,} can be read", "", "run `notan doctor` on the data")
        for name, values in columns.items():
            kept = [values[i] for i in good]
            if COLUMNS[name].picture:
                batch[name] = torch.from_numpy(np.stack(kept))
            else:
                batch |= tensors(name, self._labels(kept) if name == "label" else kept)
        key = keys.row_keys(self.seed, epoch, row[good])
        return batch | {"row": torch.from_numpy(row[good]), "key": torch.from_numpy(key)}

    def skipped(self) -> str:
        """What could not be read so far, in a sentence; "" when that has been said before."""
        with self._lock:
            new, self._said = len(self.bad) > self._said, len(self.bad)
            whose = f" of rank {self._rank}" if self._size > 1 else ""
            return f"{len(self.bad):,} pictures{whose} cannot be read and are skipped: {self._listed()}" if new else ""

    def _columns(self, epoch: int, start: int, stop: int) -> dict[str, list[Any]]:
        """The undecoded values of places start to stop of the epoch's order, and their `row`."""
        windows, ends = self._windows(epoch)
        out: dict[str, list[Any]] = {}
        w = int(np.searchsorted(ends, start, side="right"))
        while start < stop:
            first = int(ends[w - 1]) if w else 0
            read = self._read(epoch, w, windows[w])
            for name, values in read.items():
                out.setdefault(name, []).extend(values[start - first : stop - first])
            start, w = min(stop, int(ends[w])), w + 1
        return out

    def _windows(self, epoch: int) -> tuple[list[list[tuple[int, int, int]]], np.ndarray]:
        """The epoch's windows: lists of blocks (shard, start, stop), and where each window ends in the order."""
        if self._plan is None or self._plan[0] != epoch:
            order: list[tuple[int, int, int]] = []
            turn = keys.shuffle(keys.fold(self.seed, keys.word("shards")).item(), epoch, len(self.shards))
            for i in range(0, len(turn), self._window):
                order += self._mixed(epoch, i, turn[i : i + self._window].tolist())
            windows = [order[i : i + self._window] for i in range(0, len(order), self._window)]
            ends = np.cumsum([sum(b - a for _, a, b in window) for window in windows])
            self._plan = (epoch, windows, ends)
        return self._plan[1], self._plan[2]

    def _mixed(self, epoch: int, i: int, few: list[int]) -> list[tuple[int, int, int]]:
        """The blocks of a few shards in an order by key; those of a shard that is read forwards keep theirs."""
        blocks = [(s, *block) for s in few for block in self.shards[s].blocks]
        seed = keys.fold(keys.fold(self.seed, keys.word("blocks")), i).item()
        forwards = {s: iter(self.shards[s].blocks) for s in few if not self.shards[s].seekable}
        mixed = [blocks[b] for b in keys.shuffle(seed, epoch, len(blocks))]
        return [(s, *next(forwards[s])) if s in forwards else (s, a, b) for s, a, b in mixed]

    def _read(self, epoch: int, w: int, window: list[tuple[int, int, int]]) -> dict[str, list[Any]]:
        """A window's rows in its order by key; the last two windows are kept."""
        if (epoch, w) not in self._open:
            columns: dict[str, list[Any]] = {"row": []}
            for s, a, b in window:
                columns["row"] += range(self._first[s] + a, self._first[s] + b)
                for name, values in self.shards[s].read(a, b).items():
                    if self._names is None or name in self._names:
                        columns.setdefault(name, []).extend(values)
            torn = [name for name, values in columns.items() if len(values) != len(columns["row"])]
            if torn:
                raise NotanError(f"column {torn[0]!r} is not in every shard", "the same columns in all of them")
            seed = keys.fold(keys.fold(self.seed, keys.word("window")), w).item()
            turn = keys.shuffle(seed, epoch, len(columns["row"]))
            self._open[epoch, w] = {name: [values[i] for i in turn] for name, values in columns.items()}
            while len(self._open) > 2:
                self._open.popitem(last=False)
        return self._open[epoch, w]

    def _decode(self, value: Any) -> np.ndarray | str:
        try:
            assert self.form is not None
            return decode(undressed(value), self.form)
        except NotanError:
            raise
        except Exception as error:
            return why(error)

    def _note(self, bad: dict[int, str]) -> None:
        with self._lock:
            self.bad |= {row: f"{self._where(row)} ({reason})" for row, reason in bad.items()}
            if len(self.bad) > np.ceil(self._limit * self.rows):
                raise NotanError(f"{len(self.bad):,} of {self.rows:,} pictures cannot be read: {self._listed()}",
                                 f"at most {self._limit:.1%}", "repair or remove them, or raise --limit-bad")  # fmt: skip

    def _listed(self, most: int = 5) -> str:
        return "; ".join([*self.bad.values()][:most]) + ("; ..." if len(self.bad) > most else "")

    def _where(self, row: int) -> str:
        s = int(np.searchsorted(self._first, row, side="right")) - 1
        return self.shards[s].where(row - self._first[s])

    def _labels(self, values: list[Any]) -> list[int]:
        try:
            return [self._number[v] if isinstance(v, str) else int(v) for v in values]
        except (KeyError, TypeError, ValueError) as error:
            raise NotanError(f"a label of the stream is {error}", "a class number, or a name that was given",
                             "pass classes=[...] with the names in order") from error  # fmt: skip
