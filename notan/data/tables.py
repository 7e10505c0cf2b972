"""Tables: parquet, jsonl, csv, saved `datasets` folders and hub names, through `datasets` (Arrow, memory-mapped)."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from notan.data import keys
from notan.data.columns import COLUMNS
from notan.data.find import KINDS, choose_splits, one_kind
from notan.data.hub import asking, silence
from notan.data.pictures import Encoded, Files, Pixels, stamp_of
from notan.data.plan import plan_of, values_of
from notan.data.raw import Raw
from notan.errors import NotanError


def read_files(name: str, files: Mapping[str, Sequence[Path]], columns: Mapping[str, str] | None, cache: Path) -> Raw:
    """Table files of one kind, by split. Paths of pictures in them are relative to the folder of their split's first file."""
    every = [path for paths in files.values() for path in paths]
    suffix = one_kind(name, every)
    extra: dict[str, Any] = {"sep": "\t"} if suffix == ".tsv" else {}
    import datasets

    with silence():
        try:
            found = datasets.load_dataset(
                KINDS[suffix], data_files={split: [str(p) for p in paths] for split, paths in files.items()},
                cache_dir=str(cache / "datasets"), **extra,
            )  # fmt: skip
        except Exception as error:  # whatever a parser can raise
            cause = (str(error.__cause__ or error).splitlines() or [type(error).__name__])[0][:200]
            if "space" in cause.lower() and isinstance(error.__cause__ or error, OSError):
                raise NotanError(f"{name} does not fit on the disk of {cache} ({cause})", "room for a copy of the tables",
                                 "free some space, set NOTAN_CACHE to another disk, or read the files where they are: "
                                 "--stream") from error  # fmt: skip
            if empty := _rowless(files, suffix):
                raise NotanError(f"{empty[0]} has no rows", "at least one row", "remove the file, or fill it") from error
            raise NotanError(f"{every[0]} cannot be read as {KINDS[suffix]} ({cause})", f"a {suffix} file") from error
    bases = {split: paths[0].parent for split, paths in files.items()}
    return from_splits(name, dict(found), columns, bases, stamp_of(sorted(map(str, every))))


def _rowless(files: Mapping[str, Sequence[Path]], suffix: str) -> list[Path]:
    """The files without rows that `datasets` cannot read: of parquet any, of texts those of a split that has no others."""
    empty = {split: [path for path in paths if not _has_rows(path, suffix)] for split, paths in files.items()}
    return [path for split, paths in empty.items() if suffix == ".parquet" or len(paths) == len(files[split]) for path in paths]


def _has_rows(path: Path, suffix: str) -> bool:
    """Whether a table file has a row, as far as can be told: True where it cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if suffix == ".parquet":
            return pq.read_metadata(path).num_rows > 0
        with open(path, "rb") as file:
            lines = [*islice((text for line in file if (text := line.strip())), 2)]
    except (OSError, pa.ArrowException):
        return True
    return len(lines) > (suffix in (".csv", ".tsv")) and lines != [b"[]"]


def read_saved(folder: Path, columns: Mapping[str, str] | None) -> Raw:
    """A folder written by `save_to_disk`."""
    import datasets

    try:
        found = datasets.load_from_disk(str(folder))
    except Exception as error:
        raise NotanError(f"{folder} is not a whole `datasets` folder ({error})", "what save_to_disk wrote") from error
    splits = dict(found) if isinstance(found, datasets.DatasetDict) else {"train": found}
    stamp = " ".join(d._fingerprint for d in splits.values())
    return from_splits(folder.name, splits, columns, dict.fromkeys(splits, folder), stamp)


def read_hub(spec: str, columns: Mapping[str, str] | None, advice: str) -> Raw:
    """`owner/name` or `owner/name:configuration` on the hub of `datasets`."""
    import datasets

    name, _, config = spec.partition(":")
    with asking(name, spec, advice):
        found = datasets.load_dataset(name, config or None)
    return from_splits(spec, dict(found), columns, {}, " ".join(d._fingerprint for d in found.values()))


def from_splits(
    name: str, splits: Mapping[str, Any], columns: Mapping[str, str] | None, bases: Mapping[str, Path], stamp: str
) -> Raw:
    """`datasets.Dataset`s by split name -> Raw. `bases` are the folders that paths of pictures in them are relative to."""
    named, notes = choose_splits(list(splits))
    chosen = {split: splits[theirs] for split, theirs in named.items()}
    for split, dataset in chosen.items():
        if not len(dataset):
            raise NotanError(f"{name}: the {split} split has no rows", "at least one row")
    found = list(chosen["train"].column_names)
    plan, said = plan_of(name, found, _numeric(chosen["train"]), columns)
    notes += said
    tables: dict[str, dict[str, Any]] = {split: {} for split in chosen}
    classes: tuple[str, ...] = ()
    for ours, theirs in plan.items():
        absent = [s for s, d in chosen.items() if set(theirs) - set(d.column_names)]
        if absent:
            notes.append(f"Column {theirs[0]} is not in the {absent[0]} split and is left out.")
        elif ours == "label":
            labels = {split: _label_values(dataset, theirs[0]) for split, dataset in chosen.items()}
            classes, coded = encode_labels(labels, _class_names(chosen["train"], theirs[0]))
            for split in chosen:
                tables[split]["label"] = coded[split]
        else:
            for split, dataset in chosen.items():
                base = bases.get(named[split], Path())
                tables[split][ours] = _column(dataset, ours, theirs, base, f"{stamp} {split}")
    ids = _numbered(tables, bases.get(named["train"], Path()))
    return Raw(name, tables["train"], tables.get("test"), classes, notes, ids, stamp)


def _numbered(tables: dict[str, dict[str, Any]], base: Path) -> np.ndarray | None:
    """Where rows ask about pictures, those that name one file get one `picture_id`, and names of the train rows by which a split
    leaves the rows of a picture together.
    """
    ids = None
    for split, table in tables.items():
        files = table.get("image")
        if "instruction" in table and isinstance(files, Files):
            name = {path: keys.word(os.path.relpath(path, base)) for path in dict.fromkeys(files.paths)}
            number = {path: i for i, path in enumerate(name)}
            table.setdefault("picture_id", np.array([number[path] for path in files.paths], dtype=np.int64))
            ids = np.array([name[path] for path in files.paths], dtype=np.int64) if split == "train" else ids
    return ids


def encode_labels(
    values: Mapping[str, Sequence[Any]], names: Sequence[str] = ()
) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """Labels of any type, by split -> names of classes, and class numbers 0 to C - 1 by split.

    Whole numbers keep their order and strings are sorted; with `names` the numbers are already class numbers. Raises
    NotanError for missing values and for fractions.
    """
    clean = {split: [_whole(value) for value in column] for split, column in values.items()}
    for split, column in clean.items():
        missing = [i for i, value in enumerate(column) if value is None]
        if missing:
            rows = ", ".join(map(str, missing[:5]))
            raise NotanError(
                f"column 'label' is empty or NaN in {len(missing):,} of {len(column):,} rows of the {split} split "
                f"(first: row {rows})", "a label in every row",
                "fill or remove these rows, or leave the column out with --column label=",
            )  # fmt: skip
        fractions = [value for value in column if isinstance(value, float)]
        if fractions:
            raise NotanError(f"column 'label' holds fractions such as {fractions[0]}", "class names or whole numbers",
                             "for a number to predict: --column label=target")  # fmt: skip
    if names:
        return tuple(names), {split: np.asarray(column, dtype=np.int64) for split, column in clean.items()}
    every = {value for column in clean.values() for value in column}
    order = sorted(every, key=lambda value: (isinstance(value, str), value))
    number = {value: i for i, value in enumerate(order)}
    coded = {split: np.array([number[v] for v in column], dtype=np.int64) for split, column in clean.items()}
    return tuple(map(str, order)), coded


def _whole(value: Any) -> int | float | str | None:
    """2.0 -> 2, True -> 1, NaN -> None."""
    if value is None or isinstance(value, str):
        return value or None
    if isinstance(value, (float, np.floating)):
        return None if value != value else int(value) if float(value).is_integer() else float(value)
    if isinstance(value, (int, np.integer, np.bool_)):
        return int(value)
    raise NotanError(f"column 'label' holds {type(value).__name__}", "class names or whole numbers")


def _label_values(dataset: Any, column: str) -> list[Any]:
    values = _values(dataset, column)
    names = _class_names(dataset, column)  # then -1 means unknown
    return [None if names and isinstance(v, int) and v < 0 else v for v in values]


def _class_names(dataset: Any, column: str) -> list[str]:
    return list(getattr(dataset.features[column], "names", None) or [])


def _numeric(dataset: Any) -> list[str]:
    dtypes = {name: str(getattr(feature, "dtype", "")) for name, feature in dataset.features.items()}
    return [name for name, dtype in dtypes.items() if dtype.startswith(("int", "uint", "float", "double"))]


def _values(dataset: Any, column: str) -> list[Any]:
    cells = dataset.select_columns([column]).with_format("arrow")[:].column(0).to_pylist()
    mixed = type(dataset.features[column]).__name__ == "Json"  # cells of several types, kept as JSON
    return [None if cell is None else json.loads(cell) for cell in cells] if mixed else cells


def _column(dataset: Any, ours: str, theirs: list[str], base: Path, stamp: str) -> Any:
    if COLUMNS[ours].picture:
        return _pictures(dataset, theirs[0], base, stamp)
    return values_of(ours, theirs[0], [_values(dataset, name) for name in theirs])


def _pictures(dataset: Any, column: str, base: Path, stamp: str) -> Any:
    import datasets

    feature = dataset.features[column]
    if isinstance(feature, datasets.Image):
        dataset = dataset.cast_column(column, datasets.Image(decode=False))
        return Encoded(dataset.select_columns([column]), column, f"{stamp} {column}", base)
    kind = str(getattr(feature, "dtype", ""))
    if kind in ("string", "large_string"):
        return Files([os.path.join(base, value or "") for value in _values(dataset, column)], base)
    if kind in ("binary", "large_binary") or (isinstance(feature, dict) and "bytes" in feature):
        return Encoded(dataset.select_columns([column]), column, f"{stamp} {column}", base)
    try:
        pixels = np.asarray(_values(dataset, column))
    except ValueError as error:
        raise NotanError(f"column {column!r} holds arrays of different shapes", "pictures as files or bytes") from error
    return Pixels(as_pixels(pixels, column), f"{stamp} {column}")


def as_pixels(array: np.ndarray, column: str) -> np.ndarray:
    """(N, H, W), (N, H, W, C) or (N, C, H, W) of whole numbers 0 to 255 -> uint8 (N, C, H, W)."""
    whole = array.dtype.kind in "iub" and array.ndim in (3, 4) and array.size
    if not whole or array.min() < 0 or array.max() > 255:
        raise NotanError(f"column {column!r} holds {array.dtype} of shape {array.shape}",
                         "files, bytes, or whole numbers 0 to 255 of shape (N, H, W) or (N, H, W, C)")  # fmt: skip
    if array.ndim == 3:
        array = array[:, None]
    elif array.shape[3] in (1, 3) and array.shape[1] not in (1, 3):
        array = array.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(array, dtype=np.uint8)
