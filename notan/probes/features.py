"""Features of rows: run an encoder over a split, once, without gradients. And the checks every probe begins with."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from notan.errors import NotanError

Encode = Callable[[dict[str, Any]], Tensor]
WORDS = 2048                                                            # places of a bag of words


def extract(
    encode: Encode, rows: Any, index: np.ndarray | None = None, batch: int = 512, device: torch.device | str = "cpu"
) -> Tensor:
    """Features (N, D) float32 on the CPU of the given rows (`index`, or all), in that order.

    `encode` takes a batch (its tensors on `device`) to (B, D), or (B, D, h, w) for maps. A module, or a method of
    one, is in eval mode meanwhile and as before afterwards. Raises `NotanError` when features are not finite or of
    another shape.
    """
    index = np.arange(len(rows)) if index is None else np.asarray(index)
    if not len(index):
        raise NotanError("there are no rows to embed", "at least one row")
    parts: list[Tensor] = []
    with torch.inference_mode(), _evaluating(encode):
        for start in range(0, len(index), batch):
            taken = index[start : start + batch]
            z = encode(_to(rows.take(taken), device))
            if not isinstance(z, Tensor) or z.ndim not in (2, 4) or len(z) != len(taken):
                seen = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
                raise NotanError(
                    f"the encoder gave {seen} for {len(taken)} rows",
                    f"a tensor ({len(taken)}, D)",
                    "choose one output if there are several, e.g. lambda batch: encode(batch)['image']",
                )
            parts.append(z.float().cpu())
    z = torch.cat(parts)
    check_finite(z, "features")
    return z.clone()  # no longer an inference tensor


def pixels(batch: dict[str, Any]) -> Tensor:
    """The raw-input reference: pixels in [0, 1] as features, (B, C * H * W)."""
    return batch["image"].flatten(1).float() / 255


def words(batch: dict[str, Any]) -> Tensor:
    """The raw-input reference of texts: which words are in it, (B, WORDS), each text of length 1.

    log(1 + how often) of each word in lower case; words share a place where their hashes do.
    """
    counts = torch.zeros(len(batch["text"]), WORDS)
    for row, text in zip(counts, batch["text"]):
        for word in re.findall(r"\w+", text.lower()):
            row[zlib.crc32(word.encode()) % WORDS] += 1
    return F.normalize(counts.log1p(), dim=1)


def numbers(batch: dict[str, Any]) -> Tensor:
    """The raw-input reference of tables and series: `features` (B, F), or the mean and deviation of a series over time."""
    if "features" in batch:
        return batch["features"].float()
    rows = [x[:n].reshape(int(n), -1) for x, n in zip(batch["series"], batch["length"])]
    return torch.stack([torch.cat([x.mean(0), x.std(0, correction=0)]) for x in rows])


def check_finite(x: Tensor, name: str) -> None:
    """Raises `NotanError` that counts the rows of `x` (N, ...) with NaN or infinity."""
    if torch.isfinite(x.sum()):                                         # NaN and infinity reach the sum: one fast pass
        return
    bad = ~torch.isfinite(x.flatten(1)).all(1)
    if bad.any():
        first = int(bad.nonzero()[0])
        raise NotanError(
            f"{name} of {int(bad.sum()):,} of {len(x):,} rows are NaN or infinite (first: row {first})",
            "finite numbers",
            "the encoder has diverged: train with a lower learning rate, or look at its notes",
        )


def check_labelled(x: Tensor, y: Tensor, name: str = "training") -> None:
    """Features (N, D) and labels int (N,) that a classifier can be fitted to or scored on."""
    if x.ndim != 2 or y.ndim != 1 or len(x) != len(y):
        raise NotanError(f"{name} features are {tuple(x.shape)} and labels {tuple(y.shape)}", "(N, D) and (N,)")
    if not len(x):
        raise NotanError(f"there are no {name} rows", "at least one labelled row")
    if int(y.min()) < 0:
        raise NotanError(
            f"{int((y < 0).sum()):,} of {len(y):,} {name} labels are negative",
            "class numbers from 0",
            "leave unlabelled rows out of the probe",
        )
    check_finite(x, f"{name} features")


def check_several(y: Tensor) -> None:
    """A probe needs two classes among its training labels."""
    found = y.unique()
    if len(found) < 2:
        raise NotanError(
            f"all {len(y):,} training labels are class {int(found[0])}",
            "at least two classes",
            "use more labelled rows, or data with several classes",
        )


@contextmanager
def _evaluating(encode: Encode) -> Iterator[None]:
    module = encode if isinstance(encode, nn.Module) else getattr(encode, "__self__", None)
    modes = [(m, m.training) for m in module.modules()] if isinstance(module, nn.Module) else []
    for m, _ in modes:
        m.training = False
    try:
        yield
    finally:
        for m, training in modes:
            m.training = training


def _to(batch: dict[str, Any], device: torch.device | str) -> dict[str, Any]:
    return {name: x.to(device) if isinstance(x, Tensor) else x for name, x in batch.items()}
