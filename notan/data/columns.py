"""The closed list of columns: what may be in a batch, and in what form.

A batch is a plain `dict` from these names to tensors (or lists of strings), plus `row` (the stable row number, int64)
and `key` (see keys.py, int64). A new kind of data is one new entry here and nowhere else. NumPy only: a column's
`collate` turns stored values of some rows into one array, which table.py hands to torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from notan.errors import NotanError, did_you_mean

Batch = Any  # an array (B, ...), a list of B strings, or (array, lengths) of padded rows


@dataclass(frozen=True)
class Column:
    """One kind of data: its dtype and shape in a batch, what makes it wrong, and how rows become a batch."""

    dtype: str  # NumPy's name, or "str"
    shape: str  # in a batch
    collate: Callable[[Any], Batch]  # values of the batch's rows -> Batch
    check: Callable[[str, Any], None]  # (name, the whole split's values) -> None, or raises NotanError
    light: bool = False  # small enough to hold for all rows: may be asked for by `batches` and `Rows.values`
    picture: bool = False  # decoded from files, cached as pixels
    padded: bool = False  # rows differ in length: a batch also gets `length`


@dataclass(frozen=True)
class DataInfo:
    """What a method may know of the data before seeing a batch.

    `image_size` is the side of the stored pixels, `mean` and `std` are per channel of training pixels in [0, 1]. `width` is
    how many numbers a row of `features` has, or a step of `series` where there are none, and `centre` and `spread` are their
    means and standard deviations. `notes` says how the data was split and brought to this form.
    """

    name: str
    rows: int  # of the training split
    columns: tuple[str, ...]
    image_size: int | None = None
    channels: int | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    classes: tuple[str, ...] = ()
    width: int | None = None
    centre: tuple[float, ...] = ()
    spread: tuple[float, ...] = ()
    target_range: tuple[float, float] | None = None
    notes: str = ""


def nothing_to_check(name: str, values: Any) -> None:
    """Pictures are checked while they are decoded."""


def check_bytes(name: str, values: Any) -> None:
    if np.asarray(values[:1]).dtype != np.uint8:
        raise NotanError(f"column {name!r} holds {np.asarray(values[:1]).dtype}", "uint8 pixels, 0 to 255")


def check_finite(name: str, values: Any) -> None:
    """No NaN and no infinity; the message counts the rows and names the first."""
    if isinstance(values, np.ndarray):
        bad = ~np.isfinite(values.reshape(len(values), -1)).all(1) if len(values) else np.zeros(0, bool)
    else:
        bad = np.array([not np.isfinite(np.asarray(value, dtype=float)).all() for value in values], dtype=bool)
    if bad.any():
        rows = ", ".join(map(str, np.flatnonzero(bad)[:5]))
        raise NotanError(
            f"column {name!r} has no finite value in {bad.sum():,} of {len(values):,} rows (first: row {rows})",
            "a number in every row",
            f"fill or remove these rows, or leave the column out with --column {name}=",
        )


def check_text(name: str, values: Any) -> None:
    bad = [i for i, value in enumerate(values) if not isinstance(value, str)]
    if bad:
        raise NotanError(
            f"column {name!r} has no text in {len(bad):,} of {len(values):,} rows (first: row {bad[0]})",
            "a string in every row",
            "fill or remove these rows",
        )


def check_texts(name: str, values: Any) -> None:
    bad = [i for i, v in enumerate(values) if not _are_texts(v)]
    if bad:
        single = isinstance(values[bad[0]], str)
        every = all(isinstance(value, str) for value in values)
        fix = "map that column to text instead: --column THEIRS=text" if every else "make every row a list"
        raise NotanError(
            f"column {name!r} has {'a single text' if single else 'no captions'} in {len(bad):,} of {len(values):,} rows "
            f"(first: row {bad[0]})",
            "a list of at least one string in every row",
            fix if single else "fill or remove these rows",
        )


def _are_texts(value: Any) -> bool:
    return isinstance(value, (list, tuple, np.ndarray)) and len(value) > 0 and all(isinstance(text, str) for text in value)


def int64(values: Any) -> np.ndarray:
    return np.asarray(values).astype(np.int64)


def float32(values: Any) -> np.ndarray:
    return np.asarray(values).astype(np.float32)


def uint8(values: Any) -> np.ndarray:
    return np.ascontiguousarray(values)


def strings(values: Any) -> list:
    return list(values)


def pad(values: Any) -> tuple[np.ndarray, np.ndarray]:
    """Rows of different length (L_i, ...) -> float32 (B, max L, ...), zeros after the end; lengths int64 (B,)."""
    rows = [np.asarray(value, dtype=np.float32) for value in values]
    length = np.array([len(row) for row in rows], dtype=np.int64)
    out = np.zeros((len(rows), length.max(initial=0), *rows[0].shape[1:]), dtype=np.float32)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out, length


_PICTURE = Column("uint8", "(B, C, H, W)", uint8, nothing_to_check, picture=True)
_TEXT = Column("str", "B strings", strings, check_text)

COLUMNS: dict[str, Column] = {
    "image": _PICTURE,
    "image2": _PICTURE,  # the other one of a real pair
    "target_image": _PICTURE,  # the clean picture of a restoration
    "depth": Column("float32", "(B, 1, H, W)", float32, check_finite),
    "segmentation": Column("int64", "(B, H, W)", int64, nothing_to_check),
    "video": Column("uint8", "(B, T, C, H, W)", uint8, check_bytes),
    "audio": Column("float32", "(B, S)", pad, check_finite, padded=True),
    "points": Column("float32", "(B, N, 3)", pad, check_finite, padded=True),
    "features": Column("float32", "(B, F)", float32, check_finite),
    "series": Column("float32", "(B, T, C)", pad, check_finite, padded=True),
    "text": _TEXT,
    "captions": Column("str", "B lists of strings", strings, check_texts),
    "code": _TEXT,
    "smiles": _TEXT,
    "instruction": _TEXT,
    "query": _TEXT,
    "answer": _TEXT,
    "label": Column("int64", "(B,)", int64, check_finite, light=True),
    "attributes": Column("int64", "(B, A)", int64, check_finite, light=True),
    "target": Column("float32", "(B,)", float32, check_finite, light=True),
    "group": Column("int64", "(B,)", int64, check_finite, light=True),  # 0 background, 1 target
    "picture_id": Column("int64", "(B,)", int64, check_finite, light=True),  # the same in all rows that show one picture
}

# Names that can mean nothing else. Anything less obvious is asked of the user.
ALIASES: dict[str, str] = {
    "img": "image", "picture": "image", "photo": "image", "image_path": "image", "file_name": "image",
    "filename": "image", "labels": "label", "class": "label", "caption": "text", "sentence": "text",
}  # fmt: skip


def renames(pairs: Sequence[str]) -> dict[str, str] | None:
    """What --column says, `THEIRS=OURS` each, as {theirs: ours}; None where nothing is said."""
    found = {}
    for pair in pairs:
        theirs, equals, ours = pair.partition("=")
        if not equals:
            raise NotanError(f"--column {pair!r} has no '='", "THEIRS=OURS, e.g. photo=image", "write it so")
        found[theirs] = ours
    return found or None


def rename(found: list[str], columns: Mapping[str, str] | None) -> dict[str, list[str]]:
    """Which of the file's columns (`found`) feed which of ours: {ours: [theirs, ...]}.

    `columns` is the user's {theirs: ours}; an empty `ours` leaves a column out. Several of theirs may feed one of
    ours (`features` from many numbers). Names not in the closed list are left out; the caller says so.
    """
    asked = dict(columns or {})
    for theirs, ours in asked.items():
        if theirs not in found:
            wanted = f"one of {', '.join(found)}"
            raise NotanError(f"there is no column {theirs!r}", wanted, did_you_mean(theirs, found))
        if ours and ours not in COLUMNS:
            raise NotanError(f"column {theirs!r} cannot become {ours!r}", "a known column", did_you_mean(ours, COLUMNS))
    plan: dict[str, list[str]] = {}
    for theirs in found:
        ours = asked.get(theirs, theirs if theirs in COLUMNS else "")
        if ours:
            plan.setdefault(ours, []).append(theirs)
    for theirs in found:  # aliases only fill what nothing else has filled
        ours = ALIASES.get(theirs.lower(), "")
        if ours and theirs not in asked and ours not in plan:
            plan[ours] = [theirs]
    for ours, sources in plan.items():
        if len(sources) > 1 and ours not in ("features", "attributes", "captions"):
            several = " ".join(f"--column {theirs}=captions" for theirs in sources)
            both = f", and {several} makes them captions of one picture" if ours == "text" and "captions" not in plan else ""
            raise NotanError(
                f"{' and '.join(sources)} would both become {ours!r}", "one", f"--column {sources[1]}= leaves it out{both}"
            )
    return plan
