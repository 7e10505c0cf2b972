"""Rows as things that can be found again: each with a name, a stamp that changes when it does, and what is shown of it.

Unlike `Data`, items are not decoded or split when they are listed, so a folder of which one file is new costs one picture.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from notan.data.open import read
from notan.data.pictures import Archive, Files
from notan.data.split import split
from notan.data.table import Data, Rows
from notan.errors import NotanError

WORDS = ("text", "code", "query", "captions")  # what a row of texts is read from: the first that is there


@dataclass
class Part:
    """One split's columns, and which of their rows are asked for, int64 (n,)."""

    name: str
    table: Mapping[str, Any]
    rows: np.ndarray
    total: int
    opened: Rows | None = None  # of data that was opened: its columns are read through it


@dataclass
class Items:
    """What `items_of` found. Numbers i run over the asked rows of all parts, in order.

    spec: what the items belong to, an absolute path or a name; their ids are unique with it.
    every: the ids of all rows of the data, of splits that were not asked for too.
    """

    spec: str
    parts: list[Part]
    classes: tuple[str, ...]
    every: set[int] = field(init=False)

    def __post_init__(self) -> None:
        self._starts = np.cumsum([0, *(len(part.rows) for part in self.parts)])
        self._ids: dict[str, np.ndarray] = {}
        met: dict[int, int] = {}
        for part in self.parts:
            self._ids[part.name] = np.array([self._id(part, row, met) for row in range(part.total)], dtype=np.uint64)
        self.every = {int(i) for ids in self._ids.values() for i in ids}

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(self.parts[0].table)

    def at(self, i: int) -> tuple[Part, int]:
        """The part and its row of item i."""
        k = int(np.searchsorted(self._starts, i, side="right")) - 1
        return self.parts[k], int(self.parts[k].rows[i - self._starts[k]])

    def id(self, i: int) -> int:
        part, row = self.at(i)
        return int(self._ids[part.name][row])

    def picture(self, i: int) -> Any:
        """What `decode` takes."""
        part, row = self.at(i)
        store = part.table["image"]
        return store.read(row) if hasattr(store, "read") else np.asarray(store[np.array([row])])[0]

    def pictures_once(self) -> list[int]:
        """The items whose picture no earlier one shows: the same file, or in one split the same `picture_id`.

        Splits may number their pictures each by itself.
        """
        met: set[tuple[str, Any]] = set()
        found = []
        for i in range(len(self)):
            part, row = self.at(i)
            store = part.table["image"]
            ids = part.table.get("picture_id")
            of = ("", store.paths[row]) if isinstance(store, Files) else (part.name, row if ids is None else int(ids[row]))
            if of not in met:
                met.add(of)
                found.append(i)
        return found

    def text(self, i: int) -> str:
        """The row's text, or its captions, one a line; "" where it has none."""
        part, row = self.at(i)
        column = next((name for name in WORDS if name in part.table), "")
        value = part.table[column][row] if column else ""
        return value if isinstance(value, str) else "\n".join(value)

    def label(self, i: int) -> str:
        part, row = self.at(i)
        c = int(part.table["label"][row]) if "label" in part.table else -1
        return "" if c < 0 else self.classes[c] if c < len(self.classes) else str(c)

    def batch(self, index: list[int]) -> dict[str, Any]:
        """Rows of numbers or series as a batch; all of one part."""
        part = self.at(index[0])[0]
        rows = np.array([self.at(i)[1] for i in index])
        names = [name for name in ("features", "series", "target") if name in part.table]
        if part.opened is not None:
            return part.opened.only(*names).take(rows)
        return Rows({name: part.table[name] for name in names}).take(rows)

    def shown(self, i: int) -> dict[str, Any]:
        """What an index keeps of an item: name, and path, text and class where there are some."""
        part, row = self.at(i)
        store, found = part.table.get("image"), {"name": self._name(part, row)}
        if isinstance(store, Files):
            found["path"] = os.path.abspath(store.paths[row])
        found |= {"text": text} if (text := self.text(i)) else {}
        return found | ({"class": label} if (label := self.label(i)) else {})

    def stamp(self, i: int) -> str:
        """Changes when the item does: of a file its size and time, else its content; and what is shown of it."""
        part, row = self.at(i)
        digest = hashlib.blake2b(f"{self.text(i)}\0{self.label(i)}\0".encode("utf-8", "surrogateescape"), digest_size=8)
        if "image" in part.table:
            try:
                source = self.picture(i)
                if isinstance(source, (str, Path)):
                    about = os.stat(source)
                    digest.update(f"{about.st_size} {about.st_mtime_ns}".encode())
                else:
                    digest.update(source if isinstance(source, bytes) else np.ascontiguousarray(source).tobytes())
            except Exception:  # it cannot be read: so it says, when its turn comes
                digest.update(b"missing")
        for name in ("features", "series"):
            if name in part.table:
                digest.update(np.ascontiguousarray(part.table[name][row]).tobytes())
        return digest.hexdigest()

    def _name(self, part: Part, row: int) -> str:
        store = part.table.get("image")
        if part.opened is not None:
            name = part.opened.name(row)
            return f"{part.name} {name}" if name.startswith("row ") else name
        return store.name(row) if isinstance(store, (Files, Archive)) else f"{part.name} row {row}"

    def _id(self, part: Part, row: int, met: dict[int, int]) -> int:
        """A hash of spec and name, of the second row of a name also of its number."""
        name = f"{self.spec}\0{self._name(part, row)}"
        first = _hash(name)
        met[first] = met.get(first, 0) + 1
        return first if met[first] == 1 else _hash(f"{name}\0{met[first]}")


def not_streamed(data: Data) -> None:
    """Raises `NotanError` for data of which only a sample is at hand: what is embedded is every row."""
    if data.streamed is not None:
        raise NotanError(f"{data.info.name} is streamed: only a sample of its rows is at hand", "all rows, to embed them",
                         "open it without streaming (pictures beyond the cache's limit are decoded on the fly)")


def items_of(data: str | os.PathLike | Data, asked: str | None, columns: Mapping[str, str] | None = None) -> Items:
    """The items of anything that `open_data` takes; `asked` is "train", "test", or None for both.

    Data without a test split is split by key where one of the two is asked for, as it is for training. Raises `NotanError` where
    the data does, and for data that is streamed.
    """
    if isinstance(data, Data):
        not_streamed(data)
        every = [Part(name, {c: _Column(rows, c) for c in rows.columns}, np.arange(len(rows)), len(rows), rows)
                 for name, rows in (("train", data.train), ("test", data.test))]
        return Items(_spec(data.spec or data.info.name), _asked(every, asked), data.info.classes)
    raw = read(str(data), columns)
    sizes = {name: len(next(iter(table.values()))) for name, table in raw.tables.items()}
    parts = [Part(name, table, np.arange(sizes[name]), sizes[name]) for name, table in raw.tables.items()]
    if asked is not None and raw.test is None:
        ids = np.arange(sizes["train"]) if raw.ids is None else raw.ids
        labels = raw.train.get("label")
        parts[0].rows = split(ids, None if labels is None else np.asarray(labels))[asked == "test"]
        asked = None
    return Items(_spec(str(data)), _asked(parts, asked), raw.classes)


class _Column:
    """A column of opened rows, by their own numbers."""

    def __init__(self, rows: Rows, name: str) -> None:
        self.store, self.index, self.length = rows.stores[name], rows.index, len(rows)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, row: Any) -> Any:
        where = row if self.index is None else self.index[row]
        return self.store[where]


def _asked(parts: list[Part], asked: str | None) -> list[Part]:
    """The same parts, without rows of splits that were not asked for."""
    for part in parts:
        if asked is not None and part.name != asked:
            part.rows = part.rows[:0]
    return parts


def _spec(spec: str) -> str:
    path = Path(spec).expanduser()
    return str(path.resolve()) if path.exists() else spec


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "little")
