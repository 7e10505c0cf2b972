"""Data that is streamed: its shards are found, a sample of its rows is kept at hand, and training reads the rest.

What does not fit is not copied or decoded before training starts. `Data.train` and `Data.test` are samples of at
most KEPT rows each, drawn by key from blocks all over the data; from the first come mean, std and the size of pictures.
Where there is no test split, its rows are held out and never trained on.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from notan.data import folder, keys
from notan.data.build import build
from notan.data.cache import HINT, workers
from notan.data.find import choose_splits, one_kind
from notan.data.hub import asking
from notan.data.lines import LineShard
from notan.data.pictures import Form, stamp_of
from notan.data.plan import Plan, plan_of
from notan.data.raw import Raw
from notan.data.sample import Kept, Rest, draw, everything, table_of
from notan.data.shards import IterableShard, ParquetShard, Shard, file_shards, parquet_shards
from notan.data.split import SHARE, split
from notan.data.table import Data, Streamed
from notan.data.tables import encode_labels
from notan.data.tars import TarShard, check_members, settle, tar_shards
from notan.errors import NotanError

KEPT = 4096  # rows of each split, at most
TableShard = ParquetShard | LineShard | IterableShard | TarShard


class Found(NamedTuple):
    """Shards of data, `test` empty where there is no such split."""

    name: str
    train: list[Shard]
    test: list[Shard]
    classes: tuple[str, ...]
    notes: list[str]
    stamp: str  # changes when the data changes


def open_stream(
    found: Found, cache: Path, *, cache_side: int | None, fit: str, cache_limit_gb: float, limit_bad: float
) -> Data:
    """Draw the sample and the test rows, and decode, check and describe them as data that fits would be."""
    shards, train, test, notes = _drawn(found)
    stamp = hashlib.blake2b(f"{found.stamp} {train.names} {test.names}".encode(), digest_size=8).hexdigest()
    raw = Raw(found.name, table_of(train, stamp), table_of(test, f"{stamp} test"), found.classes, notes, None, stamp)
    data = build(raw, cache, cache_side=cache_side, fit=fit, cache_limit_gb=cache_limit_gb, limit_bad=limit_bad)
    rows = _rows(shards)
    notes[:] = [note.replace(HINT, "") for note in notes]
    notes.append(f"Streamed: {rows:,} rows for training. {len(data.train):,} of them and {len(data.test):,} test rows are "
                 "kept at hand; mean, std and probes are theirs.")  # fmt: skip
    form = Form(data.info.image_size, data.info.channels or 3, fit) if data.info.image_size else None
    info = replace(data.info, rows=rows, notes=" ".join(notes))
    fingerprint = hashlib.blake2b(f"{data.fingerprint} {rows} {found.stamp}".encode(), digest_size=8).hexdigest()
    return Data(data.train, data.test, info, fingerprint, notes, Streamed(shards, form, info.columns, limit_bad))


def whole(found: Found) -> Raw:
    """All rows of the shards, as a reader of data that fits finds them."""
    tables, names = {}, list[str]()
    for split_name, shards in (("train", found.train), ("test", found.test)):
        if shards:
            kept = everything(shards)
            tables[split_name] = table_of(kept, f"{found.stamp} {split_name}")
            names = names or kept.names
    ids = np.array([keys.word(name) for name in names], dtype=np.int64)
    return Raw(found.name, tables["train"], tables.get("test"), found.classes, found.notes, ids, found.stamp)


def pictures(path: Path, cache: Path, columns: Mapping[str, str] | None = None) -> Found:
    """A folder of pictures by class; without a test split it is the one that data that fits gets."""
    raw, beside = folder.find_pictures(path, columns)
    texts = folder.column_beside(beside, path, cache)
    stores = raw.tables
    labels = {name: store.get("label") for name, store in stores.items()}
    parts = {name: np.arange(len(store["image"])) for name, store in stores.items()}
    if raw.test is None:
        parts["train"], parts["test"] = split(raw.ids if raw.ids is not None else parts["train"], labels["train"])
        raw.notes.append(f"Split by key: {len(parts['train']):,} rows for training, {len(parts['test']):,} for test.")
    shards: dict[str, list[Shard]] = {}
    for name, rows in parts.items():
        source = name if name in stores else "train"
        paths, label = stores[source]["image"].paths, labels[source]
        shards[name] = [*file_shards([paths[i] for i in rows], None if label is None else label[rows], str(path), texts=texts)]
    if not shards["train"] or not shards["test"]:
        raise NotanError(f"{raw.name} has {sum(map(len, parts.values()))} rows",
                         "at least 2: one to train on and one to test on")  # fmt: skip
    return Found(raw.name, shards["train"], shards["test"], raw.classes, raw.notes, raw.stamp)


def files(
    name: str, paths: Mapping[str, Sequence[Path]], columns: Mapping[str, str] | None, cache: Path, notes: Sequence[str] = ()
) -> Found:
    """Table files of one kind, by split."""
    every = [path for some in paths.values() for path in some]
    suffix, notes = one_kind(name, every), [*notes]
    shards: dict[str, list[Any]] = {}
    for part, some in paths.items():
        if suffix == ".parquet":
            shards[part] = parquet_shards(some)
        elif suffix == ".tar":
            shards[part] = tar_shards(some, cache)
            notes += [f"{part}: {note}" if len(paths) > 1 else note for note in settle(shards[part])]
        else:
            with ThreadPoolExecutor(workers()) as pool:
                shards[part] = list(pool.map(LineShard, some))
    bases = {part: str(some[0].parent) for part, some in paths.items()}
    return _tables(name, shards, columns, bases, cache, notes, stamp_of(sorted(map(str, every))))


def hub(spec: str, columns: Mapping[str, str] | None, advice: str) -> Found:
    """A name on the hub of `datasets`: its parquet files, read where they are; what is no parquet as one long stream."""
    import datasets

    name, _, config = spec.partition(":")
    with asking(name, spec, advice):
        builder = datasets.load_dataset_builder(name, config or None)
        paths = dict(getattr(builder.config, "data_files", None) or {})
        if not paths:
            raise NotanError(f"{spec} has been downloaded as a whole", "data that is on the hub", "leave out --stream")
        parts, notes = choose_splits([*paths])
        every = [str(path) for part in paths.values() for path in part]
        shards: dict[str, list[Any]] = {}
        for ours, theirs in parts.items():
            if all(path.endswith(".parquet") for path in every):
                shards[ours] = parquet_shards(map(str, paths[theirs]))
            else:
                rows = ((builder.info.splits or {}).get(theirs) or datasets.SplitInfo()).num_examples
                if not rows:
                    raise NotanError(f"{spec} is not in parquet files and does not say how many rows it has",
                                     "parquet files, or `num_examples` in its description", "leave out --stream")  # fmt: skip
                dataset = datasets.load_dataset(name, config or None, split=theirs, streaming=True)
                shards[ours] = [IterableShard(dataset, rows, columns)]
        stamp = " ".join(str(getattr(part, "origin_metadata", "")) for part in paths.values())
        return _tables(spec, shards, columns, {}, None, notes, f"{builder.hash} {stamp}", builder.info.features or {})


def _tables(name: str, shards: Mapping[str, list[TableShard]], columns: Mapping[str, str] | None, bases: Mapping[str, str],
            cache: Path | None, notes: list[str], stamp: str, features: Mapping[str, Any] | None = None) -> Found:  # fmt: skip
    """Give all shards one plan, with one number for each class. `bases`: the folders that paths of pictures are relative to."""
    first, every = shards["train"][0], [shard for some in shards.values() for shard in some]
    sources, said = plan_of(first.name, first.found, first.numeric, columns)
    for ours in [ours for ours, theirs in sources.items() if set(theirs) - set(shards.get("test", [first])[0].found)]:
        said.append(f"Column {sources.pop(ours)[0]} is not in the test split and is left out.")
    theirs = Plan(sources).theirs
    for shard in every:
        if missing := [column for column in theirs if column not in shard.found]:
            raise NotanError(
                f"{shard.name} has the columns {', '.join(shard.found)}, and no {missing[0]!r} as {first.name} has",
                f"{', '.join(theirs)} in every file", "leave the file out, or rename its columns",
            )  # fmt: skip
    said += check_members(name, [shard for shard in every if isinstance(shard, TarShard)], theirs)
    label = sources.get("label", [None])[0]
    _count(every, label, cache)
    classes, codes = _classes(shards, label, features or {}) if label is not None else ((), None)
    for part, some in shards.items():
        for shard in some:
            shard.plan = Plan(sources, bases.get(part, ""), codes)
    filled = {part: [shard for shard in some if shard.blocks] for part, some in shards.items()}
    for part, some in filled.items():
        if not some:
            raise NotanError(f"{name}: the {part} split has no rows", "at least one row")
    return Found(name, [*filled["train"]], [*filled.get("test", [])], classes, notes + said, f"{stamp} {sources}")


def _count(shards: Iterable[TableShard], label: str | None, cache: Path | None) -> None:
    """Read text files through, and the labels of tars, those that have not been read before."""
    with ThreadPoolExecutor(workers()) as pool:
        for _ in pool.map(lambda shard: shard.count(label, cache), (s for s in shards if isinstance(s, (LineShard, TarShard)))):
            pass


def _classes(
    shards: Mapping[str, list[TableShard]], column: str, features: Mapping[str, Any]
) -> tuple[tuple[str, ...], dict[Any, int]]:
    """Names of classes, and {label: class number}: as `datasets` says, else from the labels of all rows."""
    first = shards["train"][0]
    names = getattr(features.get(column) or first.features.get(column), "names", None)
    if names:
        return tuple(names), {i: i for i in range(len(names))} | {name: i for i, name in enumerate(names)}
    counts: dict[str, Counter[Any]] = {}
    for part, some in shards.items():
        if any(isinstance(shard, IterableShard) for shard in some):
            raise NotanError(f"the stream does not say which classes column {column!r} has", "a label with named classes",
                             f"leave the labels out with --column {column}=, or leave out --stream")  # fmt: skip
        counts[part] = sum((shard.labels(column) for shard in some if not isinstance(shard, IterableShard)), Counter())
    for part, found in counts.items():
        if missing := sum(n for value, n in found.items() if value is None or value == "" or value != value):
            raise NotanError(
                f"column {column!r} is empty or NaN in {missing:,} of {sum(found.values()):,} rows of the {part} split",
                "a label in every row", f"fill or remove these rows, or leave the column out with --column {column}=",
            )  # fmt: skip
    every = list({value for found in counts.values() for value in found})
    classes, numbers = encode_labels({"train": _numbers(every) if getattr(first, "text", False) else every})
    return classes, dict(zip(every, numbers["train"].tolist()))


def _numbers(values: list[Any]) -> list[Any]:
    """The values of text cells: numbers when all are numbers."""
    try:
        return [float(value) for value in values]
    except ValueError:
        return values


def _drawn(found: Found) -> tuple[list[Shard], Kept, Kept, list[str]]:
    """Shards to train on, and the rows that are kept of them and for test."""
    notes, rows = list(found.notes), _rows(found.train)
    if found.test:
        train, test = draw(found.train, [min(KEPT, rows)])[0], draw(found.test, [min(KEPT, _rows(found.test))])[0]
        return found.train, train, test, notes
    if rows < 2:
        raise NotanError(f"{found.name} has {rows} rows", "at least 2: one to train on and one to test on")
    held = min(max(round(SHARE * rows), 1), KEPT)
    test, train = draw(found.train, [held, min(KEPT, rows - held)])
    shards: list[Shard] = []
    for s, shard in enumerate(found.train):
        rest = Rest(shard, {a: places for (of, a), places in test.places.items() if of == s and len(places)})
        shards += [rest] if rest.blocks else []
    notes.append(f"{len(test.names):,} rows, by key, are held out for test.")
    return shards, train, test, notes


def _rows(shards: Iterable[Shard]) -> int:
    return sum(b - a for shard in shards for a, b in shard.blocks)
