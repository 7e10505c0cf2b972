"""Pictures made of emoji with every factor known: what, how many, how large, where, on which ground, and beside what.

One to three of a main object stand in one half, large or small; one other object, smaller, stands in the other half; the ground
has one of eight colours under a little noise. A picture is a function of (seed, row), and so are its factors, which are drawn
evenly and apart from each other, but that the other object is never the main one.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np

SIDE = 64
OBJECTS = {                                                             # as people call it: the emoji's name
    "dog": "dog face", "bell": "bell", "cat": "cat face", "fish": "fish", "car": "automobile", "key": "key",
    "cup": "hot beverage", "book": "books", "bicycle": "bicycle", "tree": "evergreen tree", "house": "house building",
    "apple": "red apple", "mushroom": "mushroom", "umbrella": "umbrella", "ball": "soccer ball", "rocket": "rocket",
}
COLOURS = {"red": (214, 66, 58), "orange": (236, 148, 52), "yellow": (240, 220, 90), "green": (84, 160, 84),
           "blue": (70, 110, 200), "purple": (140, 84, 168), "pink": (240, 170, 190), "grey": (140, 140, 140)}
FACTORS: dict[str, tuple[str, ...]] = {
    "object": tuple(OBJECTS), "colour": tuple(COLOURS), "count": ("one", "two", "three"),
    "place": ("left", "right", "top", "bottom"), "size": ("large", "small"), "other": tuple(OBJECTS),
}
LARGE, SMALL, OTHER = 20, 13, 14                                        # pixels of the sprites
NOISE = 8                                                               # standard deviation, of 255


class Composites(NamedTuple):
    """pictures uint8 (N, 3, 64, 64); factors int64 (N, 6), in the order of FACTORS; main bool (N, 64, 64): True at pixels of the
    main object."""

    pictures: np.ndarray
    factors: np.ndarray
    main: np.ndarray


def composites(seed: int, rows: range, *, artist: int | None = None) -> Composites:
    """The pictures of these rows, drawn by Google (artist 0), Twitter (1), or either of them."""
    pictures = np.empty((len(rows), 3, SIDE, SIDE), dtype=np.uint8)
    factors, main = np.empty((len(rows), len(FACTORS)), dtype=np.int64), np.zeros((len(rows), SIDE, SIDE), dtype=bool)
    for i, row in enumerate(rows):
        rng = np.random.default_rng((seed, row))
        factors[i] = [rng.integers(len(names)) for names in FACTORS.values()]
        factors[i, 5] = (factors[i, 0] + rng.integers(1, len(OBJECTS))) % len(OBJECTS)
        hand = int(rng.integers(2)) if artist is None else artist
        pictures[i], main[i] = _drawn(rng, factors[i], hand)
    return Composites(pictures, factors, main)


def words(factors: np.ndarray) -> dict[str, str]:
    """The names of one picture's factors (6,)."""
    return {name: names[value] for (name, names), value in zip(FACTORS.items(), factors)}


def caption(said: dict[str, str]) -> str:
    """One sentence with all factors: of `words`, or of others where a caption is to be wrong."""
    where = {"left": "on the left", "right": "on the right", "top": "at the top", "bottom": "at the bottom"}[said["place"]]
    return f"{said['count']} {said['size']} {said['object']} {where} beside one {said['other']} on {said['colour']} ground"


def _drawn(rng: np.random.Generator, factors: np.ndarray, hand: int) -> tuple[np.ndarray, np.ndarray]:
    thing, colour, count, place, size, other = (int(f) for f in factors)
    picture = np.empty((SIDE, SIDE, 3))
    picture[:] = [*COLOURS.values()][colour]
    main = np.zeros((SIDE, SIDE), dtype=bool)
    side, half = (LARGE, SMALL)[size], SIDE // 2
    for slot in rng.permutation(3)[: count + 1]:                        # one below the other, or one beside the other
        along = int(slot) * 21 + int(rng.integers(0, 21 - side + 1))
        across = int(rng.integers(1, half - side))
        _put(picture, hand, thing, side, _turned(along, across, side, place), main)
    free = int(rng.integers(1, half - OTHER)), int(rng.integers(1, SIDE - OTHER))
    _put(picture, hand, other, OTHER, _turned(free[1], free[0], OTHER, (1, 0, 3, 2)[place]), None)
    picture += rng.normal(0, NOISE, picture.shape)
    return picture.clip(0, 255).round().astype(np.uint8).transpose(2, 0, 1), main


def _turned(along: int, across: int, side: int, place: int) -> tuple[int, int]:
    """The corner (y, x) of a sprite so far along a half and into it; halves are left, right, top, bottom."""
    inward = across if place in (0, 2) else SIDE - across - side
    return (along, inward) if place < 2 else (inward, along)


def _put(picture: np.ndarray, hand: int, thing: int, side: int, corner: tuple[int, int], main: np.ndarray | None) -> None:
    colours, shape = _sprites(side)[hand][thing]
    here = slice(corner[0], corner[0] + side), slice(corner[1], corner[1] + side)
    picture[here] = shape[..., None] * colours + (1 - shape[..., None]) * picture[here]
    if main is not None:
        main[here] |= shape > 0.5


@cache
def _sprites(side: int) -> list[list[tuple[np.ndarray, np.ndarray]]]:
    """For both artists each object's colours (side, side, 3) in 0 to 255 and its shape (side, side) in 0 to 1.

    What is white and touches the picture's edge is around the object.
    """
    from scipy.ndimage import label

    from notan.data import open_data

    data = open_data("emoji")
    rows = {name: (split, i) for split in (data.train, data.test) for i, name in enumerate(split.stores["text"])}
    found: list[list[tuple[np.ndarray, np.ndarray]]] = []
    for column in ("image", "image2"):
        found.append([])
        for name in OBJECTS.values():
            split, i = rows[name]
            pixels = split.take(np.array([i]))[column][0].permute(1, 2, 0).numpy()
            areas, _ = label((pixels > 250).all(2))
            outside = np.unique(np.concatenate([areas[0], areas[-1], areas[:, 0], areas[:, -1]]))
            shape = ~np.isin(areas, outside[outside > 0])
            ink = pixels * shape[..., None]
            red, green, blue, cover = (_shrunk(x, side) for x in (*ink.transpose(2, 0, 1), shape))
            found[-1].append((np.stack([red, green, blue], 2) / np.maximum(cover, 1e-6)[..., None], cover))
    return found


def _shrunk(x: np.ndarray, side: int) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.fromarray(x.astype(np.float32)).resize((side, side), Image.Resampling.BOX), dtype=np.float64)
