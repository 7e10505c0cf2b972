"""ELPV (Deitsch et al., 2019): 2,624 photographs of solar cells in electroluminescence, 300 x 300, grey.

Each cell has a probability of being defective as experts judged it (0, 1/3, 2/3, 1): `label` is defective (above one
half) or not, `target` is the probability. Read from the wheel `elpv-dataset`, which holds the pictures.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from notan.data.pictures import Archive
from notan.data.sources import _fetch

SOURCE = {
    "name": "elpv",
    "title": "ELPV: photographs of solar cells, intact or defective, 300 x 300",
    "licence": "CC BY-NC-SA 4.0 (not for commercial use)",
    "rows": 2624,
    "split": "keyed, stratified, one fifth for test",
    "modality": "image",
}

FOLDER = "elpv_dataset/data/"


def load(cache: Path) -> dict[str, Any]:
    archive = _fetch.wheel("elpv-dataset", cache)
    table = [line.split() for line in archive.read(FOLDER + "labels.csv").decode().splitlines() if line.strip()]
    probability = np.array([float(p) for _, p, _ in table])
    thirds = np.bincount(np.round(3 * probability).astype(int), minlength=4).tolist()
    _fetch.expect("elpv", "rows by probability 0, 1/3, 2/3, 1", thirds, [1508, 295, 106, 715])
    return {
        "train": {
            "image": Archive(str(archive.filename), [FOLDER + name for name, _, _ in table]),
            "label": (probability > 0.5).astype(np.int64),
            "target": probability.astype(np.float32),
        },
        "classes": ["intact", "defective"],
    }
