"""Clothes, and clothes with a digit over them: what is common to two groups of pictures, and what only one of them has.

Made of Fashion-MNIST and of scikit-learn's handwritten digits, as Louiset et al. (ICLR 2024) overlay CIFAR-10 with MNIST: every
picture is half of a garment; those of group 1 have half of a digit on top. Digits of the test split are other ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from notan.data.sources import digits, fashion_mnist

SOURCE = {
    "name": "overlay",
    "title": "Garments, half of them under a digit: 28 x 28, group and attributes (garment, digit)",
    "licence": "MIT (Fashion-MNIST), CC BY 4.0 (digits)",
    "rows": 12000,
    "split": "10,000 and 2,000 garments of the published splits, digits by a split of their own",
    "modality": "image",
}

ROWS = {"train": 10_000, "test": 2_000}


def load(cache: Path) -> dict[str, Any]:
    clothes, drawn = fashion_mnist.load(cache.parent / "fashion-mnist"), digits.load(cache.parent / "digits")["train"]
    draw = np.random.default_rng(0)
    order = draw.permutation(len(drawn["label"]))
    cut = len(order) * 4 // 5
    found: dict[str, Any] = {"classes": clothes["classes"]}
    for split, some in (("train", order[:cut]), ("test", order[cut:])):
        garment = draw.permutation(len(clothes[split]["label"]))[: ROWS[split]]
        digit = draw.choice(some, len(garment))
        group = np.arange(len(garment)) % 2
        found[split] = {
            "image": overlaid(clothes[split]["image"][garment], drawn["image"][digit], group),
            "label": clothes[split]["label"][garment], "group": group,
            "attributes": np.stack([clothes[split]["label"][garment], np.where(group == 1, drawn["label"][digit], -1)], 1),
        }
    return found


def overlaid(garment: np.ndarray, digit: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Half of each garment (N, 1, 28, 28), and in group 1 half of a digit (N, 1, 8, 8), three times as large, in the middle."""
    large = digit.repeat(3, 2).repeat(3, 3)                             # (N, 1, 24, 24)
    over = np.pad(large, ((0, 0), (0, 0), (2, 2), (2, 2))) * group[:, None, None, None]
    return ((garment.astype(np.int64) + over) // 2).astype(np.uint8)
