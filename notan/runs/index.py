"""An index on disk: vectors of things that can be searched, and what is shown of them.

    index.json      what it is, which model made it, which parts are whole, which rows are dropped: replaced in one step, last
    vectors.bin     (N, dim) of float16 or float32, each of length 1, in the machine's little-endian order
    rows.bin        (N,) of ROW: where a row's item and thumbnail lie, its class, and the id of its item
    items.bin       JSON, one after another: name, stamp, source; path, text and class where there are some
    thumbs.bin      JPEG files, one after another

Files only grow, and index.json says how far they are whole: what a killed writer left behind that is cut off by the next. So a
reader never sees half a part, and rows keep their numbers. A row that is dropped stays in the files and is not found.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from notan.errors import NotanError
from notan.runs.checkpoint import full_disk_explained, make_folder, write_text

VERSION = 1
ROW = np.dtype([("item", "<u8"), ("item_bytes", "<u4"), ("thumb", "<u8"), ("thumb_bytes", "<u4"), ("label", "<i4"),
                ("id", "<u8")])
FILES = ("vectors", "rows", "items", "thumbs")
DTYPES: dict[str, Any] = {"float16": np.dtype("<f2"), "float32": np.dtype("<f4")}
CHUNK = 16 << 20                                                        # bytes that are checked at a time


class Index:
    """An index, open for reading as it was at that moment. Raises `NotanError` where it is none, of another version or damaged.

    Vectors, rows and items are checked against their sums, at some 4 GB a second; thumbnails when `check` is asked to.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.header = read_header(self.path)
        self.count, self.dim = int(self.header["rows"]), int(self.header["dim"] or 0)
        for name, size in self.header["bytes"].items():
            have = size_of(self.path / f"{name}.bin")
            if have < size:
                raise NotanError(f"{self.path / f'{name}.bin'} has {have:,} bytes of {size:,}", "the files of one index, whole",
                                 _rebuild(self.path))
        self.vectors = _mapped(self.path / "vectors.bin", DTYPES[self.header["dtype"]], (self.count, self.dim))
        self.rows = _mapped(self.path / "rows.bin", ROW, (self.count,))
        self.alive = ~dropped_of(self.header)
        self.check("vectors", "rows", "items")

    def __len__(self) -> int:
        """How many rows can be found."""
        return int(self.alive.sum())

    @property
    def kind(self) -> str:
        """"picture", "text" or "numbers"."""
        return self.header["kind"]

    @property
    def classes(self) -> list[str]:
        return self.header["classes"]

    def item(self, row: int) -> dict[str, Any]:
        """What is known of a row: name, source, and path, text and class where there are some."""
        at = self.rows[row]
        try:
            return json.loads(self._read("items", int(at["item"]), int(at["item_bytes"])))
        except ValueError as error:
            raise NotanError(f"row {row:,} of {self.path} cannot be read ({error})", "what `notan embed` wrote",
                             _rebuild(self.path)) from None

    def thumb(self, row: int) -> bytes:
        """A row's thumbnail as JPEG, b"" where it has none."""
        at = self.rows[row]
        return self._read("thumbs", int(at["thumb"]), int(at["thumb_bytes"])) if at["thumb_bytes"] else b""

    def check(self, *files: str) -> None:
        """Raises `NotanError` that names the first damaged part of these files (default: all)."""
        for name in (files or FILES) if self.header["parts"] else ():
            with (self.path / f"{name}.bin").open("rb") as file:
                for number, part in enumerate(self.header["parts"]):
                    start, stop, sum_ = part[name]
                    if _sum(file, start, stop) != sum_:
                        raise NotanError(
                            f"part {number} of {self.path} is damaged: bytes {start:,} to {stop:,} of {name}.bin (rows "
                            f"{part['first']:,} to {part['last'] - 1:,}) are not what was written", "an index as it was written",
                            _rebuild(self.path))

    def _read(self, name: str, start: int, size: int) -> bytes:
        with (self.path / f"{name}.bin").open("rb") as file:
            file.seek(start)
            return file.read(size)


class Writer:
    """The one writer of an index, which holds its lock while it is open; a lock of a writer that died is free.

    about: `kind`, `model` (name, fingerprint, vector, instruction), `dtype`, `fit` of a new index; an old one's must agree. A
    dtype of None is the old one's, or float16. Raises `NotanError` where another process writes, for another model, and for a
    folder that holds something else.
    """

    def __init__(self, path: str | Path, about: dict[str, Any]) -> None:
        from filelock import FileLock, Timeout

        self.path = Path(path)
        if self.path.is_file():
            raise NotanError(f"{self.path} is a file", "a folder for the index", "--out FOLDER")
        if self.path.is_dir() and not is_index(self.path) and any(
                p.name not in (".lock", *(f"{name}.bin" for name in FILES)) and not p.name.startswith(".index.json")
                for p in self.path.iterdir()):
            raise NotanError(f"{self.path} holds other files and no index", "a new folder, or one that `notan embed` wrote",
                             f"--out {self.path / 'index'}")
        make_folder(self.path)
        self.lock = FileLock(str(self.path / ".lock"))
        try:
            self.lock.acquire(timeout=0)
        except Timeout:
            raise NotanError(f"another process is writing to {self.path}", "one writer at a time",
                             "wait until it is done; the same command then goes on") from None
        try:
            self._open(about)
        except BaseException:
            self.lock.release()
            raise

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self.lock.release()

    def _open(self, about: dict[str, Any]) -> None:
        if is_index(self.path):
            self.header = read_header(self.path)
            same_model(self.path, self.header["model"], about["model"])
            for key in ("kind", "dtype", "fit"):
                if about[key] is not None and self.header[key] != about[key]:
                    raise NotanError(f"{self.path} has {key} {self.header[key]!r}, and {about[key]!r} was asked for",
                                     "one of them in an index", "ask for the former, or choose another --out")
        else:
            about = {**about, "dtype": about["dtype"] or "float16"}
            self.header = {"notan_index": VERSION, "metric": "cosine", "dim": None, "rows": 0, "live": 0, **about, "classes": [],
                           "bytes": dict.fromkeys(FILES, 0), "parts": [], "dropped": [], "unreadable": {}, "sources": []}
            self._save()
        for name in FILES:
            with full_disk_explained(self.path), (self.path / f"{name}.bin").open("ab") as file:
                file.truncate(self.header["bytes"][name])               # what a killed writer left
        self.index = Index(self.path)
        self.index.check("thumbs")

    def known(self) -> dict[int, tuple[int, str, str]]:
        """id -> (row, stamp, source) of every row that can be found."""
        live, found = np.flatnonzero(self.index.alive), {}
        rows, items = np.asarray(self.index.rows)[live], (self.path / "items.bin").read_bytes()
        for row, start, size, id_ in zip(live.tolist(), *(rows[name].tolist() for name in ("item", "item_bytes", "id"))):
            item = json.loads(items[start : start + size])
            found[id_] = (row, item["stamp"], item["source"])
        return found

    def append(self, vectors: np.ndarray, ids: Sequence[int], items: Sequence[dict[str, Any]], thumbs: Sequence[bytes] = (), *,
               dropped: Iterable[int] = (), unreadable: dict[str, list[str]] | None = None) -> None:
        """Add rows (n, dim) and drop others, as one part: all of it, or nothing."""
        header = json.loads(json.dumps(self.header))
        if not np.isfinite(vectors).all():
            raise NotanError("vectors are not finite", "finite numbers", "a model that has not diverged")
        if len(vectors):
            header["dim"] = header["dim"] or vectors.shape[1]
            if vectors.shape != (len(ids), header["dim"]):
                raise NotanError(f"vectors of shape {vectors.shape}", f"({len(ids)}, {header['dim']}), as the index has",
                                 "one model for one index")
            content = self._content(header, vectors, ids, items, thumbs)
            part: dict[str, Any] = {"first": header["rows"], "last": header["rows"] + len(ids)}
            for name, data in content.items():
                start = header["bytes"][name]
                part[name] = [start, start + len(data), zlib.crc32(data)]
                header["bytes"][name] = start + len(data)
                with full_disk_explained(self.path), (self.path / f"{name}.bin").open("r+b") as file:
                    file.seek(start)
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
            header["parts"].append(part)
            header["rows"] = part["last"]
        good = {f"{id_:016x}" for id_ in ids}
        header["unreadable"] = {k: v for k, v in (header["unreadable"] | (unreadable or {})).items() if k not in good}
        gone = dropped_of(header)
        gone[list(dropped)] = True
        header["dropped"], header["live"] = _runs(gone), int((~gone).sum())
        self.header = header
        self._save()

    def note(self, **changes: Any) -> None:
        """Replace keys of the header."""
        self.header |= changes
        self._save()

    def _content(self, header: dict[str, Any], vectors: np.ndarray, ids: Sequence[int], items: Sequence[dict[str, Any]],
                 thumbs: Sequence[bytes]) -> dict[str, bytes]:
        number = {name: c for c, name in enumerate(header["classes"])}
        rows, said = np.zeros(len(ids), dtype=ROW), [json.dumps(item).encode() for item in items]
        for item in items:
            if (label := item.get("class")) is not None and label not in number:
                number[label] = len(number)
        rows["item"] = header["bytes"]["items"] + np.cumsum([0, *map(len, said)])[:-1]
        rows["item_bytes"] = [len(text) for text in said]
        rows["label"] = [number.get(item.get("class"), -1) for item in items]
        rows["id"] = np.array(ids, dtype=np.uint64)
        if len(thumbs):
            rows["thumb"] = header["bytes"]["thumbs"] + np.cumsum([0, *map(len, thumbs)])[:-1]
            rows["thumb_bytes"] = [len(x) for x in thumbs]
        header["classes"] = list(number)
        return {"vectors": np.ascontiguousarray(vectors, dtype=DTYPES[header["dtype"]]).tobytes(), "rows": rows.tobytes(),
                "items": b"".join(said), "thumbs": b"".join(thumbs)}

    def _save(self) -> None:
        write_text(self.path / "index.json", json.dumps(self.header) + "\n")


KEYS = {"kind": str, "dtype": str, "fit": str, "model": dict, "rows": int, "bytes": dict, "parts": list, "dropped": list,
        "unreadable": dict, "classes": list, "sources": list}                # of index.json, beside its version


def is_index(path: Path) -> bool:
    """Whether a folder is an index, of whatever version, or was one whose index.json is damaged."""
    try:
        header = json.loads((path / "index.json").read_text())
    except OSError:
        return False
    except ValueError:
        return (path / "vectors.bin").exists()
    return isinstance(header, dict) and "notan_index" in header


def read_header(path: Path) -> dict[str, Any]:
    """index.json of an index. Raises `NotanError` where there is none, or of another version."""
    try:
        header = json.loads((path / "index.json").read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise _none(path) from None
    except (OSError, ValueError) as error:
        fix = _rebuild(path) if is_index(path) else "check the path"
        raise NotanError(f"{path / 'index.json'} cannot be read ({error})", "what `notan embed` wrote", fix) from None
    if not isinstance(header, dict) or "notan_index" not in header:
        raise _none(path)
    if header["notan_index"] != VERSION:
        raise NotanError(f"{path} is an index of version {header['notan_index']}", f"version {VERSION}", _rebuild(path))
    if odd := [key for key, kind in KEYS.items() if not isinstance(header.get(key), kind)]:
        raise NotanError(f"{path / 'index.json'} cannot be read ({odd[0]} is {header.get(odd[0])!r})", "what `notan embed` wrote",
                         _rebuild(path))
    return header


def _none(path: Path) -> NotanError:
    return NotanError(f"{path} is no index", "a folder that `notan embed RUN --data DATA --out FOLDER` wrote",
                      "check the path, or write it")


def dropped_of(header: dict[str, Any]) -> np.ndarray:
    """Which rows are dropped: bool (N,)."""
    gone = np.zeros(header["rows"], dtype=bool)
    for first, last in header["dropped"]:
        gone[first:last] = True
    return gone


def same_model(path: Path, own: dict[str, Any], other: dict[str, Any]) -> None:
    """Raises `NotanError` that names both where the model of an index and another are not the same weights, vector and
    instruction.
    """
    if any(own.get(part) != other.get(part) for part in ("fingerprint", "vector", "instruction")):
        names = [f"{m['name']} ({', '.join([m['fingerprint'], *_chosen(m)])})" for m in (own, other)]
        asked = own.get("instruction")
        same = own["fingerprint"] == other["fingerprint"] and own["vector"] == other["vector"]
        fix = f"--instruction {asked!r}" if same and asked else "leave out --instruction" if same else "use that model"
        raise NotanError(f"{path} was made by {names[0]}, and this is {names[1]}", "vectors of one model in an index",
                         f"{fix}, or embed again to another folder")


def _chosen(model: dict[str, Any]) -> list[str]:
    """What was chosen of a model, in words."""
    return [said for said in (model.get("vector"), model.get("instruction") and repr(model["instruction"])) if said]


def _rebuild(path: Path) -> str:
    return f"delete {path} and give the `notan embed` command again"


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _mapped(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """A file as an array that is read as it is used; private to this process."""
    return np.memmap(path, dtype, "c", shape=shape) if all(shape) else np.zeros(shape, dtype)


def _sum(file: Any, start: int, stop: int) -> int:
    file.seek(start)
    found = 0
    while start < stop:
        data = file.read(min(CHUNK, stop - start))
        if not data:
            break
        found, start = zlib.crc32(data, found), start + len(data)
    return found


def _runs(gone: np.ndarray) -> list[list[int]]:
    """[first, last) of every run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], gone.astype(np.int8), [0]])))
    return edges.reshape(-1, 2).tolist()
