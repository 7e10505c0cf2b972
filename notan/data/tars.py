"""Tars: shards in WebDataset's layout (see members.py), the columns of whose samples are members KEY.EXT.

A picture's suffix alone is `image`, .txt is `text` (one, whatever lines it has), .cls is `label`, the fields of .json are
columns by their names, and NAME.jpg and NAME.txt are the column NAME. A tar is looked through once, and what is where is noted
in the cache; from then on any block is read alone. Pictures stay places in the file until they are decoded.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from notan.data.cache import noted, workers
from notan.data.lines import is_number, once
from notan.data.members import called, look_through
from notan.data.pictures import Part, bytes_of, stamp_of, why
from notan.data.plan import Plan
from notan.data.shards import BLOCK, blocks_of, placed
from notan.errors import NotanError

VERSION = 1  # of what is noted


class TarShard:
    """A tar. Before it is read it needs a `plan`, and `settle` with the tars of its split."""

    seekable = True

    def __init__(self, path: str | Path, cache: Path | None = None) -> None:
        self.name, self.path = str(path), str(path)
        self.plan: Plan | None = None
        self.features: dict[str, Any] = {}
        self._stamp = stamp_of([path])
        found = noted(cache, "tars", f"{VERSION} {self._stamp} index", self._look_through)
        self.keys: list[str] = found["keys"]
        self.kinds: dict[str, str] = found["kinds"]  # of the columns that are members: picture, txt, cls, and json itself
        self.places = {column: np.array(flat, dtype=np.int64).reshape(-1, 2) for column, flat in found["places"].items()}
        self.fields: dict[str, bool] = found["fields"]  # of .json in the first samples: whether it is a number
        self.lines: bool = found["lines"]  # whether some .txt of the first samples has several lines
        self.unread: dict[str, int] = found["unread"]
        self.blocks = blocks_of(len(self.keys))
        self.found, self.numeric = [*self.kinds], [name for name, number in self.fields.items() if number]
        self._labels: Counter[Any] = Counter()

    def has(self, column: str) -> np.ndarray:
        """Which samples have a column's member, or the .json that it is a field of, bool (N,). An empty text is none."""
        kind = self.kinds.get(column, "json")
        places = self.places.get("json" if kind == "json" else column)
        if places is None:
            return np.zeros(len(self.keys), dtype=bool)
        return places[:, 1] >= (0 if kind == "picture" else 1)

    def count(self, label: str | None, cache: Path | None) -> None:
        """How often each value of the column `label` occurs, which numbers the classes: read once, then out of the cache."""
        if label is not None:
            about = f"{VERSION} {self._stamp} {label} of {self.kinds.get(label, 'json')}"
            self._labels = Counter(dict(map(tuple, noted(cache, "tars", about, lambda: self._counted(label)))))

    def labels(self, column: str) -> Counter[Any]:
        """How often each value of the column that was counted occurs."""
        return self._labels

    @placed
    def read(self, start: int, stop: int) -> dict[str, Any]:
        assert self.plan is not None
        return self.plan.ours(self._cells(self.plan.theirs, start, stop))

    def where(self, row: int) -> str:
        return f"{os.path.basename(self.path)} {self.keys[row]}"

    def _cells(self, columns: Sequence[str], start: int, stop: int) -> dict[str, list[Any]]:
        """Cells of some columns of some samples, None where there is none; pictures as the part of the file that they are."""
        cells: dict[str, list[Any]] = {column: [] for column in columns}
        fields: dict[str, Any] = {}
        with open(self.path, "rb") as file:
            if stamp_of([self.path]) != self._stamp:
                raise OSError("it has changed")
            more = not set(columns) <= set(self.kinds)
            for row in range(start, stop):
                if more:
                    fields = self._fields(file, row)
                for column in columns:
                    cells[column].append(self._cell(file, column, row) if column in self.kinds else fields.get(column))
        return cells

    def _cell(self, file: BinaryIO, column: str, row: int) -> Any:
        kind = self.kinds[column]
        if column not in self.places or self.places[column][row, 0] < 0:
            return None
        if kind == "picture":
            return Part(self.path, *self.places[column][row].tolist())
        text = self._text(file, column, row).strip()
        if kind == "cls":
            return int(text) if text.lstrip("+-").isdecimal() else text or None
        if not text:
            raise NotanError(f"the {called(column, kind)} of {self.where(row)} is blank", "a text", "leave the sample out")
        return text

    def _text(self, file: BinaryIO, column: str, row: int) -> str:
        start, size = self.places[column][row].tolist()
        try:
            return bytes_of(file, start, size).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise NotanError(f"the {called(column, self.kinds[column])} of {self.where(row)} is no UTF-8 (byte {error.start:,})",
                             "a text in UTF-8", "write it again, or leave the sample out") from error  # fmt: skip

    def _fields(self, file: BinaryIO, row: int) -> dict[str, Any]:
        """The fields of a sample's .json, {} where there is none."""
        if "json" not in self.places or self.places["json"][row, 1] < 1:
            return {}
        text = self._text(file, "json", row)
        try:
            fields = json.loads(text, object_pairs_hook=once)
            if not isinstance(fields, dict):
                raise ValueError(f"a {type(fields).__name__}")
        except ValueError as error:
            raise NotanError(f"the .json of {self.where(row)} is no JSON object ({why(error)})",
                             "{...}, one name for each field", "write it again, or leave the sample out") from error  # fmt: skip
        return fields

    def _look_through(self) -> dict[str, Any]:
        """The index, and what the fields of .json are in the first samples that have one."""
        index = look_through(self.path)
        self.keys, self.kinds, self.places = index.keys, index.kinds, index.places
        with open(self.path, "rb") as file:
            some = [self._fields(file, int(row)) for row in islice(np.flatnonzero(self.has("json")), BLOCK)]
            texts = islice(np.flatnonzero(self.has("text")), BLOCK) if self.kinds.get("text") == "txt" else ()
            lines = any(b"\n" in bytes_of(file, *self.places["text"][row].tolist()).strip() for row in texts)
        names = dict.fromkeys(name for fields in some for name in fields)
        cells = {name: [fields[name] for fields in some if fields.get(name) is not None] for name in names}
        return {"keys": index.keys, "kinds": index.kinds, "places": {c: x.ravel().tolist() for c, x in index.places.items()},
                "fields": {name: bool(those) and all(map(is_number, those)) for name, those in cells.items()},
                "lines": lines, "unread": index.unread}  # fmt: skip

    def _counted(self, label: str) -> list[tuple[Any, int]]:
        values = (value for a, b in self.blocks for value in self._cells([label], a, b)[label])
        return list(Counter(v if v is None or isinstance(v, (str, int, float)) else str(v) for v in values).items())


def tar_shards(paths: Iterable[Path], cache: Path | None) -> list[TarShard]:
    """Shards of tars, of which those that are new are looked through."""
    every, shards = [*paths], list[TarShard]()
    start = said = time.monotonic()
    with ThreadPoolExecutor(workers()) as pool:
        for shard in pool.map(lambda path: TarShard(path, cache), every):
            shards.append(shard)
            if (now := time.monotonic()) - said > 5:
                said, left = now, (now - start) / len(shards) * (len(every) - len(shards))
                print(f"notan: {len(shards):,} of {len(every):,} tars looked through, {left:.0f} s left", file=sys.stderr)
    return shards


def settle(shards: Sequence[TarShard]) -> list[str]:
    """Give the tars of a split the same columns of members, those that half of the samples have; returns what there is, as notes.

    Raises NotanError where a column is a picture in one tar and a text in another.
    """
    kinds: dict[str, str] = {}
    for shard in shards:
        for column, kind in shard.kinds.items():
            if kinds.setdefault(column, kind) != kind:
                raise NotanError(f"{shard.name} has {called(column, kind)}, other tars {called(column, kinds[column])}: both are "
                                 f"the column {column!r}", "one kind of member for each", "rename one of them")  # fmt: skip
    rows = sum(len(shard.keys) for shard in shards)
    notes = [f"{len(shards):,} tars with {rows:,} samples." if len(shards) > 1 else f"A tar with {rows:,} samples."]
    held = {column: [np.flatnonzero(shard.has(column)) for shard in shards] for column in kinds}
    few = [column for column, there in held.items() if 2 * sum(map(len, there)) < rows]
    for column in few:
        count = sum(map(len, held[column]))
        first = next((shard.where(int(there[0])) for shard, there in zip(shards, held[column]) if len(there)), "all empty")
        notes.append(f"{count:,} of {rows:,} samples have {called(column, kinds.pop(column))} ({first} ...): too few to be read.")
    for shard in shards:
        shard.kinds = dict(kinds)
        fields = [name for name in shard.fields if name not in kinds] if "json" in kinds else []
        shard.found = [column for column in kinds if column != "json"] + fields
        shard.numeric = [name for name in shard.numeric if name in fields]
    if "text" in kinds and any(shard.lines for shard in shards):
        notes.append("A .txt with several lines is one caption; several captions are a list in the .json.")
    unread = sum((Counter(shard.unread) for shard in shards), Counter[str]())
    if unread:
        listed = ", ".join(f"{count:,} {what}" for what, count in unread.most_common(5)) + (", ..." if len(unread) > 5 else "")
        notes.append(f"Not read: {listed}.")
    return notes


def check_members(name: str, shards: Sequence[TarShard], columns: Sequence[str]) -> list[str]:
    """Raises NotanError when samples lack the member of one of these columns; where it is a picture, notes say how many do."""
    rows, notes = sum(len(shard.keys) for shard in shards), []
    for column in columns:
        lacking = [np.flatnonzero(~shard.has(column)) for shard in shards]
        if not (count := sum(map(len, lacking))):
            continue
        kind = shards[0].kinds.get(column, "json")
        first = next(shard.where(int(those[0])) for shard, those in zip(shards, lacking) if len(those))
        what = called("json" if kind == "json" else column, kind)
        if kind == "picture":
            notes.append(f"{count:,} of {rows:,} samples have no picture (first: {first}): they count as unreadable.")
        else:
            raise NotanError(f"{count:,} of {rows:,} samples of {name} have no {what}, or an empty one (first: {first})",
                             f"{what} in every sample", "add them, leave these samples out, or leave the column out with "
                             f"--column {column}=")  # fmt: skip
    return notes
