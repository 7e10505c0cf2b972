"""Where data lies: which files and which splits are meant, before any of them is opened."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from notan.data.folder import pick_splits, picture_files, split_folders
from notan.errors import NotanError

KINDS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv", ".tsv": "csv"}


def tables_of(path: Path) -> tuple[dict[str, list[Path]], list[str]]:
    """The table files of a folder by split, and notes; no files where it is a folder of pictures.

    Raises NotanError when it holds neither.
    """
    folders, notes = split_folders(path)
    pictures, others = picture_files(path)
    tabular = {name: _tables_in(where) for name, where in folders.items()}
    if pictures and not any(files and files[0].stem == "metadata" for files in tabular.values()):
        return {}, notes
    if list(folders) == ["train"]:  # train.parquet, test.parquet side by side
        tabular = _by_name(tabular["train"])
    if not any(tabular.values()):
        suffixes = Counter(Path(other).suffix.lower() or "no suffix" for other in others)
        there = ", ".join(f"{count} {suffix}" for suffix, count in suffixes.most_common(5))
        raise NotanError(
            f"{path} has no pictures and no tables" + (f" (it has {there})" if there else ": it is empty"),
            f"pictures (jpg, png, ...) in one folder per class, or files of {', '.join(KINDS)}",
        )
    return {name: files for name, files in tabular.items() if files}, notes


def choose_splits(names: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """{"train": name} and perhaps {"test": name} of the splits there are, and notes."""
    train, test = pick_splits(list(names))
    if not train:
        train = next(s for s in names if s != test) if len(names) > 1 or not test else test
    test = test if test != train else ""
    notes = [f"Splits not used: {', '.join(sorted(left))}."] if (left := set(names) - {train, test}) else []
    return {"train": train} | ({"test": test} if test else {}), notes


def one_kind(name: str, files: Sequence[Path]) -> str:
    """The suffix that all the files have; NotanError when there are several."""
    kinds = {path.suffix.lower() for path in files}
    if len(kinds) > 1:
        raise NotanError(f"{name} holds {' and '.join(sorted(kinds))} files", "files of one kind", "name one of the files")
    return kinds.pop()


def _tables_in(where: Path) -> list[Path]:
    found = sorted(p for p in where.rglob("*") if p.suffix.lower() in KINDS and not p.name.startswith("."))
    named = [p for p in found if p.stem == "metadata"]
    return named[:1] or found


def _by_name(paths: list[Path]) -> dict[str, list[Path]]:
    """Files named after splits (train-00000-of-00002.parquet, test.csv), else all of them as one table."""
    word = {path: path.stem.lower().replace("_", "-").split("-")[0].split(".")[0] for path in paths}
    train, test = pick_splits(list(word.values()))
    if not train:
        return {"train": paths}
    names = {"train": train} | ({"test": test} if test else {})
    return {name: [p for p in paths if word[p] == w] for name, w in names.items()}
