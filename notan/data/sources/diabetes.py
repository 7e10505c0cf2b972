"""Diabetes (Efron et al. 2004): ten measurements of 442 patients, and how far the disease went in a year (`target`).

As scikit-learn ships it, in the units it was measured in. Small, noisy, and always there: the table to try things on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from notan.data.sources._fetch import expect

SOURCE = {
    "name": "diabetes",
    "title": "Diabetes: ten measurements of a patient and the progression a year later",
    "licence": "as shipped with scikit-learn (BSD-3-Clause)",
    "rows": 442,
    "split": "keyed, one fifth for test",
    "modality": "features",
}


def load(cache: Path) -> dict[str, Any]:
    from sklearn.datasets import load_diabetes

    found = load_diabetes(scaled=False)
    expect("diabetes", "the shape of its table", found.data.shape, (442, 10))
    return {"train": {"features": found.data.astype(np.float32), "target": found.target.astype(np.float32)}}
