"""Shards: parts of data that does not fit, each of which knows its rows and reads blocks of them (see stream.py)."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, wraps
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from notan.data import keys
from notan.data.cache import cache_root, workers
from notan.data.folder import column_beside, find_pictures, lines_of, text_beside
from notan.data.pictures import Form, Part, header, why
from notan.data.plan import Plan, plan_of
from notan.errors import NotanError

BLOCK = 256  # rows, where a shard has no blocks of its own
GIANT = 1024  # rows: a row group of parquet with more is a shard of its own, in blocks of BLOCK


class Shard(Protocol):
    """A part of the data. `blocks` are (start, stop) of rows read at once; `seekable` if any order costs the same."""

    name: str
    blocks: list[tuple[int, int]]
    seekable: bool

    def read(self, start: int, stop: int) -> Mapping[str, Sequence[Any]]: ...  # columns of undecoded values

    def where(self, row: int) -> str: ...  # what a message calls a row


def placed(read: Callable[[Any, int, int], dict[str, Any]]) -> Callable[[Any, int, int], dict[str, Any]]:
    """The `read` of a shard, with errors that say where they happened."""

    @wraps(read)
    def inner(shard: Any, start: int, stop: int) -> dict[str, Any]:
        try:
            return read(shard, start, stop)
        except NotanError as error:
            raise NotanError(f"{shard.name}, rows {start:,} to {stop:,}: {error.seen}", error.wanted, error.fix) from error
        except Exception as error:  # files that went away, damaged pages, networks
            raise NotanError(
                f"{shard.name}, rows {start:,} to {stop:,} cannot be read ({type(error).__name__}: {why(error)})",
                "data that does not change while it is used", "put the file back or repair it, or open the data again",
            ) from error  # fmt: skip

    return inner


class ParquetShard:
    """A parquet file, whose blocks are its row groups; or one row group of it. Only used columns are read."""

    seekable = True

    def __init__(self, path: str | Path, plan: Plan | None = None, group: int | None = None) -> None:
        """`path` may be an address (hf://...). Before it is read it needs a `plan`."""
        self.name, self.path, self.plan, self.group = str(path), str(path), plan, group
        try:
            file = _parquet(self.path)
            self.about, schema = file.metadata, file.schema_arrow
        except Exception as error:
            raise NotanError(f"{path} cannot be read as parquet ({why(error)})", "a whole parquet file") from error
        self.found = list(schema.names)
        self.numeric = [f.name for f in schema if str(f.type).startswith(("int", "uint", "float", "double", "halffloat"))]
        self.features = _features(schema)
        counts = [self.about.row_group(i).num_rows for i in range(self.about.num_row_groups)]
        stops = np.cumsum([0, *counts]).tolist()
        self._first = 0 if group is None else stops[group]  # row of the file
        self.blocks = [(a, b) for a, b in pairwise(stops) if b > a] if group is None else blocks_of(counts[group])
        self._groups = {a: i for i, (a, b) in enumerate(pairwise(stops)) if b > a}

    @placed
    def read(self, start: int, stop: int) -> dict[str, Any]:
        plan = _planned(self.plan, self.name)
        if self.group is None:
            table = _group(self, self._groups[start], tuple(plan.theirs))
        else:
            table = _kept_group(self, self.group, tuple(plan.theirs)).slice(start, stop - start)
        return plan.ours({name: table.column(name).to_pylist() for name in plan.theirs})

    def where(self, row: int) -> str:
        return f"{os.path.basename(self.path)} row {self._first + row}"

    def labels(self, column: str) -> Counter[Any]:
        """How often each value of a column occurs."""
        groups = range(self.about.num_row_groups) if self.group is None else [self.group]
        return Counter(v for i in groups for v in _group(self, i, (column,)).column(0).to_pylist())


class FileShard:
    """A share of a folder of pictures: paths, their class numbers if they have classes, and the texts beside them, which are
    read with the block.
    """

    seekable = True

    def __init__(
        self, name: str, paths: Sequence[str], labels: Sequence[int] | None = None, root: str = "", texts: str = ""
    ) -> None:
        """`texts`: the column that the texts beside the pictures are, `text` or `captions`; "" where there are none."""
        self.name, self.paths, self.labels = name, list(paths), None if labels is None else list(labels)
        self.root, self.texts, self.blocks = root, texts, blocks_of(len(self.paths))

    def read(self, start: int, stop: int) -> dict[str, list[Any]]:
        columns: dict[str, list[Any]] = {"image": self.paths[start:stop]}
        if self.labels is not None:
            columns["label"] = self.labels[start:stop]
        if self.texts:
            columns[self.texts] = self._texts([text_beside(path) for path in columns["image"]])
        return columns

    def _texts(self, paths: Sequence[str]) -> list[Any]:
        found = [*lines_of(paths)]
        for path, lines in zip(paths, found):
            if not lines or (self.texts == "text" and len(lines) > 1):
                had = "one" if self.texts == "text" else "some"
                raise NotanError(f"{path} has {len(lines)} lines, and had {had} when the data was opened",
                                 "data that does not change while it is used", "open the data again")  # fmt: skip
        return found if self.texts == "captions" else [lines[0] for lines in found]

    def where(self, row: int) -> str:
        return os.path.relpath(self.paths[row], self.root) if self.root else self.paths[row]


class IterableShard:
    """A `datasets.IterableDataset` whose number of rows is known; read forwards, so its blocks keep their order."""

    seekable = False

    def __init__(self, dataset: Any, rows: int, columns: Mapping[str, str] | None = None) -> None:
        import datasets

        self.name, self.features = "stream", dict(dataset.features or {})
        for name, feature in self.features.items():
            if isinstance(feature, datasets.Image):
                dataset = dataset.cast_column(name, datasets.Image(decode=False))
        self.dataset, self.blocks = dataset, blocks_of(rows)
        self.found = list(self.features) or list(next(iter(dataset)))
        dtypes = {name: str(getattr(feature, "dtype", "")) for name, feature in self.features.items()}
        self.numeric = [name for name, dtype in dtypes.items() if dtype.startswith(("int", "uint", "float", "double"))]
        self.plan: Plan | None = Plan(plan_of(self.name, self.found, self.numeric, columns)[0])
        self._at, self._rows = 0, iter(dataset)

    @placed
    def read(self, start: int, stop: int) -> dict[str, Any]:
        if start != self._at:
            self._rows = iter(self.dataset.skip(start))
        found = list(islice(self._rows, stop - start))
        self._at = stop
        if len(found) < stop - start:
            raise NotanError(f"the stream ended at row {start + len(found):,} of {self.blocks[-1][1]:,}",
                             "as many rows as was said", "pass the true number of rows")  # fmt: skip
        plan = _planned(self.plan, self.name)
        return plan.ours({name: [row.get(name) for row in found] for name in plan.theirs})

    def where(self, row: int) -> str:
        return f"row {row}"


def shards_of(folder: str | Path, columns: Mapping[str, str] | None = None, rows: int = 4096) -> list[Shard]:
    """The shards of a folder: its parquet files, or its pictures by class in shares of `rows`, mixed by key."""
    files = sorted(Path(folder).rglob("*.parquet"))
    if files:
        shards = parquet_shards(files)
        plan = Plan(plan_of(shards[0].name, shards[0].found, shards[0].numeric, columns)[0], str(files[0].parent))
        for shard in shards:
            shard.plan = plan
        return [*shards]
    found, beside = find_pictures(Path(folder), columns)
    texts = column_beside(beside, Path(folder), cache_root())
    return [*file_shards(found.train["image"].paths, found.train.get("label"), str(folder), rows, texts)]


def parquet_shards(paths: Iterable[str | Path]) -> list[ParquetShard]:
    """One shard for each file, or for each row group of a file that has giant ones. Plans are still to be set."""
    with ThreadPoolExecutor(workers()) as pool:
        whole = list(pool.map(ParquetShard, paths))
    shards: list[ParquetShard] = []
    for shard in whole:
        groups = range(shard.about.num_row_groups)
        giant = max((b - a for a, b in shard.blocks), default=0) > GIANT
        shards += [ParquetShard(shard.path, None, i) for i in groups] if giant else [shard]
    return shards


def file_shards(
    paths: Sequence[str], labels: Sequence[int] | None, root: str, rows: int = 4096, texts: str = ""
) -> list[FileShard]:
    """Shares of picture files in an order by key, so that neighbours are not of one class."""
    names = np.array([keys.word(os.path.relpath(path, root)) for path in paths], dtype=np.int64)
    turn = np.argsort(keys.fold(keys.word("share"), names), kind="stable")
    cuts = [turn[a : a + rows] for a in range(0, len(turn), rows)]
    return [FileShard(f"{root} share {i}", [paths[j] for j in cut], None if labels is None else [int(labels[j]) for j in cut],
                      root, texts) for i, cut in enumerate(cuts)]  # fmt: skip


def undressed(value: Any) -> Any:
    """What `decode` takes of a cell: bytes, a path, or pixels; addresses (hf://...) are fetched."""
    if value is None:
        raise ValueError("there is none")
    if isinstance(value, Part):
        return value.read()
    if isinstance(value, list):
        from notan.data.tables import as_pixels

        return as_pixels(np.asarray([value]), "image")[0]
    if isinstance(value, str) and "://" in value:
        import fsspec

        with fsspec.open(value, "rb") as file:
            return file.read()
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


def _parquet(path: str, metadata: Any = None) -> Any:
    import pyarrow.parquet as pq

    if "://" not in path:
        return pq.ParquetFile(path, metadata=metadata)
    import fsspec

    return pq.ParquetFile(fsspec.open(path, "rb").open(), metadata=metadata)


def _group(shard: ParquetShard, group: int, columns: tuple[str, ...]) -> Any:
    return _parquet(shard.path, shard.about).read_row_group(group, columns=list(columns))


_kept_group = lru_cache(maxsize=4)(_group)  # giant row groups, which are read in many blocks


def _features(schema: Any) -> dict[str, Any]:
    """What `datasets` wrote into the file about its columns (the names of classes), if it did."""
    if b"huggingface" not in (schema.metadata or {}):
        return {}
    import datasets

    return dict(datasets.Features.from_arrow_schema(schema))


def _planned(plan: Plan | None, name: str) -> Plan:
    if plan is None:
        raise NotanError(f"{name} has no plan", "a plan says what its columns are", "shard.plan = Plan({'image': ['image']})")
    return plan


def blocks_of(rows: int) -> list[tuple[int, int]]:
    """Blocks of BLOCK rows."""
    return [(a, min(a + BLOCK, rows)) for a in range(0, rows, BLOCK)]
