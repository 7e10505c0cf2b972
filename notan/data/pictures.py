"""Pictures: where encoded pictures lie, and how any of them becomes the same few pixels every time.

`decode` is the only way from a file to pixels, so cached rows and rows decoded on the fly are equal bit for bit.
"""

from __future__ import annotations

import hashlib
import io
import os
import threading
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

import numpy as np

from notan.errors import NotanError

FITS = ("crop", "pad", "squash")
GREY = ("1", "L", "LA", "La", "I", "F", "I;16", "I;16L", "I;16B", "I;16N")
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".jfif")


class Form(NamedTuple):
    """What every picture of a data set becomes: uint8 (channels, side, side)."""

    side: int
    channels: int
    fit: str  # crop: the centre square; pad: the whole picture on black; squash: the whole picture, stretched


class Pictures(Protocol):
    """Encoded pictures, by number."""

    @property
    def stamp(self) -> str: ...  # changes when a picture changes

    def __len__(self) -> int: ...

    def name(self, i: int) -> str: ...  # what a message calls it

    def read(self, i: int) -> Any: ...  # a path, bytes, or pixels uint8 (C, H, W)


class Files:
    """Picture files."""

    def __init__(self, paths: Sequence[str | os.PathLike], root: str | os.PathLike = "") -> None:
        self.paths, self.root = [str(path) for path in paths], str(root)

    @property
    def stamp(self) -> str:
        return stamp_of(self.paths)

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, i: int) -> str:
        return os.path.relpath(self.paths[i], self.root) if self.root else self.paths[i]

    def read(self, i: int) -> str:
        return self.paths[i]


class Archive:
    """Pictures inside a zip file (a wheel is one)."""

    def __init__(self, path: str | os.PathLike, members: Sequence[str]) -> None:
        self.path, self.members = str(path), list(members)
        self._zip, self._lock = zipfile.ZipFile(path), threading.Lock()

    @property
    def stamp(self) -> str:
        return stamp_of([self.path])

    def __len__(self) -> int:
        return len(self.members)

    def name(self, i: int) -> str:
        return self.members[i]

    def read(self, i: int) -> bytes:
        with self._lock:
            return self._zip.read(self.members[i])


class Encoded:
    """Pictures in a column of a `datasets.Dataset` that holds bytes, or {"bytes", "path"}."""

    def __init__(self, dataset: Any, column: str, stamp: str, base: str | os.PathLike = "") -> None:
        self.dataset, self.column, self.stamp, self.base = dataset, column, stamp, base
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.dataset)

    def name(self, i: int) -> str:
        return f"row {i}"

    def read(self, i: int) -> Any:
        with self._lock:
            value = self.dataset[int(i)][self.column]
        if isinstance(value, dict):
            value = value["bytes"] if value.get("bytes") is not None else value.get("path")
        if value is None:
            raise ValueError("there is none")
        return os.path.join(self.base, value) if isinstance(value, str) else value


class Pixels:
    """Pixels already decoded: uint8 (N, C, H, W)."""

    def __init__(self, array: np.ndarray, stamp: str = "") -> None:
        if array.dtype != np.uint8 or array.ndim != 4:
            raise NotanError(f"pixels of type {array.dtype} and shape {array.shape}", "uint8 (N, C, H, W)")
        self.array, self._stamp = array, stamp

    @property
    def stamp(self) -> str:
        if not self._stamp:
            some = np.ascontiguousarray(self.array[:: max(len(self.array) // 1000, 1)])
            self._stamp = hashlib.blake2b(some.tobytes() + str(self.array.shape).encode(), digest_size=8).hexdigest()
        return self._stamp

    def __len__(self) -> int:
        return len(self.array)

    def name(self, i: int) -> str:
        return f"row {i}"

    def read(self, i: int) -> np.ndarray:
        return self.array[i]


class Part(NamedTuple):
    """A picture that is part of a file: where it starts, and how many bytes it has."""

    path: str
    start: int
    size: int

    def read(self) -> bytes:
        with open(self.path, "rb") as file:
            return bytes_of(file, self.start, self.size)


def bytes_of(file: BinaryIO, start: int, size: int) -> bytes:
    """So many bytes of a file. Raises OSError where it has fewer."""
    file.seek(start)
    found = file.read(size)
    if len(found) < size:
        raise OSError(f"it has no bytes {start:,} to {start + size:,}")
    return found


def stamp_of(paths: Iterable[str | os.PathLike]) -> str:
    """A fingerprint of files: paths, sizes and times of change. A missing file has none of the latter two."""
    digest = hashlib.blake2b(digest_size=8)
    for path in paths:
        try:
            about = os.stat(path)
            digest.update(f"{path}\0{about.st_size}\0{about.st_mtime_ns}\n".encode())
        except OSError:
            digest.update(f"{path}\0missing\n".encode())
    return digest.hexdigest()


def header(source: Any) -> tuple[int, int, int]:
    """Width, height and natural channels (1 or 3; those of an array as they are), without decoding the pixels."""
    if isinstance(source, np.ndarray):
        return source.shape[2], source.shape[1], source.shape[0]
    with _open(source) as picture:
        grey = picture.mode in GREY
        if picture.mode == "P" and picture.palette is not None:
            palette = np.array(picture.getpalette() or [], dtype=np.uint8).reshape(-1, 3)
            grey = bool((palette[:, 0] == palette[:, 1]).all() and (palette[:, 1] == palette[:, 2]).all())
        return picture.width, picture.height, 1 if grey else 3


def decode(source: Any, form: Form) -> np.ndarray:
    """One picture as uint8 (C, S, S). Raises what Pillow raises when it cannot be read.

    First frame of animations; turned as its EXIF orientation says; transparency over white; 16-bit levels divided by
    257; colour to grey by ITU-R 601 where `form` has one channel. JPEG files are decoded at the smallest of 1/1, 1/2,
    1/4, 1/8 that still has twice the pixels wanted.
    """
    from PIL import Image

    if isinstance(source, np.ndarray):
        planes = [np.asarray(_fit(Image.fromarray(plane), form)) for plane in _channels(source, form.channels)]
        return np.stack(planes)
    return _squared(_drafted(source, form.side)[0], form)


def decode_and_show(source: Any, form: Form, side: int) -> tuple[np.ndarray, bytes]:
    """What `decode` gives, and the whole picture as a JPEG with a longer side of at most `side`: from one reading, mostly."""
    from PIL import Image

    if isinstance(source, np.ndarray):
        pixels = _channels(source, 3 if source.shape[0] == 3 else 1) if source.shape[0] in (1, 3) else source[:1]
        flat = Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
        return decode(source, form), _jpeg(flat, side)
    flat, longest = _drafted(source, form.side)
    whole = flat if max(flat.size) >= min(side, longest) else _drafted(source, side)[0]
    return _squared(flat, form), _jpeg(whole, side)


def thumbnail(source: Any, side: int) -> bytes:
    """A whole picture as a JPEG with a longer side of at most `side`."""
    return _jpeg(_drafted(source, side)[0], side)


def _drafted(source: Any, side: int) -> tuple[Any, int]:
    """A picture upright, of 8 bits and without transparency, at twice `side` or more where it is larger; and its longer side in
    the file.
    """
    with _open(source) as picture:
        longest = max(picture.size)
        picture.draft(None, (2 * side, 2 * side))
        picture.load()
        return _flat(_turned(picture)), longest


def _squared(flat: Any, form: Form) -> np.ndarray:
    pixels = np.asarray(_fit(flat.convert("L" if form.channels == 1 else "RGB"), form))  # (S, S) or (S, S, 3)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _jpeg(flat: Any, side: int) -> bytes:
    small = flat.copy()
    small.thumbnail((side, side))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=85 if max(small.size) > 64 else 95, subsampling=2 if max(small.size) > 64 else 0)
    return file.getvalue()


def why(error: BaseException) -> str:
    """Why a picture is unreadable, in a line."""
    said = str(error).splitlines()[0] if str(error) else ""
    if "cannot identify image file" in said:
        return "not a picture"
    return said[:120] or type(error).__name__


def _open(source: Any) -> Any:
    from PIL import Image

    if isinstance(source, (str, Path)) and os.path.exists(source) and not os.path.getsize(source):
        raise ValueError("the file is empty")
    return Image.open(io.BytesIO(source) if isinstance(source, (bytes, bytearray)) else source)


def _turned(picture: Any) -> Any:
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # damaged EXIF data says nothing about the orientation
        return picture


def _flat(picture: Any) -> Any:
    """8 bits a channel and no transparency: L or RGB."""
    from PIL import Image

    if picture.mode.startswith("I;16"):
        levels = np.asarray(picture).astype(np.uint32)
        return Image.fromarray(((levels + 128) // 257).astype(np.uint8))
    if picture.mode == "I":  # 32-bit containers of 16-bit levels
        levels = np.clip(np.asarray(picture).astype(np.int64), 0, 65535)
        return Image.fromarray(((levels + 128) // 257).astype(np.uint8))
    if picture.mode == "F":  # [0, 1] by convention, else 0 to 255
        levels = np.nan_to_num(np.asarray(picture))
        levels = levels * (255 if levels.max(initial=0) <= 1 else 1)
        return Image.fromarray(np.clip(np.round(levels), 0, 255).astype(np.uint8))
    if picture.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in picture.info:
        grey = picture.mode in ("LA", "La", "L")
        picture = picture.convert("RGBA")
        over = Image.new("RGBA", picture.size, "white")
        over.alpha_composite(picture)
        return over.convert("L" if grey else "RGB")
    return picture if picture.mode in ("L", "RGB") else picture.convert("L" if picture.mode == "1" else "RGB")


def _fit(picture: Any, form: Form) -> Any:
    """A picture of L or RGB -> (S, S), antialiased (bicubic)."""
    from PIL import Image

    width, height, side = picture.width, picture.height, form.side
    bicubic = Image.Resampling.BICUBIC
    if form.fit == "crop":
        short = min(width, height)
        x, y = (width - short) // 2, (height - short) // 2
        if short == side:
            return picture.crop((x, y, x + side, y + side))
        return picture.resize((side, side), bicubic, box=(x, y, x + short, y + short))
    if form.fit == "squash" or width == height:
        return picture if (width, height) == (side, side) else picture.resize((side, side), bicubic)
    scale = side / max(width, height)
    small = picture.resize((max(round(width * scale), 1), max(round(height * scale), 1)), bicubic)
    whole = Image.new(picture.mode, (side, side))
    whole.paste(small, ((side - small.width) // 2, (side - small.height) // 2))
    return whole


def _channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """(C, H, W) with the wanted number of channels: grey repeated, colour to grey by ITU-R 601."""
    if pixels.shape[0] == channels:
        return np.ascontiguousarray(pixels)
    if pixels.shape[0] == 1:
        return np.repeat(pixels, channels, axis=0)
    if pixels.shape[0] == 3 and channels == 1:
        weighed = np.einsum("chw,c->hw", pixels.astype(np.uint32), np.array([19595, 38470, 7471], dtype=np.uint32))
        return ((weighed + 32768) >> 16).astype(np.uint8)[None]
    seen = f"a picture with {pixels.shape[0]} channels among pictures with {channels}"
    raise NotanError(seen, "one number of channels")
