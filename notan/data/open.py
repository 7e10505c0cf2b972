"""open_data: from a name, a folder or a file to `Data`."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from notan import catalogue
from notan.data.columns import COLUMNS, DataInfo
from notan.data.sources._fetch import Unreachable, say
from notan.data.split import split
from notan.data.table import Data, Rows
from notan.errors import NotanError, did_you_mean


def cache_root() -> Path:
    """Where decoded pixels and fetched sources are kept: `$NOTAN_CACHE`, else `~/.cache/notan`."""
    return Path(os.environ.get("NOTAN_CACHE") or Path.home() / ".cache" / "notan")


@dataclass
class Raw:
    """What a reader found, before splitting, checking and decoding."""

    name: str
    train: dict[str, Any]
    test: dict[str, Any] | None
    classes: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)
    ids: np.ndarray | None = None  # int64 names of the train rows for the split; the row number when None
    stamp: str = ""  # changes when the data changes


def open_data(
    spec: str | os.PathLike | Data, *, cache_side: int | None = None, fit: str = "crop", cache_limit_gb: float = 8,
    columns: dict[str, str] | None = None, limit_bad: float = 0.01,
) -> Data:  # fmt: skip
    """Open data by the name of a built-in source, a folder, a file, or a `datasets` name."""
    if isinstance(spec, Data):
        return spec
    raw = read(str(spec), columns)
    return build(raw)


def read(spec: str, columns: dict[str, str] | None = None) -> Raw:
    sources = catalogue.sources()
    if spec in sources:
        return _source(spec, sources)
    raise NotanError(f"there is no data {spec!r}", "a source, a folder or a file", did_you_mean(spec, sources))


def _source(name: str, sources: dict[str, dict[str, Any]]) -> Raw:
    module = import_module(f"notan.data.sources.{name.replace('-', '_')}")
    try:
        found = module.load(cache_root() / "sources" / name)
    except Unreachable as error:
        fallback = sources[name].get("fallback")
        if not fallback:
            raise
        say(f"{error.seen}; opening {fallback} instead")
        raw = _source(fallback, sources)
        raw.notes.insert(0, f"{name} could not be reached, so this is {fallback}: {error.seen}")
        return raw
    return Raw(name, found["train"], found.get("test"), tuple(found.get("classes", ())), list(found.get("notes", ())))


def build(raw: Raw) -> Data:
    train, test = _split(raw)
    for name in train.columns:
        if COLUMNS[name].light:
            COLUMNS[name].check(name, np.asarray(train.stores[name]))
    image = train.stores.get("image")
    mean, std = moments(train) if image is not None else ((), ())
    info = DataInfo(
        name=raw.name, rows=len(train), columns=train.columns, classes=raw.classes, mean=mean, std=std,
        image_size=None if image is None else image.shape[2], channels=None if image is None else image.shape[1],
        target_range=_range(train), notes=" ".join(raw.notes),
    )  # fmt: skip
    stamp = hashlib.blake2b(f"{raw.name} {raw.stamp} {len(train)} {len(test)}".encode(), digest_size=8).hexdigest()
    return Data(train, test, info, stamp, raw.notes)


def _split(raw: Raw) -> tuple[Rows, Rows]:
    if raw.test is not None:
        return Rows(raw.train), Rows(raw.test)
    n = len(next(iter(raw.train.values())))
    labels = raw.train.get("label")
    a, b = split(np.arange(n) if raw.ids is None else raw.ids, labels)
    how = "by key" if labels is None else "by key, stratified by label"
    raw.notes.append(f"Split {how}: {len(a):,} rows for training, {len(b):,} for test.")
    return Rows(raw.train, a), Rows(raw.train, b)


def _range(rows: Rows) -> tuple[float, float] | None:
    if "target" not in rows.columns:
        return None
    target = rows.values("target")
    return float(target.min()), float(target.max())


def moments(rows: Rows, most: int = 50_000_000) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of pixels in [0, 1]; of evenly spaced rows when there are many."""
    first = rows.take(np.arange(1))["image"]
    count = max(min(len(rows), most // first.numel()), 1)
    index = np.linspace(0, len(rows) - 1, count).astype(np.int64)
    channels = first.shape[1]
    histogram = np.zeros((channels, 256), dtype=np.int64)
    for part in np.array_split(index, max(count // 2048, 1)):
        image = rows.take(part)["image"].numpy()
        for c in range(channels):
            histogram[c] += np.bincount(image[:, c].ravel(), minlength=256)
    level, total = np.arange(256) / 255, histogram.sum(1)
    mean = histogram @ level / total
    std = np.sqrt(np.maximum(histogram @ level**2 / total - mean**2, 0))
    return tuple(map(float, mean)), tuple(float(s) if s > 1e-4 else 1.0 for s in std)
