"""Shards: parts of data that does not fit, each of which knows its rows and reads blocks of them (see stream.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from notan.data.columns import COLUMNS, rename
from notan.data.folder import read_pictures
from notan.data.pictures import Form, header, why
from notan.errors import NotanError

BLOCK = 256  # rows, where a shard has no blocks of its own


class Shard(Protocol):
    """A part of the data. `blocks` are (start, stop) of rows read at once; `seekable` if any order costs the same."""

    name: str
    blocks: list[tuple[int, int]]
    seekable: bool

    def read(self, start: int, stop: int) -> dict[str, list[Any]]: ...  # columns of undecoded values


class ParquetShard:
    """A parquet file; its blocks are its row groups. Only the columns that are used are read."""

    seekable = True

    def __init__(self, path: str | Path, columns: Mapping[str, str] | None = None) -> None:
        import pyarrow.parquet as pq

        self.name, self.path = str(path), str(path)
        try:
            about = pq.ParquetFile(self.path)
        except Exception as error:
            raise NotanError(f"{path} cannot be read as parquet ({why(error)})", "a whole parquet file") from error
        plan = rename(list(about.schema_arrow.names), columns)
        self.plan = {ours: theirs[0] for ours, theirs in plan.items()}
        if not self.plan:
            raise NotanError(f"{path} has the columns {', '.join(about.schema_arrow.names)}, none of which Notan knows",
                             f"one of {', '.join(COLUMNS)}", "columns={'theirs': 'image'}")  # fmt: skip
        counts = [about.metadata.row_group(i).num_rows for i in range(about.metadata.num_row_groups)]
        stops = np.cumsum([0, *counts]).tolist()
        self.blocks = [(a, b) for a, b in pairwise(stops) if b > a]
        self._groups = {a: i for i, (a, b) in enumerate(pairwise(stops)) if b > a}

    def read(self, start: int, stop: int) -> dict[str, list[Any]]:
        import pyarrow.parquet as pq

        group = pq.ParquetFile(self.path).read_row_group(self._groups[start], columns=list(self.plan.values()))
        return {ours: group.column(theirs).to_pylist() for ours, theirs in self.plan.items()}


class FileShard:
    """A share of a folder of pictures: paths, and their class numbers if they have classes."""

    seekable = True

    def __init__(self, name: str, paths: Sequence[str], labels: Sequence[int] | None = None) -> None:
        self.name, self.paths, self.labels = name, list(paths), None if labels is None else list(labels)
        self.blocks = _blocks(len(self.paths))

    def read(self, start: int, stop: int) -> dict[str, list[Any]]:
        columns: dict[str, list[Any]] = {"image": self.paths[start:stop]}
        return columns if self.labels is None else columns | {"label": self.labels[start:stop]}


class IterableShard:
    """A `datasets.IterableDataset` whose number of rows is known; read forwards, so its blocks keep their order."""

    seekable = False

    def __init__(self, dataset: Any, rows: int, columns: Mapping[str, str] | None = None) -> None:
        import datasets

        self.name = "stream"
        for name, feature in (dataset.features or {}).items():
            if isinstance(feature, datasets.Image):
                dataset = dataset.cast_column(name, datasets.Image(decode=False))
        self.dataset, self.blocks, self._wishes = dataset, _blocks(rows), columns
        self._at, self._rows = 0, iter(dataset)

    def read(self, start: int, stop: int) -> dict[str, list[Any]]:
        if start != self._at:
            self._rows = iter(self.dataset.skip(start))
        found = list(islice(self._rows, stop - start))
        self._at = stop
        if len(found) < stop - start:
            raise NotanError(f"the stream ended at row {start + len(found):,} of {self.blocks[-1][1]:,}",
                             "as many rows as was said", "pass the true number of rows")  # fmt: skip
        plan = {ours: theirs[0] for ours, theirs in rename(list(found[0]), self._wishes).items()}
        return {ours: [row[theirs] for row in found] for ours, theirs in plan.items()}


def shards_of(folder: str | Path, columns: Mapping[str, str] | None = None, rows: int = 4096) -> list[Shard]:
    """The shards of a folder: its parquet files, or its pictures by class in shares of `rows`."""
    files = sorted(Path(folder).rglob("*.parquet"))
    if files:
        return [ParquetShard(path, columns) for path in files]
    found = read_pictures(Path(folder))
    paths, label = found.train["image"].paths, found.train.get("label")
    cuts = [slice(a, a + rows) for a in range(0, len(paths), rows)]
    return [FileShard(f"{folder} {c.start}", paths[c], None if label is None else label[c].tolist()) for c in cuts]


def undressed(value: Any) -> Any:
    """What `decode` takes of a cell: bytes or a path, also out of {"bytes", "path"}."""
    if isinstance(value, dict):
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if value is None:
        raise ValueError("the cell is empty")
    return value


def form_of(shard: Shard, side: int, fit: str = "crop") -> Form:
    """A form for a stream, from the first block of a shard: three channels unless all its pictures are grey."""
    channels, short = set(), []
    for value in shard.read(*shard.blocks[0])["image"]:
        try:
            width, height, planes = header(undressed(value))
        except Exception:
            continue
        channels.add(planes)
        short.append(min(width, height))
    if not short:
        raise NotanError(f"no picture of the first rows of {shard.name} can be read", "pictures")
    return Form(min(side, int(np.median(short))), channels.pop() if len(channels) == 1 else 3, fit)


def _blocks(rows: int) -> list[tuple[int, int]]:
    return [(a, min(a + BLOCK, rows)) for a in range(0, rows, BLOCK)]
