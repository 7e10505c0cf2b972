"""An index as points on a plane: first the two directions of most spread, then a map that keeps neighbours together.

The map is t-SNE (van der Maaten and Hinton 2008; Barnes-Hut, of scikit-learn) of at most LANDMARKS rows drawn by key. The others
are put among the landmarks they are nearest to, so that a million rows cost one pass over their vectors.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from notan.data import keys
from notan.runs.index import Index

LANDMARKS = 3000                                                        # rows that t-SNE is given
STEPS = 500                                                             # of t-SNE
SAMPLE = 20_000                                                         # rows that the directions of most spread are of
NEAREST, SHARP = 6, 30.0                                                # landmarks of a row; weights exp(SHARP x cosine)
BLOCK = 8192                                                            # rows at a time


def spread(index: Index) -> np.ndarray:
    """float32 (N, 2) in [-1, 1]: every row on the first two principal directions of at most SAMPLE live rows."""
    rows = drawn(index, SAMPLE)
    if index.dim < 2 or len(rows) < 2:
        return np.zeros((index.count, 2), np.float32)
    x = _rows(index, rows)
    centre = x.mean(0)
    axes = torch.linalg.eigh((x - centre).T @ (x - centre)).eigenvectors[:, -2:].flip(1)     # (D, 2)
    axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()                  # the same on every machine
    return _boxed(np.concatenate([((x - centre) @ axes).numpy() for x in _blocks(index)]), index.alive)


def neighbours(index: Index, start: np.ndarray) -> np.ndarray:
    """float32 (N, 2) in [-1, 1]: t-SNE of landmarks, begun at their places in `start` (N, 2), and the other rows among them."""
    from sklearn.manifold import TSNE

    rows = drawn(index, LANDMARKS)
    if len(rows) < 8:
        return start
    x = _rows(index, rows)
    begun = start[rows] / max(float(start[rows][:, 0].std()), 1e-9) * 1e-4
    made = TSNE(perplexity=min(30, (len(rows) - 1) // 3), max_iter=STEPS, init=begun, random_state=0,
                n_jobs=1).fit_transform(x.numpy())
    places = torch.from_numpy(made.astype(np.float32))
    found = []
    for block in _blocks(index):
        near, which = (block @ x.T).topk(NEAREST, dim=1)
        weight = (SHARP * (near - near[:, :1])).exp()
        found.append(((weight[..., None] * places[which]).sum(1) / weight.sum(1, keepdim=True)).numpy())
    xy = np.concatenate(found)
    xy[rows] = made
    return _boxed(xy, index.alive)


def drawn(index: Index, most: int) -> np.ndarray:
    """At most so many live rows, by key, ascending."""
    rows = np.flatnonzero(index.alive)
    return rows if len(rows) <= most else np.sort(rows[keys.shuffle(0, 0, len(rows))[:most]])


def kept(index: Index) -> np.ndarray | None:
    """The map that was made of these rows before."""
    path = _path(index)
    if not path.exists() or path.stat().st_size != 8 * index.count:
        return None
    return np.fromfile(path, "<f4").reshape(-1, 2)


def keep(index: Index, xy: np.ndarray) -> None:
    """Put a map beside the index, where that can be written to."""
    path = _path(index)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    with contextlib.suppress(OSError):
        xy.astype("<f4").tofile(part)
        os.replace(part, path)
        for old in index.path.glob("map-*.bin"):
            if old != path:
                old.unlink()


def _path(index: Index) -> Path:
    return index.path / f"map-{index.count}.bin"


def _blocks(index: Index) -> Iterator[Tensor]:
    for at in range(0, index.count, BLOCK):
        yield torch.from_numpy(np.asarray(index.vectors[at : at + BLOCK])).float()


def _rows(index: Index, rows: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(index.vectors[rows])).float()


def _boxed(xy: np.ndarray, alive: np.ndarray) -> np.ndarray:
    """Centred, and scaled so that what is alive fits into [-1, 1]."""
    here = xy[alive] if alive.any() else xy
    low, high = here.min(0), here.max(0)
    return ((xy - (low + high) / 2) / max(float((high - low).max()) / 2, 1e-9)).astype(np.float32)
