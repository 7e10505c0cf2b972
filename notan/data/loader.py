"""The loader: batches of rows whose whole position is (seed, epoch, step).

Nothing is stateful: the order of an epoch is a function of (seed, epoch), so `at(step)` starts anywhere and gives what
an undisturbed run would have given. A thread prepares the next batches while the current one is used.
"""

from __future__ import annotations

import atexit
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from notan.data import keys
from notan.data.columns import COLUMNS
from notan.data.table import Rows
from notan.errors import NotanError

Batches = Callable[[dict[str, np.ndarray], int, int, int], np.ndarray]


class Loader:
    """Batches of a split, forever, from any step.

    `batch_size` counts the rows of the global batch; rank r of `size` gets a contiguous slice of it (the first ranks
    one row more where it does not divide). `batches(columns, batch_size, seed, epoch) -> int64 (steps, B)` replaces
    the shuffled order; `columns` are `row` and the light columns of the split. Rows left over at the end of an epoch are not
    used in that epoch: `dropped` counts them.
    """

    def __init__(
        self, rows: Rows, *, batch_size: int, seed: int, batches: Batches | None = None, rank: int = 0, size: int = 1,
        prefetch: int = 2,
    ) -> None:  # fmt: skip
        if batch_size < 1:
            raise NotanError(f"a batch of {batch_size} rows", "at least 1", "--batch 1 or more")
        if batch_size > len(rows):
            raise NotanError(
                f"a batch of {batch_size:,} rows, but the training split has {len(rows):,}",
                "a batch no larger than the data", f"--batch {len(rows)} or less",
            )  # fmt: skip
        if size > batch_size:
            seen = f"a batch of {batch_size} rows for {size} ranks"
            raise NotanError(seen, "a row for every rank", "a larger --batch")
        self.rows, self.batch_size, self.seed, self.prefetch = rows, batch_size, seed, prefetch
        self._batches, self._rank, self._size = batches, rank, size
        self._light: dict[str, np.ndarray] = {}
        if batches:
            light = {name: rows.values(name) for name in rows.columns if COLUMNS[name].light}
            self._light = {"row": np.arange(len(rows)), **light}
        self._plan: tuple[int, np.ndarray] = (0, self._order(0))
        self.steps_per_epoch: int = len(self._plan[1])
        self.dropped: int = len(rows) - len(np.unique(self._plan[1]))
        if not self.steps_per_epoch:
            raise NotanError(f"no batch of {batch_size} rows can be made of this data", "", "a smaller --batch")

    def at(self, step: int) -> Iterator[dict[str, Any]]:
        """Batches from global step `step` on, without end. Each has `row` and `key` beside the data's columns."""
        if self.prefetch < 1:
            return self._walk(step)
        return ahead(self._walk(step), self.prefetch)

    def batch(self, step: int) -> dict[str, Any]:
        """The batch of one step: this rank's slice of the global one."""
        epoch, place = divmod(step, self.steps_per_epoch)
        index = self._epoch(epoch)[place]
        index = np.array_split(index, self._size)[self._rank] if self._size > 1 else index
        batch = self.rows.take(index)
        batch["key"] = torch.from_numpy(keys.row_keys(self.seed, epoch, index))
        return batch

    def skipped(self) -> str:
        """Nothing: what cannot be read was named when the data was opened."""
        return ""

    def _walk(self, step: int) -> Iterator[dict[str, Any]]:
        while True:
            yield self.batch(step)
            step += 1

    def _epoch(self, epoch: int) -> np.ndarray:
        plan = self._plan
        if plan[0] != epoch:
            plan = self._plan = (epoch, self._order(epoch))
        return plan[1]

    def _order(self, epoch: int) -> np.ndarray:
        """Row numbers of every step of an epoch, int64 (steps, B)."""
        if self._batches is None:
            return shuffled(len(self.rows), self.batch_size, self.seed, epoch)
        plan = np.asarray(self._batches(self._light, self.batch_size, self.seed, epoch), dtype=np.int64)
        if plan.ndim != 2 or (epoch and len(plan) != self.steps_per_epoch):
            seen = f"batches() gave {plan.shape} in epoch {epoch}"
            raise NotanError(seen, "(steps, rows), as many steps every epoch")
        return plan


def shuffled(rows: int, batch_size: int, seed: int, epoch: int) -> np.ndarray:
    """All rows in a new order every epoch, int64 (steps, B); those left over at its end are not used in it."""
    steps = rows // batch_size
    return keys.shuffle(seed, epoch, rows)[: steps * batch_size].reshape(steps, batch_size)


_END = object()


def ahead(batches: Iterator[Any], depth: int) -> Iterator[Any]:
    """The same batches, made by a thread up to `depth` ahead. Its errors are raised here; it ends with the iterator."""
    made: queue.Queue[Any] = queue.Queue(maxsize=depth)
    stop = threading.Event()

    def put(item: Any) -> bool:
        while not stop.is_set():
            try:
                made.put(item, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for batch in batches:
                if not put((batch, None)):
                    return
            put((_END, None))
        except BaseException as error:
            put((_END, error))

    def read() -> Iterator[Any]:
        thread = threading.Thread(target=work, name="notan-loader", daemon=True)
        thread.start()

        def end() -> None:  # a thread that Python kills at its exit inside of C++ (pyarrow, torch) would abort the process
            stop.set()
            thread.join(timeout=10)

        atexit.register(end)
        try:
            while True:
                batch, error = made.get()
                if error is not None:
                    raise error
                if batch is _END:
                    return
                yield batch
        finally:
            end()
            atexit.unregister(end)

    return read()
