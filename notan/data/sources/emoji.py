"""Emoji as Google and Twitter draw them: 1,911 concepts with a name and a category, two pictures each, 32 x 32."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from notan.data import keys
from notan.data.sources import _fetch

SOURCE = {
    "name": "emoji",
    "title": "Emoji drawn by Google (`image`) and Twitter (`image2`), with names (`text`) and 10 categories, 32 x 32",
    "licence": "MIT (data), Apache-2.0 (Google's pictures), CC BY 4.0 (Twitter's)",
    "rows": 1911,
    "split": "keyed by concept, one fifth for test",
    "modality": "image, text",
}
SIDE, GAP = 32, 1  # a sheet's pictures, and the edge around each


def load(cache: Path) -> dict[str, Any]:
    found = _fetch.arrays(cache, ["image", "image2", "text", "label", "classes"]) or _fetch.keep_arrays(cache, _read(cache))
    _fetch.expect("emoji", "the shape of its images", found["image"].shape, (1911, 3, SIDE, SIDE))
    rows = {name: found[name] for name in ("image", "image2", "label")} | {"text": found["text"].tolist()}
    test = keys.fold(keys.word("emoji split"), np.arange(len(found["label"]))) % 5 == 0
    return {
        "train": {name: _some(values, ~test) for name, values in rows.items()},
        "test": {name: _some(values, test) for name, values in rows.items()},
        "classes": found["classes"].tolist(),
    }


def _some(values: Any, chosen: np.ndarray) -> Any:
    return [v for v, c in zip(values, chosen) if c] if isinstance(values, list) else values[chosen]


def _read(cache: Path) -> dict[str, np.ndarray]:
    from PIL import Image

    with _fetch.npm("emoji-datasource", cache) as package:
        def file(name: str) -> bytes:
            opened = package.extractfile(f"package/{name}")
            assert opened is not None
            return opened.read()

        entries = sorted(json.loads(file("emoji.json")), key=lambda e: e["unified"])
        entries = [e for e in entries if e["has_img_google"] and e["has_img_twitter"]]
        sheets = [Image.open(io.BytesIO(file(f"img/{vendor}/sheets/32.png"))).convert("RGBA") for vendor in ("google", "twitter")]
    classes = sorted({e["category"] for e in entries})
    pictures = [np.stack([_picture(sheet, e["sheet_x"], e["sheet_y"]) for e in entries]) for sheet in sheets]
    names = [(e["name"] or e["short_name"].replace("-", " ")).lower() for e in entries]
    return {"image": pictures[0], "image2": pictures[1], "text": np.array(names), "classes": np.array(classes),
            "label": np.array([classes.index(e["category"]) for e in entries], dtype=np.int64)}  # fmt: skip


def _picture(sheet: Any, column: int, row: int) -> np.ndarray:
    """One picture of a sheet, on white: uint8 (3, 32, 32)."""
    from PIL import Image

    x, y = (at * (SIDE + 2 * GAP) + GAP for at in (column, row))
    cut = sheet.crop((x, y, x + SIDE, y + SIDE))
    return np.asarray(Image.alpha_composite(Image.new("RGBA", cut.size, "white"), cut).convert("RGB")).transpose(2, 0, 1)
