"""From what a reader found to `Data`: pictures decoded, columns checked, rows split, pixels described."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from notan.data.cache import decoded, scan
from notan.data.columns import COLUMNS, DataInfo
from notan.data.pictures import Form
from notan.data.raw import Raw
from notan.data.split import split
from notan.data.table import Data, Rows
from notan.errors import NotanError

DEFAULT_SIDE = 96  # of cached pixels when nothing is asked for: small enough for a laptop, and said in the notes
Table = Mapping[str, Any]  # column -> array, list, Pictures or store


def build(
    raw: Raw, cache: Path, *, cache_side: int | None, fit: str, cache_limit_gb: float, limit_bad: float
) -> Data:
    """Decode, check and split what a reader found. Raises NotanError as `open_data` says."""
    tables = raw.tables
    form = choose_form(tables, cache, cache_side, fit, raw.notes)
    bad: dict[str, dict[int, str]] = {name: {} for name in tables}
    stores = {name: _decode(table, form, cache, cache_limit_gb, raw.notes, bad[name]) for name, table in tables.items()}
    _report(raw, tables, [reason for reasons in bad.values() for reason in reasons.values()], limit_bad)
    for table in stores.values():
        for column, store in table.items():
            COLUMNS[column].check(column, store)
    _note_blanks(raw, stores)
    good = {name: np.setdiff1d(np.arange(count(table)), sorted(bad[name])) for name, table in tables.items()}
    train, test = _split(raw, stores, good)
    return _describe(raw, train, test, form)


def count(table: Table) -> int:
    return len(next(iter(table.values())))


def choose_form(
    tables: Mapping[str, Table], cache: Path, side: int | None, fit: str, notes: list[str]
) -> Form | None:
    """The form all pictures of the data take, from their headers; None without pictures."""
    pictures = [store for table in tables.values() for name, store in table.items() if COLUMNS[name].picture]
    if not pictures:
        return None
    found = np.concatenate([scan(store, cache) for store in pictures])
    found = found[found[:, 0] > 0]
    if not len(found):
        return Form(side or DEFAULT_SIDE, 3, fit)  # all unreadable: decoding will say why
    width, height, channels = found.T
    every = set(channels.tolist())
    planes = every.pop() if len(every) == 1 else 3
    if any("segmentation" in table or "depth" in table for table in tables.values()):
        return Form(int(height[0]), planes, fit)  # dense columns lie on the native pixels
    sides = np.maximum(width, height) if fit == "pad" else np.minimum(width, height)
    median = int(np.median(sides))
    chosen = min(side or DEFAULT_SIDE, median)
    upscaled = int((sides < chosen).sum())
    if median > chosen:
        notes.append(f"Pictures are kept at {chosen} x {chosen} pixels ({fit}); the median side is {median}: "
                     "--cache-side N keeps more.")  # fmt: skip
    if upscaled:
        notes.append(f"{upscaled:,} of {len(sides):,} pictures are smaller than {chosen} pixels and are enlarged.")
    return Form(chosen, planes, fit)


def _decode(
    table: Table, form: Form | None, cache: Path, limit_gb: float, notes: list[str], bad: dict[int, str]
) -> dict[str, Any]:
    """Pictures become stores of pixels, other columns stay. `bad` is filled with the unreadable rows and why."""
    stores = {}
    for name, store in table.items():
        if not COLUMNS[name].picture:
            stores[name] = store
            continue
        assert form is not None
        found = decoded(store, form, cache, limit_gb)
        stores[name] = found.store
        bad |= {i: f"{store.name(i)} ({reason})" for i, reason in found.bad.items()}
        notes += [found.note] if found.note and found.note not in notes else []
    return stores


def _report(raw: Raw, tables: Mapping[str, Table], bad: list[str], limit: float) -> None:
    """Note the unreadable rows, or stop when there are too many of them."""
    if not bad:
        return
    total = sum(count(table) for table in tables.values())
    allowed = int(np.ceil(limit * total))
    listed = "; ".join(bad[:5]) + ("; ..." if len(bad) > 5 else "")
    if len(bad) > allowed or len(bad) == total:
        raise NotanError(
            f"{len(bad):,} of {total:,} pictures of {raw.name} cannot be read: {listed}",
            f"at most {allowed:,} ({limit:.1%})", "repair or remove them, or raise --limit-bad",
        )  # fmt: skip
    raw.notes.append(f"{len(bad):,} of {total:,} pictures cannot be read and are skipped: {listed}.")


def _note_blanks(raw: Raw, stores: Mapping[str, Table]) -> None:
    """Note how many texts are blank, of several captions if one of them is; stop where a column has no others."""
    for column in (name for name in stores["train"] if COLUMNS[name].dtype == "str"):
        cells = [cell for table in stores.values() for cell in table.get(column, ())]
        texts = [[cell] if isinstance(cell, str) else cell for cell in cells]
        if blank := sum(not all(text.strip() for text in every) for every in texts):
            if not any(text.strip() for every in texts for text in every):
                raise NotanError(f"column {column!r} of {raw.name} is blank in every row", "texts", f"--column THEIRS={column}")
            how = "have a blank caption" if column == "captions" else "are blank"
            raw.notes.append(f"{blank:,} of {len(texts):,} rows of column {column!r} {how}: they are learned as they are.")


def _split(raw: Raw, stores: Mapping[str, Table], good: Mapping[str, np.ndarray]) -> tuple[Rows, Rows]:
    """The two splits: as given, or by key. Rows keep an index only where some rows of a store are left out."""
    if raw.test is not None:
        if not len(good["train"]) or not len(good["test"]):
            seen = f"{raw.name} has {len(good['train'])} rows for training and {len(good['test'])} for test"
            raise NotanError(seen, "some of each")
        shared = [name for name in stores["train"] if name in stores["test"]]
        train, test = ({name: stores[s][name] for name in shared} for s in ("train", "test"))
        return (Rows(train, _all_or(good["train"], count(train)), _namer(raw.train)),
                Rows(test, _all_or(good["test"], count(test)), _namer(raw.test)))  # fmt: skip
    rows = good["train"]
    if len(rows) < 2:
        raise NotanError(f"{raw.name} has {len(rows)} rows", "at least 2: one to train on and one to test on")
    labels = stores["train"].get("label")
    ids = np.arange(count(stores["train"])) if raw.ids is None else raw.ids
    a, b = split(ids[rows], None if labels is None else np.asarray(labels)[rows])
    how = "by key" if labels is None else "by key, stratified by label"
    raw.notes.append(f"Split {how}: {len(a):,} rows for training, {len(b):,} for test.")
    namer = _namer(raw.train)
    return Rows(stores["train"], rows[a], namer), Rows(stores["train"], rows[b], namer)


def _all_or(index: np.ndarray, total: int) -> np.ndarray | None:
    return None if len(index) == total else index


def _namer(table: Table) -> Callable[[int], str]:
    return getattr(table.get("image"), "name", "row {}".format)


def _describe(raw: Raw, train: Rows, test: Rows, form: Form | None) -> Data:
    classes, notes = raw.classes, raw.notes
    if "label" in train.columns and len(np.unique(train.values("label"))) < 2:
        only = classes[int(train.values("label")[0])] if classes else str(train.values("label")[0])
        notes.append(f"There is one class ({only}): good for training without labels, but there is nothing to probe.")
        train, test = _without(train, "label"), _without(test, "label")
        classes = ()
    mean, std = moments(train) if "image" in train.columns else ((), ())
    centre, spread = number_moments(train)
    target = train.values("target") if "target" in train.columns else None
    info = DataInfo(
        name=raw.name, rows=len(train), columns=train.columns, classes=classes, mean=mean, std=std,
        image_size=form.side if form else None, channels=form.channels if form else None,
        width=len(centre) or None, centre=centre, spread=spread,
        target_range=None if target is None else (float(target.min()), float(target.max())), notes=" ".join(notes),
    )  # fmt: skip
    return Data(train, test, info, _fingerprint(raw, train, test, form), notes)


def number_moments(rows: Rows, most: int = 100_000) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each number of `features`, or of a step of `series` where there are none; else empty.

    Of evenly spaced rows when there are more than `most`. A number that never varies gets a deviation of 1.
    """
    column = next((name for name in ("features", "series") if name in rows.columns), None)
    if column is None:
        return (), ()
    index = np.linspace(0, len(rows) - 1, min(len(rows), most)).astype(np.int64)
    where, store = index if rows.index is None else rows.index[index], rows.stores[column]
    if column == "features":
        steps = np.asarray(store)[where].astype(np.float64)             # (n, width)
    else:
        series = (np.asarray(store[i], dtype=np.float64) for i in where)
        steps = np.concatenate([x.reshape(len(x), -1) for x in series])
    std = steps.std(0)
    return tuple(map(float, steps.mean(0))), tuple(float(s) if s > 1e-6 * abs(m) else 1.0 for s, m in zip(std, steps.mean(0)))


def _without(rows: Rows, column: str) -> Rows:
    return rows.only(*(name for name in rows.columns if name != column))


def _fingerprint(raw: Raw, train: Rows, test: Rows, form: Form | None) -> str:
    digest = hashlib.blake2b(f"{raw.name} {raw.stamp} {form} {train.columns} {len(train)}".encode(), digest_size=8)
    for rows in (train, test):
        digest.update(b"" if rows.index is None else rows.index.tobytes())
        for column in rows.columns:
            digest.update(rows.values(column).tobytes() if COLUMNS[column].light else b"")
    return digest.hexdigest()


def moments(rows: Rows, most: int = 50_000_000) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of pixels in [0, 1]; of evenly spaced rows when there are many.

    `most` bounds the number of values looked at. A channel that never varies gets a deviation of 1.
    """
    pixels = rows.only("image")
    first = pixels.take(np.arange(1))["image"]
    looked = max(min(len(rows), most // first.numel()), 1)
    index = np.linspace(0, len(rows) - 1, looked).astype(np.int64)
    histogram = np.zeros((first.shape[1], 256), dtype=np.int64)
    for part in np.array_split(index, max(looked // 2048, 1)):
        image = pixels.take(part)["image"].numpy()
        for c in range(len(histogram)):
            histogram[c] += np.bincount(image[:, c].ravel(), minlength=256)
    level, total = np.arange(256) / 255, histogram.sum(1)
    mean = histogram @ level / total
    std = np.sqrt(np.maximum(histogram @ level**2 / total - mean**2, 0))
    return tuple(map(float, mean)), tuple(float(s) if s > 1e-4 else 1.0 for s in std)
