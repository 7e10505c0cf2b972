"""Views are the same inside a step that runs in bfloat16."""

from __future__ import annotations

import pytest
import torch

from notan.methods._example import images
from notan.views import colour
from notan.views.geometry import cell_centres, crop, crop_boxes, floats, pad_crop, resize

BATCH = images(8)
BOXES = crop_boxes(BATCH["key"], height=16, width=16)
PIXELS = floats(BATCH["image"])


@pytest.mark.parametrize("view", [
    lambda: crop(BATCH["image"], BOXES, None, 12).pixels,
    lambda: cell_centres(crop(BATCH["image"], BOXES, None, 12).affine, 7),
    lambda: resize(BATCH["image"], 12),
    lambda: pad_crop(BATCH["image"], BATCH["key"], 2).pixels,
    lambda: colour.jitter(PIXELS, BATCH["key"], brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1),
    lambda: colour.grayscale(PIXELS, BATCH["key"], 0.5),
    lambda: colour.blur(PIXELS, BATCH["key"], p=0.5),
    lambda: colour.solarise(PIXELS, BATCH["key"], p=0.5),
], ids=["crop", "cell_centres", "resize", "pad_crop", "jitter", "grayscale", "blur", "solarise"])
def test_autocast_changes_no_view(view):
    expected = view()
    with torch.autocast("cpu", torch.bfloat16):
        found = view()
    assert found.dtype == torch.float32 and torch.equal(found, expected)
