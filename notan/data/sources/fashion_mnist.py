"""Fashion-MNIST (Xiao, Rasul, Vollgraf, 2017): 60,000 + 10,000 grey pictures of clothes, 28 x 28, ten classes.

Looked up in this order: our cache; the folder of the Debian package `dataset-fashion-mnist`; that package, downloaded
and unpacked without installing it; the hub of `datasets`.
"""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from notan.data.sources import _fetch
from notan.errors import NotanError

SOURCE = {
    "name": "fashion-mnist",
    "title": "Fashion-MNIST: clothes, 28 x 28",
    "licence": "MIT",
    "rows": 70000,
    "split": "as published: 60,000 for training, 10,000 for test",
    "modality": "image",
    "fallback": "digits",
}

CLASSES = ["T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"]
DEBIAN = "usr/share/datasets/fashion-mnist"
HUB = "zalando-datasets/fashion_mnist"
FILES = {"train_image": "train-images-idx3-ubyte.gz", "train_label": "train-labels-idx1-ubyte.gz",
         "test_image": "t10k-images-idx3-ubyte.gz", "test_label": "t10k-labels-idx1-ubyte.gz"}  # fmt: skip


def load(cache: Path) -> dict[str, Any]:
    found = _fetch.arrays(cache, list(FILES)) or _fetch.keep_arrays(cache, _find(cache))
    for split, rows in (("train", 60000), ("test", 10000)):
        _fetch.expect("fashion-mnist", f"{split} image shape", found[f"{split}_image"].shape, (rows, 1, 28, 28))
        counts = np.bincount(found[f"{split}_label"], minlength=10).tolist()
        _fetch.expect("fashion-mnist", f"{split} rows per class", counts, [rows // 10] * 10)
    return {
        "train": {"image": found["train_image"], "label": found["train_label"]},
        "test": {"image": found["test_image"], "label": found["test_label"]},
        "classes": CLASSES,
    }


def _find(cache: Path) -> dict[str, np.ndarray]:
    reasons = []
    for place in (_installed, _downloaded, _hub):
        try:
            return place(cache)
        except NotanError as error:
            reasons.append(error.seen)
    raise _fetch.Unreachable("Fashion-MNIST cannot be reached: " + "; ".join(reasons))


def _installed(cache: Path) -> dict[str, np.ndarray]:
    return _read(Path("/") / DEBIAN)


def _downloaded(cache: Path) -> dict[str, np.ndarray]:
    unpacked = _fetch.deb("dataset-fashion-mnist", cache)
    found = _read(unpacked / DEBIAN)
    shutil.rmtree(unpacked, ignore_errors=True)  # the arrays are kept instead
    return found


def _hub(cache: Path) -> dict[str, np.ndarray]:
    import datasets

    try:
        found: dict[str, np.ndarray] = {}
        for split in ("train", "test"):
            rows = datasets.load_dataset(HUB, split=split)
            found[f"{split}_image"] = np.stack([np.asarray(picture) for picture in rows["image"]])[:, None]
            found[f"{split}_label"] = np.asarray(rows["label"], dtype=np.int64)
        return found
    except Exception as error:  # whatever a network and a hub can raise
        raise _fetch.Unreachable(f"the hub has no answer for {HUB} ({type(error).__name__})") from error


def _read(folder: Path) -> dict[str, np.ndarray]:
    if not folder.is_dir():
        raise _fetch.Unreachable(f"there is no folder {folder}")
    found = {name: _idx(folder / file) for name, file in FILES.items()}
    return {name: x[:, None] if x.ndim == 3 else x.astype(np.int64) for name, x in found.items()}


def _idx(path: Path) -> np.ndarray:
    """The idx format: two zero bytes, type (8 = uint8), rank, big-endian lengths, then the values."""
    data = gzip.decompress(path.read_bytes())
    if data[:3] != b"\0\0\x08":
        raise NotanError(f"{path} is not an idx file of bytes")
    rank = data[3]
    shape = np.frombuffer(data, ">i4", count=rank, offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape)
