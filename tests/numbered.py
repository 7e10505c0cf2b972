"""Pictures that say their number, and an epoch of them: what the tests of streamed data and of tars are made of."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image

from notan.data import loader_of
from notan.data.table import Data


def png(i: int) -> bytes:
    """A picture that says its number."""
    file = io.BytesIO()
    Image.fromarray(np.full((4, 4), i % 256, np.uint8)).save(file, "png")
    return file.getvalue()


def numbers(images: torch.Tensor) -> list[int]:
    return images[:, 0, 0, 0].tolist()


def epoch(data: Data, batch_size: int = 4, seed: int = 0) -> dict:
    """All batches of an epoch, concatenated."""
    loader = loader_of(data, batch_size=batch_size, seed=seed)
    batches = [loader.batch(step) for step in range(loader.steps_per_epoch)]
    return {name: torch.cat([b[name] for b in batches]) if torch.is_tensor(v) else [x for b in batches for x in b[name]]
            for name, v in batches[0].items()}
