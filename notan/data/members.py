"""What is in a tar: the members of its samples and where their bytes are, from its headers alone. Nothing is unpacked.

The layout is WebDataset's: members KEY.EXT with one KEY are a sample, KEY being everything up to the first dot of the base
name, folders included. They usually follow one another; here they need not.
"""

from __future__ import annotations

import os
import tarfile
from collections import Counter
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from notan.data.pictures import SUFFIXES, why
from notan.errors import NotanError

PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")
MAGIC = (b"\x1f\x8b", b"BZ", b"\xfd7", b"\x28\xb5")  # of gzip, bzip2, xz and zstd
NAMED = {"txt": "text", "cls": "label", "json": "json"}  # kinds of members that are no pictures, and their columns
MOST_KINDS = 64  # in one tar
ZEROS = bytes(512)


class Index(NamedTuple):
    """The samples of a tar in order: their keys; what kind of member each column is; and where those are, int64 (N, 2): first
    byte and size, -1 in samples without. `unread` counts the members that mean nothing here, by what they are.
    """

    keys: list[str]
    kinds: dict[str, str]  # column -> picture, txt, cls or json
    places: dict[str, np.ndarray]
    unread: dict[str, int]


def look_through(path: str) -> Index:
    """The index of a tar. Raises NotanError when it is none, is packed, damaged or cut off, holds no sample, or when a sample
    has two members of one column.
    """
    numbers: dict[str, int] = {}  # of the samples
    kinds: dict[str, str] = {}
    found: dict[str, dict[int, tuple[int, int]]] = {}
    unread: Counter[str] = Counter()
    twice: list[str] = []
    for member in _members(path):
        if member is None:
            unread["missing end mark (cut off?)"] += 1
            continue
        name = member.name.encode("utf-8", "surrogateescape").decode("utf-8", "replace").removeprefix("./")
        if member.isdir() or any(part.startswith((".", "__MACOSX")) for part in name.split("/") if part != ".."):
            continue
        if why_not := _unread(member, name):
            unread[why_not] += 1
            continue
        folder, base = os.path.split(name)
        stem, _, suffix = base.partition(".")
        key = f"{folder}/{stem}" if folder else stem
        column, kind = meant(suffix)
        row = numbers.setdefault(key, len(numbers))
        if kinds.setdefault(column, kind) != kind:
            raise NotanError(f"{path} has {called(column, kind)} ({name}) and {called(column, kinds[column])}: both are the "
                             f"column {column!r}", "one kind of member for each", "rename one of them")  # fmt: skip
        if row in found.setdefault(column, {}):
            twice.append(f"{name} is the second {column} of {key}")
        found[column][row] = (member.offset_data, member.size)
        if len(kinds) > MOST_KINDS:
            raise NotanError(f"{path} has over {MOST_KINDS} kinds of members, such as .{suffix}", "names KEY.EXT, where the key "
                             "ends at the first dot", "keys without dots (of 1.5.jpg the key would be 1)")  # fmt: skip
    if twice:
        raise NotanError(f"{path} has {len(twice):,} samples with two members of a kind (first: {twice[0]})",
                         "one of each kind in a sample", "rename or remove one of them")  # fmt: skip
    if not numbers:
        there = ", ".join(f"{count:,} {what}" for what, count in unread.most_common(5))
        raise NotanError(f"{path} has no samples" + (f" (it has {there})" if there else ": it is empty"),
                         "pictures, .txt, .cls or .json named KEY.EXT", "remove the file")  # fmt: skip
    places = {column: np.full((len(numbers), 2), -1, dtype=np.int64) for column in found}
    for column, rows in found.items():
        places[column][[*rows]] = [*rows.values()]
    return Index([*numbers], kinds, places, dict(unread))


def meant(suffix: str) -> tuple[str, str]:
    """The column that a member's suffix, all after the first dot, stands for, and its kind: ("", "") where it means nothing."""
    name, _, last = suffix.lower().rpartition(".")
    if f".{last}" in SUFFIXES:
        return name or "image", "picture"
    if last in NAMED and not (name and last == "json"):
        return name or NAMED[last], last
    return "", ""


def called(column: str, kind: str) -> str:
    """What a message calls the members of a column: .txt, query.txt, pictures."""
    if kind == "picture":
        return "pictures" if column == "image" else f"{column} pictures"
    return f".{kind}" if column == NAMED[kind] else f"{column}.{kind}"


def packed(path: str) -> NotanError:
    """That a tar is compressed."""
    return NotanError(f"{path} is a compressed tar: its samples cannot be reached without reading what is before them",
                      "a plain .tar (pictures are compressed already)", "unpack it to a tar: gunzip, bunzip2, unxz or unzstd")


def _unread(member: tarfile.TarInfo, name: str) -> str:
    """What a member is that is not read, "" for one that is."""
    if member.issym() or member.islnk():
        return "links"
    if not member.isreg() or member.issparse():
        return "devices" if member.isdev() else "sparse files"
    if name.startswith("/") or ".." in name.split("/"):
        return "names that lead out of the tar"
    suffix = os.path.basename(name).partition(".")[2]
    return "" if meant(suffix)[1] else f".{suffix}" if suffix else "without suffix"


def _members(path: str) -> Iterator[Any]:
    """All members, by their headers; then None where the mark is missing that tars end with. Raises NotanError when the tar
    ends otherwise.
    """
    size, passed = 0, 0
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if file.read(2) in MAGIC:
                raise packed(path)
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while (member := tar.next()) is not None:
                    tar.members = []  # type: ignore[attr-defined]  # it would keep them all
                    if member.size < 0:
                        raise ValueError("a size below 0")
                    passed += 1
                    yield member
                if not _ended(path, file, tar.offset, size, passed):
                    yield None
    except NotanError:
        raise
    except tarfile.ReadError as error:
        if passed and "unexpected end" in str(error):
            raise _cut(path, size, passed) from error
        raise _damaged(path, why(error), passed) from error
    except (OSError, ValueError, tarfile.TarError) as error:
        raise _damaged(path, why(error), passed) from error


def _ended(path: str, file: BinaryIO, offset: int, size: int, passed: int) -> bool:
    """Whether there is a block of zeros at the end. Raises NotanError where there is part of a block, or something else."""
    file.seek(offset)
    head = file.read(512)
    if 0 < len(head) < 512:
        raise _cut(path, size, passed)
    if head and head != ZEROS:
        raise _damaged(path, f"no header at byte {offset:,}", passed)
    while block := file.read(1 << 20):
        if block.count(0) < len(block):
            raise NotanError(f"{path} goes on after its end at byte {offset:,} (two tars joined?)", "one tar in a file",
                             "keep them as files of their own")  # fmt: skip
    return bool(head)


def _cut(path: str, size: int, passed: int) -> NotanError:
    return NotanError(f"{path} is cut off: it ends at byte {size:,} inside member {passed:,}", "a whole tar",
                      "fetch or write it again, or leave it out")


def _damaged(path: str, reason: str, passed: int) -> NotanError:
    where = f" after {passed:,} members" if passed else ""
    return NotanError(f"{path} cannot be read as a tar{where} ({reason})", "a whole, uncompressed tar",
                      "fetch or write it again, or leave it out")
