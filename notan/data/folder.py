"""Folders: pictures by class, with or without train/ and test/; or tables in a folder."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from notan.data import keys
from notan.data.pictures import SUFFIXES, Files, stamp_of
from notan.data.raw import Raw
from notan.errors import NotanError

TRAIN = ("train", "training")
TEST = ("test", "testing", "val", "valid", "validation", "dev", "eval")  # the first that is there


def picture_files(root: Path) -> tuple[list[str], Counter[str]]:
    """All picture files below a folder, sorted, and the suffixes of the other files, counted. Links are followed."""
    found, others = [], Counter[str]()
    for path in _walk(str(root), set()):
        if path.lower().endswith(SUFFIXES):
            found.append(path)
        else:
            others[os.path.splitext(path)[1].lower() or "no suffix"] += 1
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


def read_pictures(root: Path) -> Raw:
    """A folder of pictures: the first folder below the root (or below train/, test/) is the class.

    Pictures without class folders have no label. Raises NotanError when there are no pictures.
    """
    folders, notes = split_folders(root)
    files = {name: picture_files(folder)[0] for name, folder in folders.items()}
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
    ids = np.array([keys.word(os.path.relpath(p, root)) for p in splits["train"]["image"].paths], dtype=np.int64)
    stamp = stamp_of([p for split in splits.values() for p in split["image"].paths])
    return Raw(root.name, splits["train"], splits.get("test"), tuple(classes), notes, ids, stamp)


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
