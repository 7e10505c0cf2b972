"""open_data: from a name, a folder or a file to `Data`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from notan import catalogue
from notan.data import folder, tables
from notan.data.build import build
from notan.data.columns import COLUMNS
from notan.data.pictures import FITS, Pixels
from notan.data.raw import Raw
from notan.data.sources._fetch import Unreachable, say
from notan.data.table import Data
from notan.errors import NotanError, did_you_mean


def cache_root() -> Path:
    """Where decoded pixels and fetched sources are kept: `$NOTAN_CACHE`, else `~/.cache/notan`."""
    return Path(os.environ.get("NOTAN_CACHE") or Path.home() / ".cache" / "notan")


def open_data(
    spec: str | os.PathLike | Data, *, cache_side: int | None = None, fit: str = "crop", cache_limit_gb: float = 8,
    columns: Mapping[str, str] | None = None, limit_bad: float = 0.01,
) -> Data:  # fmt: skip
    """Open data for training and evaluation.

    `spec` is a built-in source, a folder (of pictures by class, with or without train/ and test/; of parquet, jsonl or
    csv files; written by `datasets.save_to_disk`), such a file, or a name on the hub of `datasets`. `Data` is returned
    as it is. `columns` says what a table's columns are: {"theirs": "image"}; an empty value leaves one out.

    Pictures become uint8 (C, S, S), one channel when all are grey, else three. S is `cache_side` (96 when None), never
    above the median of their shorter sides; `fit` is crop, pad or squash; beside a `segmentation` they keep their size.
    They are decoded once into a memory-mapped cache, or on the fly where that would pass `cache_limit_gb`.

    Raises NotanError: nothing found, no rows, missing labels, or more than the share `limit_bad` of pictures
    unreadable (those below are skipped and named in `notes`).
    """
    if isinstance(spec, Data):
        return spec
    if fit not in FITS:
        raise NotanError(f"fit {fit!r}", f"one of {', '.join(FITS)}", did_you_mean(fit, FITS))
    if cache_side is not None and cache_side < 1:
        raise NotanError(f"a cache side of {cache_side} pixels", "at least 1")
    raw = read(str(spec), columns)
    return build(raw, cache_root(), cache_side=cache_side, fit=fit, cache_limit_gb=cache_limit_gb, limit_bad=limit_bad)


def read(spec: str, columns: Mapping[str, str] | None = None) -> Raw:
    """Find the data and its columns; pictures are not opened yet."""
    sources = catalogue.sources()
    path = Path(spec).expanduser()
    if spec in sources:
        if columns:
            raise NotanError(f"{spec} is a built-in source: it has no columns to rename", "", "leave out --columns")
        return _source(spec, sources)
    if path.is_dir():
        return _folder(path.resolve(), columns)
    if path.is_file():
        if path.suffix.lower() not in tables.KINDS:
            raise NotanError(f"{spec} is a {path.suffix or 'file without suffix'}", f"a folder, or one of {_kinds()}")
        return tables.read_files(path.stem, {"train": [path.resolve()]}, columns, cache_root())
    advice = did_you_mean(spec, sources)
    looks_like_path = spec.startswith((".", "/", "~")) or spec.count("/") > 1 or path.suffix.lower() in tables.KINDS
    if looks_like_path or ("/" not in spec and advice.startswith("did you mean")) or not spec:
        raise NotanError(f"there is no file, folder or built-in source {spec!r}",
                         "a path, a source of `notan list data`, or a `datasets` name", advice)  # fmt: skip
    return tables.read_hub(spec, columns, advice)


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
    if (path / "dataset_dict.json").exists() or (path / "dataset_info.json").exists():
        return tables.read_saved(path, columns)
    folders, notes = folder.split_folders(path)
    files, others = folder.picture_files(path)
    tabular = {name: _tables_in(where) for name, where in folders.items()}
    if files and not any(paths and paths[0].stem == "metadata" for paths in tabular.values()):
        if columns:
            raise NotanError(f"{path} is a folder of pictures: it has no columns to rename", "", "leave out --columns")
        return folder.read_pictures(path)
    if list(folders) == ["train"]:  # train.parquet, test.parquet side by side
        tabular = _by_name(tabular["train"])
    if any(tabular.values()):
        raw = tables.read_files(path.name, {n: p for n, p in tabular.items() if p}, columns, cache_root())
        raw.notes += notes
        return raw
    there = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(5))
    raise NotanError(
        f"{path} has no pictures and no tables" + (f" (it has {there})" if there else ": it is empty"),
        f"pictures (jpg, png, ...) in one folder per class, or files of {_kinds()}",
    )


def _tables_in(where: Path) -> list[Path]:
    found = sorted(p for p in where.rglob("*") if p.suffix.lower() in tables.KINDS and not p.name.startswith("."))
    named = [p for p in found if p.stem == "metadata"]
    return named[:1] or found


def _by_name(paths: list[Path]) -> dict[str, list[Path]]:
    """Files named after splits (train-00000-of-00002.parquet, test.csv), else all of them as one table."""
    word = {path: path.stem.lower().replace("_", "-").split("-")[0].split(".")[0] for path in paths}
    train, test = folder.pick_splits(list(word.values()))
    if not train:
        return {"train": paths}
    names = {"train": train} | ({"test": test} if test else {})
    return {name: [p for p in paths if word[p] == w] for name, w in names.items()}


def _kinds() -> str:
    return ", ".join(tables.KINDS)
