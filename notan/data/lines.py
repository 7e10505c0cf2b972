"""Shards of text: jsonl, csv and tsv files, read in blocks whose first bytes are known.

Such a file is read through once, when it is first opened: its rows are counted and checked, the place of every block and
the labels are noted, and the notes are kept in the cache. From then on any block is read alone.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from notan.data.cache import noted
from notan.data.pictures import stamp_of, why
from notan.data.plan import Plan
from notan.data.shards import BLOCK, placed
from notan.errors import NotanError

VERSION = 1  # of what is noted


class LineShard:
    """A jsonl, csv or tsv file. Before it is read it needs a `plan`; `count` finds its blocks."""

    seekable = True

    def __init__(self, path: str | Path) -> None:
        self.name, self.path, self.kind = str(path), str(path), Path(path).suffix.lower()
        self.plan: Plan | None = None
        self.features: dict[str, Any] = {}
        self.text = self.kind in (".csv", ".tsv")  # every cell is text, numbers too
        self.blocks: list[tuple[int, int]] = []
        self._places: list[int] = []  # where each block starts, in bytes
        self._labels: Counter[Any] = Counter()
        with self._open() as file:
            self.header, self._start = self._head(_Lines(file)) if self.text else ([], 0)
            first = [cells for _, cells in islice(self._records(file, self._start), BLOCK)]
        if not first:
            raise NotanError(f"{path} has no rows", "at least one row", "remove the file")
        self.found = list(dict.fromkeys(name for cells in first for name in cells))
        there = {name: [c for cells in first if (c := cells.get(name)) is not None] for name in self.found}
        self.numeric = [name for name, cells in there.items() if cells and all(map(is_number, cells))]

    def count(self, label: str | None, cache: Path | None) -> None:
        """Find the blocks, and how often each value of the column `label` occurs; or take it from the cache."""
        about = f"{VERSION} {stamp_of([self.path])} {label}"
        rows, places, labels = noted(cache, "lines", about, lambda: self._counted(label))
        self.blocks = [(a, min(a + BLOCK, rows)) for a in range(0, rows, BLOCK)]
        self._places, self._labels = places, Counter(dict(labels))

    def labels(self, column: str) -> Counter[Any]:
        """How often each value of the column that was counted occurs."""
        return self._labels

    @placed
    def read(self, start: int, stop: int) -> dict[str, Any]:
        assert self.plan is not None
        with self._open() as file:
            rows = [cells for _, cells in islice(self._records(file, self._places[start // BLOCK]), stop - start)]
        if len(rows) < stop - start:
            raise OSError(f"it ended at row {start + len(rows):,}")
        return self.plan.ours({name: [cells.get(name) for cells in rows] for name in self.plan.theirs})

    def where(self, row: int) -> str:
        return f"{Path(self.path).name} row {row}"

    def _counted(self, label: str | None) -> tuple[int, list[int], list[tuple[Any, int]]]:
        rows, places, labels = 0, [], Counter[Any]()
        with self._open() as file:
            for place, cells in self._records(file, self._start):
                places += [place] if rows % BLOCK == 0 else []
                rows += 1
                if label is not None:
                    value = cells.get(label)
                    labels[value if isinstance(value, (str, int, float)) else None if value is None else str(value)] += 1
        return rows, places, list(labels.items())

    def _open(self) -> BinaryIO:
        try:
            return open(self.path, "rb")
        except OSError as error:
            raise NotanError(f"{self.path} cannot be read ({why(error)})", f"a {self.kind} file") from error

    def _head(self, lines: _Lines) -> tuple[list[str], int]:
        """The names of the columns, and where the rows start."""
        try:
            return _apart(next(self._cells(lines), [])), lines.place
        except (ValueError, csv.Error) as error:
            raise self._unreadable(lines, error) from error

    def _records(self, file: BinaryIO, place: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """(place in bytes, {column: cell}) of the rows from `place` on."""
        lines = _Lines(file, place)
        try:
            yield from self._table(lines) if self.text else self._objects(lines)
        except (ValueError, csv.Error) as error:  # no UTF-8, no JSON, an endless cell
            raise self._unreadable(lines, error) from error

    def _unreadable(self, lines: _Lines, error: Exception) -> NotanError:
        seen = f"{self.path} cannot be read as {self.kind[1:]} before byte {lines.place:,} ({why(error)})"
        wanted = "a table in UTF-8" if self.text else "UTF-8, with one JSON object on every line"
        return NotanError(seen, wanted, "repair the line, or leave out --stream if it is a file of another form")

    def _cells(self, lines: _Lines) -> Iterator[list[str]]:
        return csv.reader(lines, delimiter="\t" if self.kind == ".tsv" else ",")

    def _table(self, lines: _Lines) -> Iterator[tuple[int, dict[str, Any]]]:
        rows, place = self._cells(lines), lines.place
        for cells in rows:
            if len(cells) not in (0, len(self.header)):
                raise ValueError(f"{len(cells)} cells in a row, {len(self.header)} in the header")
            if cells:
                yield place, {name: cell if cell else None for name, cell in zip(self.header, cells)}
            place = lines.place

    def _objects(self, lines: _Lines) -> Iterator[tuple[int, dict[str, Any]]]:
        place = lines.place
        for line in lines:
            if line.strip():
                cells = json.loads(line, object_pairs_hook=once)
                if not isinstance(cells, dict):
                    raise ValueError(f"a line holds {'an array' if isinstance(cells, list) else 'no object'}, not {{...}}")
                yield place, cells
            place = lines.place


class _Lines:
    """The lines of a file as text, and the `place` where the next one starts, in bytes."""

    def __init__(self, file: BinaryIO, place: int = 0) -> None:
        self.file, self.place = file, file.seek(place)

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self.file.readline()
        if not line:
            raise StopIteration
        start, self.place = self.place, self.place + len(line)
        return line.decode("utf-8-sig" if start == 0 else "utf-8")


def _apart(header: list[str]) -> list[str]:
    """Names of columns, the second `text` as `text.1`: what pandas calls it, and so what it is called without streaming."""
    seen: Counter[str] = Counter()
    names = []
    for name in header:
        names.append(f"{name}.{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return names


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, which names everything once."""
    cells = dict(pairs)
    if len(cells) < len(pairs):
        twice = next(name for name, times in Counter(name for name, _ in pairs).items() if times > 1)
        raise ValueError(f"{twice!r} is there twice")
    return cells


def is_number(value: Any) -> bool:
    """Whether a cell is a number."""
    if isinstance(value, str):
        try:
            float(value)
        except ValueError:
            return False
        return True
    return isinstance(value, (int, float)) and not isinstance(value, bool)
