"""The pixel cache: every picture decoded once, into one memory-mapped array.

A cache is complete or absent: its pixels and then its description appear under their final names when all is written,
and a lock lets one process write while others wait for the result. Where pixels would pass the size limit or the disk
has no room, rows are decoded when they are asked for, by the same `decode`. Either way every picture is decoded once
at first, so the unreadable ones are known before training starts.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from notan.data.pictures import Form, Pictures, Pixels, decode, header, why
from notan.errors import NotanError

VERSION = 1  # of decoding: raise it when the same file would give other pixels
CHUNK = 256
HINT = ", after reading each once (--stream would not)"


def cache_root() -> Path:
    """Where decoded pixels and fetched sources are kept: `$NOTAN_CACHE`, else `~/.cache/notan`."""
    return Path(os.environ.get("NOTAN_CACHE") or Path.home() / ".cache" / "notan")


class Decoded(NamedTuple):
    """A column of pictures as pixels: a store of uint8 (N, C, S, S), and why some rows have none."""

    store: Any
    bad: dict[int, str]
    note: str = ""


class OnTheFly:
    """A store that decodes rows when they are asked for."""

    def __init__(self, pictures: Pictures, form: Form) -> None:
        self.pictures, self.form = pictures, form
        self.shape = (len(pictures), form.channels, form.side, form.side)
        self._pool = ThreadPoolExecutor(workers(), thread_name_prefix="notan-decode")

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        out = np.empty((len(index), *self.shape[1:]), dtype=np.uint8)
        for place, pixels in enumerate(self._pool.map(self._one, index)):
            out[place] = pixels
        return out

    def _one(self, i: int) -> np.ndarray:
        try:
            return decode(self.pictures.read(i), self.form)
        except NotanError:
            raise
        except Exception as error:
            raise NotanError(
                f"{self.pictures.name(i)} could be read when the data was opened and cannot be read now ({why(error)})",
                "data that does not change while it is used", "put the file back, or open the data again",
            ) from error  # fmt: skip


def decoded(pictures: Pictures, form: Form, root: Path, limit_gb: float) -> Decoded:
    """The pixels of all pictures: as they are, from the cache, freshly cached, or on the fly."""
    if isinstance(pictures, Pixels) and pictures.array.shape[1:] == (form.channels, form.side, form.side):
        return Decoded(pictures.array, {})
    size = len(pictures) * form.channels * form.side**2
    base = root / "pixels" / fingerprint(pictures, form)
    fits = size <= limit_gb * 1e9
    passed = f"{size / 1e9:.1f} GB of pixels pass the cache limit of {limit_gb:g} GB: decoded on the fly{HINT}."
    note = "" if fits else passed
    try:
        return _through_cache(pictures, form, base, fits, note)
    except OSError as error:  # no room, no right to write: the cache is a convenience
        note = f"The pixel cache {root} cannot be written ({error.strerror or error}): decoded on the fly{HINT}."
        return Decoded(OnTheFly(pictures, form), _bad(pictures, form), note)


def fingerprint(pictures: Pictures, form: Form) -> str:
    return hashlib.blake2b(f"{VERSION} {pictures.stamp} {len(pictures)} {form}".encode(), digest_size=10).hexdigest()


def scan(pictures: Pictures, root: Path) -> np.ndarray:
    """Width, height and channels of every picture, int32 (N, 3); zeros where the header cannot be read. Cached."""
    if isinstance(pictures, Pixels):
        channels, height, width = pictures.array.shape[1:]
        return np.tile(np.array([width, height, channels], dtype=np.int32), (len(pictures), 1))
    path = root / "pixels" / f"{hashlib.blake2b(pictures.stamp.encode(), digest_size=10).hexdigest()}-headers.npy"
    try:
        found = np.load(path, allow_pickle=False)
        if found.shape == (len(pictures), 3):
            return found
    except (OSError, ValueError, EOFError):
        pass

    def one(i: int) -> tuple[int, int, int]:
        try:
            return header(pictures.read(i))
        except Exception:
            return 0, 0, 0

    with ThreadPoolExecutor(workers()) as pool, quiet():
        found = np.array(list(pool.map(one, range(len(pictures)))), dtype=np.int32).reshape(-1, 3)
    with contextlib.suppress(OSError):
        write_whole(path, lambda file: np.save(file, found))
    return found


def workers() -> int:
    """Threads for decoding: Pillow releases the interpreter while it decodes and resizes."""
    return min(max(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 2), 32)


def _through_cache(pictures: Pictures, form: Form, base: Path, fits: bool, note: str) -> Decoded:
    from filelock import FileLock

    base.parent.mkdir(parents=True, exist_ok=True)
    about = base.with_suffix(".json")
    with FileLock(str(base.with_suffix(".lock"))):
        if fits and (kept := _load(base, about, (len(pictures), form.channels, form.side, form.side))):
            return kept
        if fits:
            room = shutil.disk_usage(base.parent).free
            size = len(pictures) * form.channels * form.side**2
            if size > room:
                raise OSError(28, f"{size / 1e9:.1f} GB wanted, {room / 1e9:.1f} GB free")
            bad = _fill(pictures, form, base.with_suffix(".npy"))
        else:
            try:
                bad = _known_bad(about)
            except (OSError, ValueError, KeyError):
                bad = _bad(pictures, form)
        text = json.dumps({"pictures": len(pictures), "form": form._asdict(), "bad": bad})
        write_whole(about, lambda file: file.write(text.encode()))
    if not fits:
        return Decoded(OnTheFly(pictures, form), bad, note)
    return Decoded(np.load(base.with_suffix(".npy"), mmap_mode="r"), bad)


def _load(base: Path, about: Path, shape: tuple[int, ...]) -> Decoded | None:
    try:
        store = np.load(base.with_suffix(".npy"), mmap_mode="r", allow_pickle=False)
        bad = _known_bad(about)
    except (OSError, ValueError, EOFError, KeyError):
        return None
    return Decoded(store, bad) if store.shape == shape else None


def _known_bad(about: Path) -> dict[int, str]:
    return {int(i): reason for i, reason in json.loads(about.read_text())["bad"].items()}


def _fill(pictures: Pictures, form: Form, path: Path) -> dict[int, str]:
    """Decode everything into `path`, through ordinary writes: a full disk is then an error, not a crash."""
    bad: dict[int, str] = {}
    shape = (len(pictures), form.channels, form.side, form.side)

    def write(file: Any) -> None:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for i, pixels in _all(pictures, form):
            if isinstance(pixels, str):
                bad[i] = pixels
            file.write(bytes(form.channels * form.side**2) if isinstance(pixels, str) else pixels.tobytes())

    write_whole(path, write)
    return bad


def _bad(pictures: Pictures, form: Form) -> dict[int, str]:
    return {i: pixels for i, pixels in _all(pictures, form) if isinstance(pixels, str)}


def _all(pictures: Pictures, form: Form) -> Iterator[tuple[int, np.ndarray | str]]:
    """Every picture's pixels, or why it has none, in order."""

    def one(i: int) -> np.ndarray | str:
        try:
            return decode(pictures.read(i), form)
        except NotanError:
            raise
        except Exception as error:
            return why(error)

    start = said = time.monotonic()
    with ThreadPoolExecutor(workers()) as pool, quiet():
        for first in range(0, len(pictures), CHUNK):
            rows = range(first, min(first + CHUNK, len(pictures)))
            yield from zip(rows, pool.map(one, rows))
            if (now := time.monotonic()) - said > 5:
                said, done = now, rows.stop
                left = (now - start) / done * (len(pictures) - done)
                print(f"notan: {done:,} of {len(pictures):,} pictures decoded, {left:.0f} s left", file=sys.stderr)


def write_whole(path: Path, write: Any) -> None:
    """Write a file so that it appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
    try:
        with open(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def noted(cache: Path | None, room: str, about: str, find: Callable[[], Any]) -> Any:
    """What `find` finds (JSON can hold it), out of a folder of the cache where it is known; `about` says all it depends on."""
    kept = None if cache is None else cache / room / f"{hashlib.blake2b(about.encode(), digest_size=10).hexdigest()}.json"
    if kept is not None:
        with contextlib.suppress(OSError, ValueError):
            return json.loads(kept.read_text())
    found = find()
    if kept is not None:
        with contextlib.suppress(OSError):  # the cache is a convenience
            write_whole(kept, lambda file: file.write(json.dumps(found).encode()))
    return found


def quiet() -> warnings.catch_warnings:
    """Pillow warns of odd metadata and large pictures, once per picture; what matters is whether they decode."""
    return warnings.catch_warnings(action="ignore")
