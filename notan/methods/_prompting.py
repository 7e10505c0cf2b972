"""What prompt learners share: the classes they are told, the few rows they learn from, and the texts of the frozen model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from notan import world
from notan.data import DataInfo, keys
from notan.data.loader import shuffled
from notan.errors import NotanError
from notan.nets.dual import class_directions


def class_names(data: DataInfo, which: str) -> list[str]:
    """The names of all classes, or of the base ones. Raises `NotanError` where classes have no names, or one is left."""
    names = list(data.classes)
    names = names[: base_count(len(names))] if which == "base" else names
    if len(names) < 2:
        raise NotanError(f"{data.name} names {len(data.classes)} classes" + (", one of them base" if names else ""),
                         "at least two classes with names: prompts stand before names",
                         "a folder of pictures for each class under its name, or a column of class names: --column THEIRS=label")
    return names


def base_count(classes: int) -> int:
    """How many classes are base, the first of the sorted ones; the rest are novel (Zhou et al. 2022, arXiv 2203.05557)."""
    return -(-classes // 2)


def chosen(labels: np.ndarray, classes: int, shots: int | None, seed: int) -> np.ndarray:
    """Rows of the first so many classes, int64 (n,) in order: all, or of each class `shots` by key, all of a class with fewer.

    A function of labels (N,) and the seed. Raises `NotanError` for less than one shot and a class without rows.
    """
    if shots is not None and shots < 1:
        raise NotanError(f"shots = {shots}", "at least one picture of a class", "--shots 16, or leave it out for all")
    order = keys.shuffle(seed, keys.word("shots"), len(labels))
    found = [order[labels[order] == c][:shots] for c in range(classes)]
    if empty := [c for c, rows in enumerate(found) if not len(rows)]:
        raise NotanError(f"class {empty[0]} has no picture in the training split", "at least one of each class",
                         "leave the class out of the data, or add pictures")
    return np.sort(np.concatenate(found))


def batches_of(rows: np.ndarray, batch_size: int, seed: int, epoch: int) -> np.ndarray:
    """These rows in a new order every epoch, int64 (steps, B). Raises `NotanError` where they are less than a batch."""
    if len(rows) < batch_size:
        raise NotanError(f"{len(rows)} rows to learn from, a batch of {batch_size}", "no more than there are",
                         f"--batch {len(rows)} or less, or more --shots")
    return rows[shuffled(len(rows), batch_size, seed, epoch)]


def unit(z: Tensor) -> Tensor:
    return F.normalize(z, dim=1)


def frozen_texts(model: Any, names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Of each name the mean over templates of its directions, brought to length one: (C, d)."""
    for template in templates:
        if "{}" not in template:
            raise NotanError(f"template {template!r}", "{} where the name goes", "--templates 'a photo of a {}.'")
    return class_directions(model.text, names, templates)


def classified(scores: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Cross-entropy of scores (B, C), the mean over the rows of all ranks, and the share of right guesses."""
    nll = F.cross_entropy(scores, labels, reduction="none")             # (B,)
    right = (scores.argmax(1) == labels).to(nll.dtype)
    return {"ce": world.mean(nll.sum(), len(nll)), "accuracy": world.mean(right.sum(), len(right))}
