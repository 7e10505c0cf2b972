"""Scenes of icons on a 3 x 3 grid, with what is in them: pictures whose truth is known, for models that see.

Sixteen emoji, each drawn by Google or Twitter, two to four in a scene, on a tinted ground under noise, from a little to more
than a model can look through. In a *biased* scene the first object, if it is of a pair, brings its partner nine times in ten,
so that about half of all objects of a pair come with the other, and a model may learn to say yes to the partner of what it
sees. A scene is a function of (seed, row).
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np

OBJECTS = {                                                             # as people call it: the emoji's name
    "dog": "dog face", "bell": "bell", "cat": "cat face", "fish": "fish", "car": "automobile", "key": "key",
    "cup": "hot beverage", "book": "books", "bicycle": "bicycle", "tree": "evergreen tree", "house": "house building",
    "apple": "red apple", "mushroom": "mushroom", "umbrella": "umbrella", "ball": "soccer ball", "rocket": "rocket",
}
PAIRS = (("dog", "ball"), ("cat", "fish"), ("car", "key"), ("cup", "book"))
CELL, CELLS = 16, 3                                                     # pixels of a cell, cells a side
NOISE = (30, 300)                                                       # deviation of a scene's noise, of 255: from, to
SIDE = CELL * CELLS


class Scenes(NamedTuple):
    """pictures uint8 (N, 48, 48, 3); cells int64 (N, 9), an object's number in reading order, -1 where there is none."""

    pictures: np.ndarray
    cells: np.ndarray

    def present(self) -> np.ndarray:
        """Which objects are in each scene: bool (N, 16)."""
        return (self.cells[:, :, None] == np.arange(len(NAMES))).any(1)


NAMES = tuple(OBJECTS)
PARTNER = {a: b for pair in PAIRS for a, b in (pair, pair[::-1])}


def scenes(seed: int, rows: range, *, biased: bool) -> Scenes:
    """The scenes of these rows."""
    pictures = np.empty((len(rows), SIDE, SIDE, 3), dtype=np.uint8)
    cells = np.full((len(rows), CELLS**2), -1, dtype=np.int64)
    for i, row in enumerate(rows):
        rng = np.random.default_rng((seed, row))
        found = _objects(rng, biased)
        cells[i, rng.permutation(CELLS**2)[: len(found)]] = found
        pictures[i] = _drawn(rng, cells[i])
    return Scenes(pictures, cells)


def _objects(rng: np.random.Generator, biased: bool) -> list[int]:
    """Two to four different objects, the first with its partner nine times in ten when the scene is biased."""
    found = [int(rng.integers(len(NAMES)))]
    partner = PARTNER.get(NAMES[found[0]])
    if partner and biased and rng.random() < 0.9:
        found.append(NAMES.index(partner))
    others = [int(other) for other in rng.permutation(len(NAMES)) if other not in found]
    return found + others[: int(rng.integers(2, 5)) - len(found)]


def _drawn(rng: np.random.Generator, cells: np.ndarray) -> np.ndarray:
    picture = np.broadcast_to(rng.uniform(0.75, 1.0, 3), (SIDE, SIDE, 3)).copy()
    for place, number in enumerate(cells):
        if number < 0:
            continue
        sprite = _sprites()[rng.integers(2), number]                    # multiplied, as ink on the ground
        h = sprite.shape[0]
        y, x = (CELL * at + int(rng.integers(0, CELL - h + 1)) for at in divmod(place, CELLS))
        picture[y: y + h, x: x + h] *= sprite
    picture += rng.normal(0, rng.uniform(*NOISE) / 255, picture.shape)
    return (picture.clip(0, 1) * 255).round().astype(np.uint8)


@cache
def _sprites() -> np.ndarray:
    """float (2 artists, 16 objects, 14, 14, 3) in [0, 1]."""
    from PIL import Image

    from notan.data import open_data

    data = open_data("emoji")
    rows = {name: (split, i) for split in (data.train, data.test) for i, name in enumerate(split.stores["text"])}
    found = []
    for column in ("image", "image2"):
        for name in OBJECTS.values():
            split, i = rows[name]
            picture = Image.fromarray(split.take(np.array([i]))[column][0].permute(1, 2, 0).numpy())
            found.append(np.asarray(picture.resize((CELL - 2, CELL - 2), Image.Resampling.LANCZOS), dtype=np.float64) / 255)
    return np.stack(found).reshape(2, len(OBJECTS), CELL - 2, CELL - 2, 3)
