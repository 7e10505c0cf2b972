"""The doctor: what is wrong with data, before a training run finds out."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from notan.data.build import build, choose_form
from notan.data.cache import cache_root, decoded, scan
from notan.data.columns import COLUMNS
from notan.data.open import open_data, read
from notan.data.raw import Raw
from notan.data.table import Data, Rows
from notan.errors import NotanError

SEVERITIES = ("error", "warning", "note")  # stops a run; makes its numbers doubtful; good to know
TINY, FEW_ROWS, FEW_IN_CLASS, SKEWED, REPEATED = 8, 100, 5, 10, 0.1


@dataclass(frozen=True)
class Finding:
    """One thing found: how bad, what was seen, what to do."""

    severity: str
    what: str
    fix: str = ""


def diagnose(
    spec: str | os.PathLike, *, columns: Mapping[str, str] | None = None, cache_side: int | None = None
) -> list[Finding]:
    """Everything that is wrong or odd with the data, worst first; an empty list when nothing is.

    Opens the data as a run would (and fills the same cache), so what it does not report will not stop a run. Raises
    nothing for bad data: that is a finding.
    """
    try:
        raw = read(str(spec), columns)
        headers = list(_headers(raw))
        unreadable = list(_unreadable(raw, cache_side))
        data = build(raw, cache_root(), cache_side=cache_side, fit="crop", cache_limit_gb=8, limit_bad=1)
    except NotanError as error:
        return [Finding("error", error.seen, error.fix or error.wanted)]
    notes = [note for note in data.notes if "cannot be read" not in note]
    return _sorted([*unreadable, *headers, *_of_rows(data), *_notes(notes)])


def diagnose_stream(
    spec: str | os.PathLike, *, columns: Mapping[str, str] | None = None, cache_side: int | None = None
) -> list[Finding]:
    """The same of data that does not fit, opened as a run with --stream would: of the rows that are kept at hand."""
    try:
        data = open_data(spec, columns=columns, cache_side=cache_side, stream=True, limit_bad=1)
    except NotanError as error:
        return [Finding("error", error.seen, error.fix or error.wanted)]
    bad = [note for note in data.notes if "cannot be read" in note]
    unreadable = [Finding("warning", note.rstrip("."), "repair or remove them; a run skips them up to --limit-bad (1 %)")
                  for note in bad]  # fmt: skip
    return _sorted([*unreadable, *_of_rows(data), *_notes([note for note in data.notes if note not in bad])])


def _of_rows(data: Data) -> Iterator[Finding]:
    yield from _rows(data)
    yield from _labels(data)
    yield from _texts(data)
    if "image" in data.info.columns:
        yield from _pixels(data)


def _notes(notes: list[str]) -> Iterator[Finding]:
    yield from (Finding("note", note.rstrip(".")) for note in notes)


def _sorted(found: list[Finding]) -> list[Finding]:
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))


def _pictures(raw: Raw) -> Iterator[Any]:
    for table in raw.tables.values():
        yield from (store for name, store in table.items() if COLUMNS[name].picture)


def _distinct(raw: Raw) -> Iterator[tuple[Any, np.ndarray]]:
    """Pictures, and the first row of each."""
    for table in raw.tables.values():
        for name in (name for name in table if COLUMNS[name].picture):
            yield table[name], _firsts(len(table[name]), table.get("picture_id") if name == "image" else None)


def _firsts(rows: int, ids: Any) -> np.ndarray:
    """The first row of each picture, int64 (N,): rows of one `picture_id` are one picture, asked about again."""
    return np.arange(rows) if ids is None else np.sort(np.unique(np.asarray(ids), return_index=True)[1])


def _unreadable(raw: Raw, side: int | None) -> Iterator[Finding]:
    form = choose_form(raw.tables, cache_root(), side, "crop", [])
    for pictures in _pictures(raw):
        assert form is not None
        bad = decoded(pictures, form, cache_root(), 8).bad
        if bad:
            named = [f"{pictures.name(i)} ({reason})" for i, reason in sorted(bad.items())]
            severity = "error" if len(bad) > np.ceil(0.01 * len(pictures)) else "warning"
            yield Finding(severity, f"{len(bad):,} of {len(pictures):,} pictures cannot be read: {_some(named)}",
                          "repair or remove them; a run skips them up to --limit-bad (1 %)")  # fmt: skip


def _headers(raw: Raw) -> Iterator[Finding]:
    for pictures, each in _distinct(raw):
        width, height, channels = scan(pictures, cache_root())[each].T
        seen = width > 0
        short = np.minimum(width, height)
        tiny = np.flatnonzero(seen & (short < TINY))
        if len(tiny) and np.median(short[seen]) >= TINY:
            named = [f"{pictures.name(each[i])} ({width[i]} x {height[i]})" for i in tiny]
            yield Finding("warning", f"{len(tiny):,} pictures are smaller than {TINY} pixels: {_some(named)}",
                          "remove them: enlarged, they are flat colour")  # fmt: skip
        thin = np.flatnonzero(seen & (np.maximum(width, height) > 4 * short) & (short >= TINY))
        if len(thin):
            named = [f"{pictures.name(each[i])} ({width[i]} x {height[i]})" for i in thin]
            yield Finding("warning", f"{len(thin):,} pictures are over four times as long as wide: {_some(named)}",
                          "--fit pad keeps the whole picture; crop keeps its centre square")  # fmt: skip
        grey = int((channels[seen] == 1).sum())
        if 0 < grey < seen.sum():
            yield Finding("note", f"{grey:,} of {seen.sum():,} pictures are grey, the others have colour: all are "
                          "treated as colour", "")  # fmt: skip
        if len(sizes := np.unique(short[seen])) > 1:
            yield Finding("note", f"shorter sides run from {sizes[0]} to {sizes[-1]} pixels, "
                          f"median {int(np.median(short[seen]))}", "")  # fmt: skip


def _rows(data: Data) -> Iterator[Finding]:
    for name, rows in (("training", data.train), ("test", data.test)):
        if len(rows) < FEW_ROWS:
            severity = "error" if len(rows) < 10 and name == "training" else "warning"
            yield Finding(severity, f"there are {len(rows):,} rows for {name}",
                          "more rows: numbers of so few differ by chance, and a batch can have no more rows")  # fmt: skip


def _labels(data: Data) -> Iterator[Finding]:
    if "label" not in data.train.columns:
        if not any("one class" in note for note in data.notes):
            yield Finding("note", "there is no label: training works, probes of classes do not")
        else:
            yield Finding("warning", "there is one class: training works, probes of classes do not",
                          "pictures of one class per folder, at least two folders")  # fmt: skip
        return
    classes = data.info.classes or tuple(map(str, range(int(data.train.values("label").max()) + 1)))
    train, test = (np.bincount(rows.values("label"), minlength=len(classes)) for rows in (data.train, data.test))
    if lost := [classes[c] for c in range(len(classes)) if test[c] and not train[c]]:
        yield Finding("error", f"classes only in the test split: {_some(lost)}", "rows of them for training, or none")
    if lost := [classes[c] for c in range(len(classes)) if train[c] and not test[c]]:
        yield Finding("warning", f"classes without test rows: {_some(lost)}", "at least two rows of every class")
    if few := [f"{classes[c]} ({train[c]})" for c in range(len(classes)) if 0 < train[c] < FEW_IN_CLASS]:
        yield Finding("warning", f"classes with fewer than {FEW_IN_CLASS} training rows: {_some(few)}",
                      "more rows of them, or merge them with others")  # fmt: skip
    there = train[train > 0]
    if there.max() > SKEWED * there.min():
        most, least = classes[int(train.argmax())], classes[int(np.where(train > 0, train, train.max()).argmin())]
        yield Finding("warning", f"the classes are unbalanced: {there.max():,} rows of {most}, {there.min():,} of {least}",
                      "read balanced accuracy beside accuracy")  # fmt: skip


def _texts(data: Data) -> Iterator[Finding]:
    """How many captions there are, how long they are, and how many say the same."""
    column = next((name for name in ("captions", "text") if name in data.train.columns), "")
    if "image" not in data.train.columns or not column:
        return
    cells = data.train.only(column).take(np.arange(len(data.train)))[column]
    every = [[cell] if isinstance(cell, str) else cell for cell in cells]
    texts = [text.strip() for some in every for text in some]
    words, per = np.array([len(text.split()) for text in texts]), np.array([len(some) for some in every])
    each = f"{_span(per)} captions each" if per.max() > 1 else "a caption each"
    yield Finding("note", f"{len(every):,} training rows have {each}, of {_span(words)} words, median {int(np.median(words))}")
    times = Counter(texts)
    said, most = times.most_common(1)[0]
    if repeated := len(texts) - len(times):
        severity = "warning" if repeated > REPEATED * len(texts) else "note"
        shown = said if len(said) <= 40 else f"{said[:40]}..."
        yield Finding(severity, f"{repeated:,} of {len(texts):,} captions repeat another ({shown!r} is there {most:,} times)",
                      "equal captions in a batch are told apart nevertheless: say more of each picture" if severity == "warning"
                      else "")  # fmt: skip


def _pixels(data: Data) -> Iterator[Finding]:
    """Exact duplicates and constant pictures, by the decoded pixels."""
    groups: dict[bytes, list[tuple[str, int]]] = defaultdict(list)
    flat, total = [], {}
    for split, rows in (("train", data.train), ("test", data.test)):
        shown = _firsts(len(rows), rows.values("picture_id") if "picture_id" in rows.columns else None)
        total[split] = len(shown)
        for i, pixels in _each(rows, shown):
            groups[hashlib.blake2b(pixels.tobytes(), digest_size=16).digest()].append((split, i))
            if (pixels == pixels[:, :1, :1]).all():
                flat.append(f"{_name(data, (split, i))}")
    twice = [group for group in groups.values() if len(group) > 1]
    leaked = [group for group in twice if len({split for split, _ in group}) == 2]
    if leaked:
        count = sum(split == "test" for group in leaked for split, _ in group)
        pairs = [f"{_name(data, group[0])} = {_name(data, group[-1])}" for group in leaked]
        yield Finding("error" if count > 0.01 * total["test"] else "warning",
                      f"{count:,} of {total['test']:,} test pictures are also in training: {_some(pairs)}",
                      "remove them from one of the splits: a probe that has seen the answer measures nothing")  # fmt: skip
    inside = [[at for at in group if at[0] == "train"] for group in twice]
    inside = [group for group in inside if len(group) > 1]
    if inside:
        count = sum(len(group) - 1 for group in inside)
        pairs = [" = ".join(_name(data, at) for at in group[:2]) for group in inside]
        yield Finding("warning", f"{count:,} of {total['train']:,} training pictures repeat another: {_some(pairs)}",
                      "remove the copies: contrastive methods would push equal pictures apart")  # fmt: skip
    if "label" in data.train.columns:
        labels = {"train": data.train.values("label"), "test": data.test.values("label")}
        torn = [group for group in twice if len({int(labels[split][i]) for split, i in group}) > 1]
        if torn:
            pairs = [" = ".join(_name(data, at) for at in group[:2]) for group in torn]
            yield Finding("warning", f"{len(torn):,} pictures have copies with another label: {_some(pairs)}",
                          "decide which label is right")  # fmt: skip
    if flat:
        yield Finding("warning", f"{len(flat):,} pictures are one flat colour: {_some(flat)}", "remove them")


def _span(numbers: np.ndarray) -> str:
    low, high = int(numbers.min()), int(numbers.max())
    return f"{low} to {high}" if low < high else f"{low}"


def _each(rows: Rows, shown: np.ndarray, chunk: int = 512) -> Iterator[tuple[int, np.ndarray]]:
    images = rows.only("image")
    for first in range(0, len(shown), chunk):
        index = shown[first : first + chunk]
        yield from zip(index.tolist(), images.take(index)["image"].numpy())


def _name(data: Data, at: tuple[str, int]) -> str:
    split, i = at
    name = (data.train if split == "train" else data.test).name(i)
    return f"{split} {name}" if name.startswith("row ") else name


def _some(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")
