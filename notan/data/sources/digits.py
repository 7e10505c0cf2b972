"""Handwritten digits of scikit-learn: 1,797 grey pictures of 8 x 8 pixels. Always there, so also the fall-back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from notan.data.sources._fetch import expect

SOURCE = {
    "name": "digits",
    "title": "Handwritten digits, 8 x 8 (UCI, as shipped with scikit-learn)",
    "licence": "CC BY 4.0 (data), BSD-3-Clause (package)",
    "rows": 1797,
    "split": "keyed, stratified, one fifth for test",
    "modality": "image",
}


def load(cache: Path) -> dict[str, Any]:
    from sklearn.datasets import load_digits

    found = load_digits()
    expect("digits", "the shape of its images", found.images.shape, (1797, 8, 8))
    image = np.round(found.images * (255 / 16)).astype(np.uint8)[:, None]  # 17 grey levels -> (N, 1, 8, 8)
    return {
        "train": {"image": image, "label": found.target.astype(np.int64)},
        "classes": [str(digit) for digit in range(10)],
    }
