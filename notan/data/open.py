"""open_data: from a name, a folder or a file to `Data`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from notan import catalogue
from notan.data import folder, streamed, tables
from notan.data.build import build
from notan.data.cache import cache_root
from notan.data.columns import COLUMNS
from notan.data.find import KINDS, expanded, one_kind, tables_of
from notan.data.members import PACKED, packed
from notan.data.pictures import FITS, Pixels
from notan.data.raw import Raw
from notan.data.sources._fetch import Unreachable, say
from notan.data.table import Data
from notan.errors import NotanError, did_you_mean


def open_data(
    spec: str | os.PathLike | Data, *, cache_side: int | None = None, fit: str = "crop", cache_limit_gb: float = 8,
    columns: Mapping[str, str] | None = None, limit_bad: float = 0.01, stream: bool = False,
) -> Data:  # fmt: skip
    """Open data for training and evaluation.

    `spec` is a built-in source, a folder (of pictures by class, with or without train/ and test/; of parquet, jsonl or
    csv files, or of tars in WebDataset's layout; written by `datasets.save_to_disk`), such a file, several of them as
    shards-{000..009}.tar, or a name on the hub of `datasets`. `Data` is returned as it is. `columns` says what a table's
    columns are: {"theirs": "image"}; an empty value leaves one out, as {"text": ""} does the texts beside pictures.

    Pictures become uint8 (C, S, S), one channel when all are grey, else three. S is `cache_side` (96 when None), never
    above the median of their shorter sides; `fit` is crop, pad or squash; beside a `segmentation` they keep their size.
    They are decoded once into a memory-mapped cache, or on the fly where that would pass `cache_limit_gb`.

    With `stream` the training rows are read in shards as they are needed, and nothing is copied or decoded before: a
    folder of pictures and the texts beside them, table files, tars, or a hub name. `Data.train` and `Data.test` are then
    samples of at most 4,096 rows each, for looks, probes, mean and std; training reads `Data.streamed` (see `streamed.py`).

    Raises NotanError: nothing found, no rows, missing labels, or more than the share `limit_bad` of pictures
    unreadable (those below are skipped and named in `notes`).
    """
    if isinstance(spec, Data):
        return spec
    if fit not in FITS:
        raise NotanError(f"fit {fit!r}", f"one of {', '.join(FITS)}", did_you_mean(fit, FITS))
    if cache_side is not None and cache_side < 1:
        raise NotanError(f"a cache side of {cache_side} pixels", "at least 1")
    if stream:
        found = streamed.open_stream(_streamed(str(spec), columns), cache_root(), cache_side=cache_side, fit=fit,
                                     cache_limit_gb=cache_limit_gb, limit_bad=limit_bad)  # fmt: skip
    else:
        found = build(read(str(spec), columns), cache_root(), cache_side=cache_side, fit=fit, cache_limit_gb=cache_limit_gb,
                      limit_bad=limit_bad)  # fmt: skip
    return replace(found, spec=str(spec))


def read(spec: str, columns: Mapping[str, str] | None = None) -> Raw:
    """Find the data and its columns; pictures are not opened yet."""
    if paths := expanded(spec):
        return _tables(paths[0].parent.name, {"train": paths}, columns, [])
    kind, path = _kind(spec)
    if kind == "source":
        if columns:
            raise NotanError(f"{spec} is a built-in source: it has no columns to rename", "", "leave out --column")
        return _source(spec, catalogue.sources())
    if kind == "saved":
        return tables.read_saved(path, columns)
    if kind == "folder":
        return _folder(path, columns)
    if kind == "file":
        return _tables(path.stem, {"train": [path]}, columns, [])
    return tables.read_hub(spec, columns, did_you_mean(spec, catalogue.sources()))


def _kind(spec: str) -> tuple[str, Path]:
    """What `spec` names: "source", "saved" (by `datasets`), "folder", "file" or, where it may be a name, "hub"."""
    sources, path = catalogue.sources(), Path(spec).expanduser()
    if spec in sources:
        return "source", path
    if path.is_dir():
        saved = (path / "dataset_dict.json").exists() or (path / "dataset_info.json").exists()
        return "saved" if saved else "folder", path.resolve()
    if path.is_file():
        if path.name.lower().endswith(PACKED):
            raise packed(spec)
        if path.suffix.lower() not in KINDS:
            seen = f"{spec} is a {path.suffix or 'file without suffix'}"
            raise NotanError(seen, f"a folder, or one of {', '.join(KINDS)}")
        return "file", path.resolve()
    advice = did_you_mean(spec, sources)
    looks_like_path = spec.startswith((".", "/", "~")) or spec.count("/") > 1 or path.suffix.lower() in KINDS
    if looks_like_path or ("/" not in spec and advice.startswith("did you mean")) or not spec:
        raise NotanError(f"there is no file, folder or built-in source {spec!r}",
                         "a path, a source of `notan list data`, or a `datasets` name", advice)  # fmt: skip
    return "hub", path


def _streamed(spec: str, columns: Mapping[str, str] | None) -> streamed.Found:
    """Find the data and its shards."""
    if paths := expanded(spec):
        return streamed.files(paths[0].parent.name, {"train": paths}, columns, cache_root())
    kind, path = _kind(spec)
    if kind in ("source", "saved"):
        why = "a built-in source" if kind == "source" else "read from disk as it is"
        raise NotanError(f"{spec} is {why}: it needs no streaming", "table files, tars, a folder of pictures, or a hub name",
                         "leave out --stream")  # fmt: skip
    if kind == "hub":
        return streamed.hub(spec, columns, did_you_mean(spec, catalogue.sources()))
    files, notes = tables_of(path) if kind == "folder" else ({"train": [path]}, [])
    if files:
        name = path.name if kind == "folder" else path.stem
        return streamed.files(name, files, columns, cache_root(), notes)
    found = streamed.pictures(path, cache_root(), columns)
    found.notes.extend(note for note in notes if note not in found.notes)
    return found


def _source(name: str, sources: dict[str, dict[str, Any]]) -> Raw:
    from filelock import FileLock

    module = import_module(f"notan.data.sources.{name.replace('-', '_')}")
    home = cache_root() / "sources" / name
    try:
        try:
            home.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(str(home) + ".lock"):  # two ranks, or two runs, fetch it once
                found = module.load(home)
        except OSError as error:
            seen = f"the cache {home} cannot be written ({error.strerror or error})"
            raise NotanError(seen, "a folder with room", "set NOTAN_CACHE to another folder") from error
    except Unreachable as error:
        fallback = sources[name].get("fallback")
        if not fallback:
            raise
        say(f"{error.seen}; opening {fallback} instead")
        raw = _source(fallback, sources)
        raw.notes.insert(0, f"{name} could not be reached, so this is {fallback}. {error.seen}.")
        return raw
    splits = {s: {c: Pixels(v, f"{name} {s} {c}") if COLUMNS[c].picture and isinstance(v, np.ndarray) else v
                  for c, v in found[s].items()} for s in ("train", "test") if s in found}  # fmt: skip
    ids = found.get("ids")
    return Raw(name, splits["train"], splits.get("test"), tuple(found.get("classes", ())),
               list(found.get("notes", ())), ids, name)  # fmt: skip


def _folder(path: Path, columns: Mapping[str, str] | None) -> Raw:
    files, notes = tables_of(path)
    if not files:
        raw = folder.read_pictures(path, columns)
        raw.notes += [note for note in notes if note not in raw.notes]
        return raw
    return _tables(path.name, files, columns, notes)


def _tables(name: str, files: Mapping[str, Sequence[Path]], columns: Mapping[str, str] | None, notes: list[str]) -> Raw:
    """Table files of one kind, by split."""
    if one_kind(name, [path for paths in files.values() for path in paths]) == ".tar":
        return streamed.whole(streamed.files(name, files, columns, cache_root(), notes))
    raw = tables.read_files(name, files, columns, cache_root())
    raw.notes += notes
    return raw
