"""Where data lies: which files and which splits are meant, before any of them is opened."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from notan.data.folder import TEST, TRAIN, pick_splits, picture_files, split_folders
from notan.data.members import PACKED, packed
from notan.errors import NotanError

KINDS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv", ".tsv": "csv", ".tar": "tar"}
MOST = 1_000_000  # files of a pattern


def tables_of(path: Path) -> tuple[dict[str, list[Path]], list[str]]:
    """The table files of a folder by split, and notes; no files where it is a folder of pictures.

    Raises NotanError when it holds neither.
    """
    folders, notes = split_folders(path)
    pictures, others = picture_files(path)
    tabular = {name: _tables_in(where) for name, where in folders.items()}
    if pictures and not any(files and files[0].stem == "metadata" for files in tabular.values()):
        beside = sum(path.suffix.lower() == ".tar" for files in tabular.values() for path in files)
        return {}, notes + [f"{beside:,} tars beside the pictures are not read."] * bool(beside)
    if any(path.suffix.lower() == ".tar" for files in tabular.values() for path in files):
        notes += _beside_tars(others)
    elif not any(tabular.values()) and (wrapped := [other for other in others if other.lower().endswith(PACKED)]):
        raise packed(wrapped[0])
    if list(folders) == ["train"]:  # train.parquet, test.parquet side by side
        tabular, left = _by_name(tabular["train"])
        notes += left
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
    """The files of a folder that are tables: `metadata` alone where there is one, else tars alone where there are some."""
    found = sorted(p for p in where.rglob("*") if p.suffix.lower() in KINDS and not p.name.startswith("."))
    named = [p for p in found if p.stem == "metadata"]
    return named[:1] or [p for p in found if p.suffix.lower() == ".tar"] or found


def _beside_tars(others: Sequence[str]) -> list[str]:
    """What lies beside tars and is not read."""
    kinds = (*(kind for kind in KINDS if kind != ".tar"), *PACKED)
    there = Counter(kind for other in others if (kind := next((k for k in kinds if other.lower().endswith(k)), "")))
    return [f"Files not read beside the tars: {', '.join(f'{n:,} {kind}' for kind, n in there.most_common())}."] if there else []


def _by_name(paths: list[Path]) -> tuple[dict[str, list[Path]], list[str]]:
    """Files named after splits (train-00000-of-00002.parquet, birds-test-000.tar), else all of them as one table; and notes."""
    word = {path: _word(path.stem.lower().replace("_", "-").replace(".", "-").split("-")) for path in paths}
    train, test = pick_splits(list(word.values()))
    if not train:
        return {"train": paths}, []
    names = {"train": train} | ({"test": test} if test else {})
    left = sorted(path.name for path in paths if word[path] not in names.values())
    listed = ", ".join(left[:5]) + (f" and {len(left) - 5:,} more" if len(left) > 5 else "")
    notes = [f"Files not used beside {' and '.join(names.values())}: {listed}."] if left else []
    return {name: [p for p in paths if word[p] == w] for name, w in names.items()}, notes


def _word(words: list[str]) -> str:
    """The first word of a name that is a split's, else the first."""
    return next((word for word in words if word in (*TRAIN, *TEST)), words[0])


def expanded(spec: str) -> list[Path]:
    """The files of a pattern such as shards-{000..009}.tar, [] where `spec` is none. Raises NotanError for files that lack."""
    found = re.search(r"\{(\d+)\.\.(\d+)\}", spec)
    if found is None or Path(spec).exists():
        return []
    if spec.lower().endswith(PACKED):
        raise packed(spec)
    if (suffix := Path(spec).suffix.lower()) not in KINDS:
        seen = f"{spec} is a pattern of {suffix or 'files without suffix'}"
        raise NotanError(seen, f"one of {', '.join(KINDS)}", "name the folder")
    first, last = found.groups()
    if not int(first) <= int(last) < int(first) + MOST:
        raise NotanError(f"the pattern {spec!r} counts from {first} to {last}", f"upwards, at most {MOST:,} files", "{000..009}")
    names = [f"{spec[: found.start()]}{i:0{len(first)}}{spec[found.end() :]}" for i in range(int(first), int(last) + 1)]
    paths = [path for name in names for path in (expanded(name) or [Path(name).expanduser().resolve()])]
    if lacking := [path for path in paths if not path.is_file()]:
        raise NotanError(f"{len(lacking):,} of the {len(paths):,} files of {spec!r} are not there (first: {lacking[0]})",
                         "every file of the pattern", "correct the range, or name the folder")  # fmt: skip
    return paths
