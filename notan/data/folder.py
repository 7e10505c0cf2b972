"""Folders: pictures by class, with or without train/ and test/, with or without a text beside each; or tables in a folder."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from notan.data import keys
from notan.data.cache import CHUNK, noted, workers
from notan.data.pictures import SUFFIXES, Files, stamp_of
from notan.data.raw import Raw
from notan.errors import NotanError

TRAIN = ("train", "training")
LEFT_OUT = "--column text= to leave the texts out"
VERSION = 1  # of what is noted of texts beside pictures
TEST = ("test", "testing", "val", "valid", "validation", "dev", "eval")  # the first that is there


def picture_files(root: Path) -> tuple[list[str], list[str]]:
    """All picture files below a folder, sorted, and the other files. Links are followed."""
    found, others = [], []
    for path in _walk(str(root), set()):
        if path.lower().endswith(SUFFIXES):
            found.append(path)
        else:
            others.append(path)
    return sorted(found), others


def split_folders(root: Path) -> tuple[dict[str, Path], list[str]]:
    """{"train": folder, "test": folder}, with "train" the root itself when there are no such subfolders; and notes."""
    here = {path.name.lower(): path for path in sorted(root.iterdir()) if path.is_dir()}
    train, test = pick_splits(list(here))
    if not train:
        return {"train": root}, []
    chosen = {"train": here[train]} | ({"test": here[test]} if test else {})
    left = sorted(set(here) - {train, test})
    used = " and ".join(path.name for path in chosen.values())
    return chosen, [f"Folders not used beside {used}: {', '.join(left)}."] if left else []


def pick_splits(names: list[str]) -> tuple[str, str]:
    """Which name is the training split and which the test split; "" for none."""
    return next((n for n in TRAIN if n in names), ""), next((n for n in TEST if n in names), "")


def wants_texts(root: Path, columns: Mapping[str, str] | None) -> bool:
    """Whether the texts beside pictures are read: {"text": ""} leaves them out. Raises NotanError for any other renaming."""
    if columns and dict(columns) != {"text": ""}:
        raise NotanError(f"{root} is a folder of pictures: it has no columns to rename",
                         "at most --column text=, which leaves the texts beside them out", "leave out --column")  # fmt: skip
    return not columns


def read_pictures(root: Path, columns: Mapping[str, str] | None = None) -> Raw:
    """A folder of pictures, as `find_pictures` says, with the texts beside them: `captions` where some file has several,
    else `text`. Raises NotanError when a text has no line or is no UTF-8.
    """
    raw, beside = find_pictures(root, columns)
    texts = {split: [*lines_of(paths)] for split, paths in beside.items()}
    if texts:
        column = _column_of({split: [*map(len, every)] for split, every in texts.items()}, beside, root)
        for split, every in texts.items():
            raw.tables[split][column] = every if column == "captions" else [lines[0] for lines in every]
    return raw


def find_pictures(root: Path, columns: Mapping[str, str] | None = None) -> tuple[Raw, dict[str, list[str]]]:
    """A folder of pictures: the first folder below the root (or below train/, test/) is the class; and by split the files of
    the texts that lie beside them (cat.txt beside cat.jpg), which are not read yet: {} where few pictures have one,
    or `columns` leave them out.

    Pictures without class folders have no label. Raises NotanError when there are no pictures, or when some of them lack the
    text that most have.
    """
    texts = wants_texts(root, columns)
    folders, notes = split_folders(root)
    there = {name: picture_files(folder) for name, folder in folders.items()}
    files = {name: pictures for name, (pictures, _) in there.items()}
    for name, paths in files.items():
        if not paths:
            raise NotanError(f"{folders[name]} has no pictures", f"files ending in {', '.join(SUFFIXES[:4])} ...")
    classes = sorted({c for name, paths in files.items() for p in paths if (c := _class(p, folders[name]))})
    splits: dict[str, dict[str, Any]] = {}
    for name, paths in files.items():
        outside = [p for p in paths if not _class(p, folders[name])] if classes else []
        if outside:
            example = os.path.relpath(outside[0], root)
            notes.append(f"{len(outside):,} pictures outside any class folder are left out ({example} ...).")
        used = sorted(set(paths) - set(outside))
        if not used:
            raise NotanError(f"{folders[name]} has no pictures in class folders, as the other split has",
                             "class folders in both splits")  # fmt: skip
        splits[name] = {"image": Files(used, root)}
        if classes:
            splits[name]["label"] = np.array([classes.index(_class(p, folders[name])) for p in used], dtype=np.int64)
    beside = _beside(splits, {path for _, others in there.values() for path in others}, root, notes) if texts else {}
    ids = np.array([keys.word(os.path.relpath(p, root)) for p in splits["train"]["image"].paths], dtype=np.int64)
    every = [*(split["image"].paths for split in splits.values()), *beside.values()]
    stamp = stamp_of(path for paths in every for path in paths)
    return Raw(root.name, splits["train"], splits.get("test"), tuple(classes), notes, ids, stamp), beside


def column_beside(beside: Mapping[str, Sequence[str]], root: Path, cache: Path) -> str:
    """Which column the texts beside pictures are, "" where there are none: read through once, and noted in the cache.

    Raises NotanError as `read_pictures` does.
    """
    if not beside:
        return ""
    def find() -> dict[str, str]:
        counts = {split: [*map(len, lines_of(paths))] for split, paths in beside.items()}
        return {"column": _column_of(counts, beside, root)}

    about = f"{VERSION} {stamp_of(path for paths in beside.values() for path in paths)}"
    return noted(cache, "captions", about, find)["column"]


def lines_of(paths: Sequence[str]) -> Iterator[list[str]]:
    """The lines of text files that are not blank."""
    with ThreadPoolExecutor(workers()) as pool:
        for first in range(0, len(paths), CHUNK):
            yield from pool.map(_lines, paths[first : first + CHUNK])


def text_beside(path: str) -> str:
    """Where the text beside a picture is: cat.txt of cat.jpg."""
    return os.path.splitext(path)[0] + ".txt"


def _beside(splits: dict[str, dict[str, Any]], others: set[str], root: Path, notes: list[str]) -> dict[str, list[str]]:
    """By split the texts beside all pictures, out of the `others` that are no pictures; {} where few pictures have one."""
    wanted = {name: [text_beside(p) for p in split["image"].paths] for name, split in splits.items()}
    every = [path for paths in wanted.values() for path in paths]
    there = [path for path in every if path in others]
    if 2 * len(there) < len(every):
        if there:
            first = os.path.relpath(there[0], root)
            notes.append(f"{len(there):,} of {len(every):,} pictures have a text beside them ({first} ...): too few to be "
                         "captions, so they are not read.")  # fmt: skip
        return {}
    if len(there) < len(every):
        lacking = sorted(set(every) - others)
        raise NotanError(f"{len(lacking):,} of {len(every):,} pictures of {root} have no caption (first: "
                         f"{os.path.relpath(lacking[0], root)} is missing)", "a .txt of the same name beside every picture",
                         f"write them, move these pictures elsewhere, or {LEFT_OUT}")  # fmt: skip
    if shared := [path for path, pictures in Counter(every).items() if pictures > 1]:
        notes.append(f"{len(shared):,} texts lie beside several pictures, and are captions of each "
                     f"({os.path.relpath(shared[0], root)} ...).")  # fmt: skip
    return wanted


def _column_of(lines: Mapping[str, Sequence[int]], beside: Mapping[str, Sequence[str]], root: Path) -> str:
    """`captions` where some text has several lines, else `text`. `lines`: how many each has."""
    empty = [path for name, paths in beside.items() for path, count in zip(paths, lines[name]) if not count]
    if empty:
        raise NotanError(f"{len(empty):,} of {sum(map(len, beside.values())):,} caption files of {root} are empty (first: "
                         f"{os.path.relpath(empty[0], root)})", "a caption in each",
                         f"write them, move these pictures elsewhere, or {LEFT_OUT}")  # fmt: skip
    return "captions" if any(count > 1 for every in lines.values() for count in every) else "text"


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8-sig") as file:
            return [line.strip() for line in file if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise NotanError(f"{path} cannot be read ({error})", "a text in UTF-8", f"repair it, or {LEFT_OUT}") from error


def _class(path: str, root: Path) -> str:
    parts = os.path.relpath(path, root).split(os.sep)
    return parts[0] if len(parts) > 1 else ""


def _walk(folder: str, seen: set[str]) -> Iterator[str]:
    real = os.path.realpath(folder)
    if real in seen:  # a link that leads back
        return
    seen.add(real)
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise NotanError(f"{folder} cannot be listed ({error.strerror})", "a folder that can be read") from error
    for entry in entries:
        if entry.name.startswith((".", "__MACOSX")):
            continue
        if entry.is_dir():
            yield from _walk(entry.path, seen)
        elif entry.is_file():
            yield entry.path
